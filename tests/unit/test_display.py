import io
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from prunebench.display import LINE_AT_LEAST, Display, TimeLeft
from prunebench.report.rounds import PLAN_ROWS, ROUNDS, plan_lines, round_lines
from prunebench.report.table import Column, clock, count, percent, points, ratio, seconds, table

ROOT = Path(__file__).parents[2]


class Clock:
    """A clock that the test turns on by hand."""

    time = 0.0

    def __call__(self):
        return self.time


def a_round(cycle, sparsity=None):
    sparsity = 1 - 0.8**cycle if sparsity is None else sparsity
    metrics = {"top1": 0.98 - 0.001 * cycle, "top5": 0.999, "loss": 0.1}
    kept = 11_164_352 - round(sparsity * 11_164_352)
    return {
        "phase": f"round-{cycle:02}" if cycle else "dense",
        "cycle": cycle,
        "asked": sparsity,
        "sparsity": sparsity,
        "kept": kept,
        "total": 11_164_352,
        "params": kept + 9_610,
        "params_total": 11_173_962,
        "compression": 11_173_962 / (kept + 9_610),
        "macs": 36_100_000 * (1 - sparsity),
        "macs_dense": 36_100_000,
        "speedup": 1 / (1 - sparsity),
        "pruned": {"top1": 0.5, "top5": 0.9, "loss": 1.0} if cycle else None,
        "test": metrics,
        "valid": None,
        "delta": -0.001 * cycle,
        "seconds": 12.0,
    }


def a_result(rounds=11):
    rows = [a_round(cycle) for cycle in range(rounds)]
    names = {"method": "imp", "model": "resnet18", "dataset": "digits", "seed": 0}
    return {**names, "dense": rows[0]["test"], "rounds": rows, "shared": [{"phase": "dense", "key": "ab"}]}


def a_phase(name="dense", **values):
    row = {
        "name": name,
        "epochs": 40.0,
        "steps": 920,
        "sparsity": None,
        "weights": "keep",
        "schedule": "cosine",
    }
    return {**row, "cost": 3e9, **values}


def plain(now=None, **options):
    stream = io.StringIO()
    return Display(stream=stream, now=now or Clock(), **options), stream


def step(display, at, epoch, **values):
    shown = {"loss": 1.0, "top1": None, "lr": 0.1, "images_per_second": 1000.0, **values}
    display.update(at, epoch=epoch, **shown)


@pytest.mark.parametrize("width", [80, 120, 200])
@pytest.mark.parametrize("rounds", [1, 2, 11, 100])
def test_result_lines_fit_the_width(width, rounds):
    assert max(map(len, round_lines(a_result(rounds), width=width))) <= width


def test_a_table_of_120_columns_shows_everything_and_one_of_80_what_matters_most():
    wide, narrow = (table(ROUNDS, a_result()["rounds"], width=width) for width in (120, 80))
    assert len(wide[-1].split()) == len(ROUNDS)
    for header in ("asked", "reached", "top-1", "change", "kept", "compr.", "speed", "seconds"):
        assert header in narrow[1]
    assert narrow[-1].split()[:3] == ["round-10", "89.26", "89.26"]
    assert len(narrow[-1].split()) == len(narrow[1].split())


def test_a_result_without_a_dense_control_says_so():
    result = a_result(1) | {"dense": None}
    result["rounds"][0]["delta"] = None
    assert any("no dense control" in line for line in round_lines(result, width=80))


@pytest.mark.parametrize("width", [80, 120])
def test_plan_shares_add_up_and_fit(width):
    phases = [
        a_phase(),
        *(a_phase(f"round-{i:02}", sparsity=0.5, cost=1e9, schedule="slr") for i in range(3)),
    ]
    lines = plan_lines("imp: resnet18 on digits", phases, {"device": "cpu"}, width=width)
    assert max(map(len, lines)) <= width
    assert lines[1] == "  device  cpu"
    total = next(line for line in lines if line.startswith("total")).split()
    assert total == ["total", "160", "3,680", "-", "6.00G", "100.0%"]
    assert [line.split()[-1] for line in lines if line.startswith(("dense", "round"))] == ["50.0%"] + 3 * [
        "16.7%"
    ]


