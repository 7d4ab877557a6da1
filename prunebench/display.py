"""What a run shows while it works: its plan, its progress, its table of rounds.

On a terminal two bars and a line of values are redrawn in place; elsewhere (pipe, log file, CI) there are
plain lines, few enough to read. No call may slow a run down or end it: an update costs microseconds unless it
draws, drawing is limited to `DRAWS_PER_SECOND`, and when the reader of a pipe goes away the display falls
silent and the run goes on.
"""

import contextlib
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self, TextIO

from prunebench.report.rounds import phase_line, plan_lines, round_lines
from prunebench.report.table import clock, count, number, percent

DRAWS_PER_SECOND = 5
LINE_AT_MOST = 5.0  # seconds between two plain lines, at least; and then only at a new epoch ...
LINE_AT_LEAST = 10.0  # ... or after this long
SMOOTHING = 15.0  # seconds of the past that weigh most in the time left


class TimeLeft:
    """Seconds per step, smoothed over about `SMOOTHING` seconds of the past; pauses between steps count."""

    def __init__(self) -> None:
        self.rate = 0.0
        self.weight = 0.0
        self.last: tuple[float, int] | None = None

    def update(self, now: float, step: int) -> None:
        """Take note that `step` steps of the run are done at time `now` (seconds of any steady clock)."""
        if self.last is not None and now > self.last[0] and step > self.last[1]:
            passed, steps = now - self.last[0], step - self.last[1]
            share = 1 - math.exp(-passed / SMOOTHING)
            self.rate += share * (passed / steps - self.rate)
            self.weight += share * (1 - self.weight)
            self.last = (now, step)
        elif self.last is None:
            self.last = (now, step)

    def left(self, steps: int) -> str:
        """Time for `steps` more steps as "1:42", or "-:--" while no rate is known."""
        return clock(steps * self.rate / self.weight) if self.weight else "-:--"


