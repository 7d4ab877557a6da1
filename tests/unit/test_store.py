"""The store of shared prefixes: found by address, held by a lock, valid only when whole."""

import pytest
from filelock import FileLock

from prunebench.store import PrefixStore, address


class GaveUp(Exception):
    pass


def give_up(key):
    raise GaveUp(key)


def store(tmp_path, keys, waiting=give_up):
    return PrefixStore(tmp_path / "store", keys, waiting)


def put(target, index, text=b"state"):
    target.put(index, b"rows", lambda path: path.write_bytes(text))


def test_an_address_depends_on_content_and_not_on_order():
    assert address({"a": 1, "b": [1.5, None]}) == address({"b": [1.5, None], "a": 1})
    assert address({"a": 1}) != address({"a": 2})
    assert len(address([])) == 16


def test_an_empty_store_gives_nothing_and_holds_the_lock(tmp_path):
    first, second = store(tmp_path, {0: "k"}), store(tmp_path, {0: "k"})
    assert first.longest(0) is None
    with pytest.raises(GaveUp, match="k"):
        second.longest(0)
    first.release()
    assert second.longest(0) is None
    second.release()


def test_what_one_run_puts_another_finds_without_a_lock(tmp_path):
    first, second, third = (store(tmp_path, {0: "k"}) for _ in range(3))
    first.longest(0)
    put(first, 0)
    for other in (second, third):
        index, folder = other.longest(0)
        assert (index, folder.name) == (0, "k")
        assert (folder / "checkpoint.pt").read_bytes() == b"state"
        assert (folder / "metrics.jsonl").read_bytes() == b"rows"


def test_the_longest_stored_prefix_is_taken(tmp_path):
    whole = store(tmp_path, {0: "a", 1: "b", 2: "c"})
    for index in (0, 1):
        put(whole, index)
    assert whole.longest(0)[0] == 1
    assert whole.longest(1)[0] == 1
    assert whole.longest(2) is None
    whole.release()


def test_a_prefix_that_ends_before_the_clock_is_of_no_use(tmp_path):
    target = store(tmp_path, {0: "a"})
    put(target, 0)
    assert target.longest(1) is None


def test_a_stored_state_is_not_written_again(tmp_path):
    target = store(tmp_path, {0: "a"})
    put(target, 0, b"first")
    put(target, 0, b"second")
    assert (target.longest(0)[1] / "checkpoint.pt").read_bytes() == b"first"


def test_a_phase_without_an_address_is_not_stored(tmp_path):
    target = store(tmp_path, {0: "a"})
    put(target, 3)
    assert not (tmp_path / "store").exists()


def test_rows_without_a_checkpoint_are_not_valid(tmp_path):
    target = store(tmp_path, {0: "a"})

    def full(path):
        raise OSError

    with pytest.raises(OSError):
        target.put(0, b"rows", full)
    assert target.longest(0) is None
    target.release()


def test_a_waiting_run_takes_what_the_other_has_stored_meanwhile(tmp_path):
    first, told = store(tmp_path, {0: "k"}), []
    first.longest(0)

    def waiting(key):
        told.append(key)
        put(first, 0)

    second = store(tmp_path, {0: "k"}, waiting)
    assert second.longest(0)[0] == 0
    assert told == ["k"]


def test_the_lock_is_let_go_after_putting(tmp_path):
    target = store(tmp_path, {0: "k"})
    target.longest(0)
    put(target, 0)
    with FileLock(str(tmp_path / "store" / "k" / "lock"), timeout=0):
        pass