def test_a_long_fact_is_folded_and_a_path_is_not():
    facts = {"data": "digits, " * 15 + "end", "directory": "/results" * 15}
    lines = plan_lines("", [a_phase()], facts, width=80)
    assert max(map(len, lines[1:3])) <= 80
    assert lines[2].startswith(13 * " " + "digits")
    assert "/results" * 15 in "".join(lines)


def test_a_plan_with_unknown_lengths_and_costs_is_printed():
    lines = plan_lines("", [a_phase(steps=None, epochs=None, cost=None)], {}, width=80)
    assert next(line for line in lines if line.startswith("total")).split() == ["total", "-", "-", "-"]


def test_a_long_plan_is_folded_and_still_adds_up():
    lines = plan_lines("", [a_phase(f"round-{i:03}") for i in range(200)], {}, width=80)
    assert len(lines) < PLAN_ROWS + 10
    assert any("... 176 more" in line for line in lines)
    assert any(line.startswith("total") and "184,000" in line for line in lines)


def test_plain_lines_are_few_when_epochs_are_short():
    now = Clock()
    display, stream = plain(now)
    display.start("dense", 0, 1, 10_000, 0, 10_000, 0)
    for at in range(1, 10_001):  # 100 s, 100 epochs, 100 updates a second
        now.time = at / 100
        step(display, at, at / 100)
    lines = stream.getvalue().splitlines()
    assert 100 / LINE_AT_LEAST <= len(lines) <= 20


def test_plain_lines_come_every_ten_seconds_when_an_epoch_is_long():
    now = Clock()
    display, stream = plain(now)
    display.start("dense", 0, 1, 1000, 0, 1000, 0)
    for at in range(1, 101):
        now.time = float(at)
        step(display, at, at / 1000)
    assert len(stream.getvalue().splitlines()) == 10


def test_a_short_phase_takes_one_plain_line():
    now = Clock()
    display, stream = plain(now)
    for index in range(3):
        display.start("round-01", index, 3, 10, 0, 30, 10 * index)
        for at in range(1, 11):
            now.time += 0.01
            step(display, at, float(at))
        display.phase_end(a_round(1))
    lines = stream.getvalue().splitlines()
    assert lines == 3 * ["round-01: 20.00 % sparse, top-1 50.00 pruned, 97.90 retrained (-0.10), 12.0 s"]


def test_a_plain_line_says_where_the_run_is():
    now = Clock()
    display, stream = plain(now)
    display.start("round-01", 1, 3, 200, 0, 600, 200)
    step(display, 50, 2.5, top1=0.9)
    now.time = 10.0
    step(display, 100, 5.0, loss=None)
    line = stream.getvalue()
    assert line.startswith(
        "round-01 2/3  epoch 5.0  step 100 of 200  loss 1  top-1 90.00 %  lr 0.1  1.00k images/s"
    )
    assert line.endswith("left 0:20, run 1:00\n")  # 50 steps took 10 s


def test_time_left_follows_the_speed_of_late():
    left = TimeLeft()
    assert left.left(10) == "-:--"
    for second in range(100):
        left.update(second, second)  # one step a second
    assert left.left(60) == "1:00"
    for second in range(100, 300):
        left.update(second, 100 + 2 * (second - 100))  # two
    assert left.left(120) == "1:00"


def test_quiet_prints_nothing():
    display, stream = plain(quiet=True)
    display.plan("imp", [a_phase()], {})
    display.start("dense", 0, 1, 10, 0, 10, 0)
    step(display, 1, 0.1)
    display.event("pruned")
    display.phase_end(a_round(0))
    display.finish(a_result(), "runs/x")
    assert stream.getvalue() == ""


def test_finish_prints_the_table_and_the_directory():
    display, stream = plain()
    display.finish(a_result(), "runs/imp-1f2e")
    assert "round-10" in stream.getvalue()
    assert stream.getvalue().endswith("results: runs/imp-1f2e\n")


