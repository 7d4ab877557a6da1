"""What surrounds a run: its directories."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from prunebench.experiment import make_directory


def test_jobs_side_by_side_try_the_same_directory_without_getting_in_each_other_s_way(tmp_path):
    shared = tmp_path / "runs" / ".shared"
    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(make_directory, shared, "trainer.store", shared) for _ in range(400)]:
            done.result()
    assert list(shared.iterdir()) == []


def test_a_directory_that_cannot_be_is_named_with_its_option(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"file/runs: cannot be written \(Not a directory\)"):
        make_directory(tmp_path / "file" / "runs", "out", tmp_path / "file" / "runs")