class Display:
    """The display of one run, for one stream.

    Use as a context manager, or call `close` in a `finally`, so that the terminal is left as it was found.

    Args:
      quiet: print nothing at all.
      stream: where to print; the standard output if None.
      live: redraw in place; None asks the stream whether it is a terminal that can.
      now: a steady clock in seconds.
    """

    def __init__(
        self,
        *,
        quiet: bool = False,
        stream: TextIO | None = None,
        live: bool | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.quiet = quiet
        self.stream = stream if stream is not None else sys.stdout
        self.live = _can_redraw(self.stream) if live is None else live
        self.now = now
        self.time_left = TimeLeft()
        self._bars: Any = None  # rich.live.Live while bars are on the screen
        self._drawn = -math.inf
        self._epoch = 0
        self._phase = ("", 0, 0)
        self._steps = self._step = self._total_steps = self._before = 0
        self._values: dict[str, float | None] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def plan(self, title: str, phases: Sequence[Mapping], facts: Mapping[str, str]) -> None:
        """Print what will be trained, before it is; for the arguments see `report.rounds.plan_lines`."""
        self._print(*plan_lines(title, phases, facts, width=self._width()), "")

    def start(
        self, phase: str, index: int, count: int, steps: int, done: int, total_steps: int, total_done: int
    ) -> None:
        """Begin to show a phase.

        Args:
          phase: its name.
          index: its place in the plan, counted from 0.
          count: phases in the plan.
          steps: optimizer steps of the phase.
          done: of these, already done (a resumed run).
          total_steps: steps of the whole run.
          total_done: of these, already done.
        """
        self._phase = (phase, index + 1, count)
        self._steps, self._step, self._total_steps, self._before = steps, done, total_steps, total_done - done
        self._values = {"epoch": None, "loss": None, "top1": None, "lr": None, "images": None}
        self._epoch = 0
        if self.live and not self.quiet:
            self._draw()
        elif self._drawn == -math.inf:
            self._drawn = self.now()

    def update(
        self,
        step: int,
        *,
        epoch: float,
        loss: float | None,
        top1: float | None,
        lr: float,
        images_per_second: float,
    ) -> None:
        """Show how far the phase is; a few calls per second are enough, more do no harm.

        Args:
          step: steps of the phase done so far.
          epoch: the same in passes over the training images.
          loss: training loss; None keeps the last one shown.
          top1: validation accuracy as a fraction; None keeps the last one shown.
          lr: learning rate; NaN where reading it would stall the device, and then it is not shown.
          images_per_second: training speed.
        """
        if self.quiet:
            return
        now = self.now()
        self._step = step
        self.time_left.update(now, self._before + step)
        new = {
            "epoch": epoch,
            "loss": loss,
            "top1": top1,
            "lr": None if math.isnan(lr) else lr,
            "images": images_per_second,
        }
        self._values.update({name: value for name, value in new.items() if value is not None})
        if self.live:
            if now - self._drawn >= 1 / DRAWS_PER_SECOND:
                self._draw()
        elif now - self._drawn >= (LINE_AT_MOST if int(epoch) > self._epoch else LINE_AT_LEAST):
            self._epoch, self._drawn = int(epoch), now
            self._print(self._plain_line())

    def event(self, text: str) -> None:
        """Print one line that stays: a pruning event, a checkpoint, a resumption."""
        self._print(text)

    def phase_end(self, row: Mapping) -> None:
        """Print the line of a finished phase, a row of `rounds` in result.json."""
        self._drawn = self.now() if not self.live else self._drawn
        self._print(phase_line(row))

    def finish(self, result: Mapping, directory: str) -> None:
        """Print the table of rounds of a result.json and where the results are."""
        self.close()
        self._print("", *round_lines(result, width=self._width()), "", f"results: {directory}")

    def close(self) -> None:
        """Give the terminal back; harmless when called again."""
        if self._bars is not None:
            bars, self._bars = self._bars, None
            with self._unless_closed():
                bars.stop()

    def _width(self) -> int:
        return shutil.get_terminal_size((120, 24)).columns if self.live else 120

    def _print(self, *lines: str) -> None:
        if self.quiet:
            return
        with self._unless_closed():
            if self._bars is not None:
                self._bars.console.print(*lines, sep="\n", markup=False, highlight=False, soft_wrap=True)
            else:
                print(*lines, sep="\n", file=self.stream, flush=True)

    @contextlib.contextmanager
    def _unless_closed(self):
        """Fall silent when the stream's reader is gone or its disk is full: that must not end a training."""
        try:
            yield
        except OSError:
            self.quiet, self._bars = True, None
            if self.stream is sys.stdout:
                # What is still buffered would raise once more when the interpreter flushes it at exit.
                os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())

    def _plain_line(self) -> str:
        values, (name, index, phases) = self._values, self._phase
        parts = [
            f"{name} {index}/{phases}",
            f"epoch {values['epoch']:.1f}",
            f"step {self._step:,} of {self._steps:,}",
        ]
        parts += [f"{label} {text}" if label else text for label, text in self._shown_values()]
        return "  ".join([*parts, f"left {self._left()[0]}, run {self._left()[1]}"])

    def _shown_values(self) -> list[tuple[str, str]]:
        """(label, text) of the values known so far."""
        form = {
            "loss": ("loss", number),
            "top1": ("top-1", lambda share: f"{percent(share)} %"),
            "lr": ("lr", number),
            "images": ("", lambda speed: f"{count(speed)} images/s"),
        }
        return [
            (label, show(self._values[k])) for k, (label, show) in form.items() if self._values[k] is not None
        ]

    def _left(self) -> tuple[str, str]:
        """Time left for the phase and for the run."""
        done = self._before + self._step
        return self.time_left.left(self._steps - self._step), self.time_left.left(self._total_steps - done)

    def _draw(self) -> None:
        self._drawn = self.now()
        with self._unless_closed():
            if self._bars is None:
                from rich.console import Console
                from rich.live import Live

                self._bars = Live(
                    console=Console(file=self.stream, force_terminal=True),
                    auto_refresh=False,
                    transient=True,
                    get_renderable=self._picture,
                    # Others' prints and warnings go above the bars, unless they go elsewhere (to a file).
                    redirect_stdout=self.stream is sys.stdout,
                    redirect_stderr=sys.stderr.isatty(),
                )
                self._bars.start()
            self._bars.refresh()

    def _picture(self) -> Any:
        """Two bars (phase, run) and a line of values, as a rich renderable."""
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        name, index, phases = self._phase
        epoch = self._values["epoch"]
        bars = Table.grid(padding=(0, 2, 0, 0), expand=True)
        bars.add_column(no_wrap=True, max_width=24)
        bars.add_column(ratio=1)
        bars.add_column(no_wrap=True, justify="right")
        bars.add_column(no_wrap=True, justify="right")
        left, run_left = self._left()
        here = "" if epoch is None else f"epoch {epoch:.1f}"
        done = self._before + self._step
        rows = [
            (f"{name} {index}/{phases}", self._step, self._steps, here, left),
            ("run", done, self._total_steps, f"step {done:,} of {self._total_steps:,}", run_left),
        ]
        for label, part, whole, where, time_left in rows:
            bar = ProgressBar(total=max(whole, 1), completed=part)
            bars.add_row(Text(label, style="bold"), bar, where, Text(f"{time_left} left", style="cyan"))
        values = Text("  ").join(Text.assemble((f"{k} ", "dim"), v) for k, v in self._shown_values())
        values.no_wrap, values.overflow = True, "ellipsis"
        # The last line must not fill the width: the terminal's own echo of Ctrl-C would wrap, and the bars
        # could no longer be wiped.
        return Group(bars, values)


def _can_redraw(stream: TextIO) -> bool:
    return stream.isatty() and os.environ.get("TERM", "dumb") != "dumb"