def test_a_reader_that_goes_away_does_not_end_the_run():
    class Closed(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

    display = Display(stream=Closed())
    display.event("one")
    display.event("two")
    assert display.quiet


def test_live_display_draws_bars_and_gives_the_terminal_back():
    now, stream = Clock(), io.StringIO()
    with pytest.raises(KeyboardInterrupt), Display(stream=stream, live=True, now=now) as display:
        display.start("dense", 0, 2, 100, 0, 200, 0)
        for at in range(1, 51):
            now.time += 0.5
            step(display, at, at / 10, top1=0.5)
        display.event("checkpoint")
        raise KeyboardInterrupt
    text = stream.getvalue()
    for part in (
        "dense 1/2",
        "epoch 5.0",
        "step 50 of 200",
        "top-1",
        "50.00 %",
        "0:25",
        "1:15",
        "checkpoint",
    ):
        assert part in text
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")  # cursor shown again
    display.close()


def test_live_updates_between_draws_print_nothing():
    now, stream = Clock(), io.StringIO()
    display = Display(stream=stream, live=True, now=now)
    display.start("dense", 0, 1, 1000, 0, 1000, 0)
    before = len(stream.getvalue())
    for at in range(1, 1000):
        step(display, at, at / 100)
    assert len(stream.getvalue()) == before
    display.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="pseudo-terminals are a Unix thing")
def test_a_terminal_is_redrawn_and_a_pipe_is_not():
    code = (
        "from prunebench.display import Display\n"
        "d = Display()\n"
        "d.start('dense', 0, 1, 10, 0, 10, 0)\n"
        "d.close()\n"
        "import sys\n"
        "d.event('torch' if 'torch' in sys.modules else 'lean')\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm"}
    command = [sys.executable, "-c", code]
    piped = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    leader, follower = pty.openpty()
    subprocess.run(command, env=environment, stdout=follower, check=True)
    os.close(follower)
    terminal = os.read(leader, 100_000).decode()
    os.close(leader)
    assert piped == "lean\n"
    assert "dense 1/1" in terminal
    assert "\x1b[?25h" in terminal


def test_columns_leave_by_rank_before_text_is_cut_to_a_third():
    columns = [Column("a", "name", text=True), Column("b", "b", rank=2), Column("c", "c", rank=1)]
    rows = [{"a": "a-very-long-name", "b": 12345, "c": 67890}]
    assert table(columns, rows, width=30)[-1] == "a-very-long-name  12345  67890"
    assert table(columns, rows, width=26)[-1] == "a-ver..-name  12345  67890"
    assert table(columns, rows, width=20)[-1] == "a-very..-name  67890"
    assert table(columns, rows, width=12)[-1] == "a-ver..-name"


def test_numbers_are_printed_in_the_units_of_the_field():
    assert [count(x) for x in (0, 999, 1000, 50_610, 999_499, 11.2e6)] == [
        "0",
        "999",
        "1.00k",
        "50.6k",
        "999k",
        "11.2M",
    ]
    assert [percent(x) for x in (0.0, 0.95, 0.99999, 1.0)] == ["0.00", "95.00", "99.9990", "100.00"]
    assert [points(x) for x in (0.0042, -0.01, -0.00001)] == ["+0.42", "-1.00", "+0.00"]
    assert [ratio(x) for x in (1.0, 19.97, 1234.5)] == ["1.00x", "20.0x", "1234x"]
    assert [seconds(3.04), seconds(59.96), clock(3723)] == ["3.0", "1:00", "1:02:03"]


def test_latency_stands_below_the_rounds_with_a_row_for_every_batch_size():
    measured = {"threads": 2, "device": "some processor", "masked_macs": 3}
    for size, (masked, shrunk) in {1: (2.0, 1.0), 64: (8.0, 1.6)}.items():
        for name, value in (("masked", masked), ("shrunk", shrunk)):
            measured[f"{name}_milliseconds_{size}"] = value
            measured[f"{name}_milliseconds_iqr_{size}"] = value / 10
        measured[f"measured_speedup_{size}"] = masked / shrunk
    result = a_result(2) | {"measured": {"latency": measured}}
    lines = round_lines(result, width=80)
    place = lines.index("measured: milliseconds of a forward pass on some processor, 2 threads")
    assert [line.split() for line in lines[place + 4 :]] == [
        ["1", "2", "0.2", "1", "0.1", "2.00x"],
        ["64", "8", "0.8", "1.6", "0.16", "5.00x"],
    ]
    only_masked = {k: v for k, v in measured.items() if "shrunk" not in k and "speedup" not in k}
    lines = round_lines(a_result(2) | {"measured": {"latency": only_masked}}, width=80)
    assert lines[-1].split() == ["64", "8", "0.8"]
    assert not [line for line in round_lines(a_result(2), width=80) if "milliseconds" in line]
