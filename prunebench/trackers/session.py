"""Trackers of one run: fed from the rows of metrics.jsonl, switched off when they fail."""

import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prunebench.trackers.points import SPEED, points, summary
from prunebench.trackers.tracker import About, Tracker, flat

FILES = ("config.yaml", "overrides.json", "environment.json", "result.json", "curve.png")
NOT_PARAMETERS = ("recipe", "plan", "tracker")  # advice, no option of the run, and where secrets may be
GROUPS = ("method", "model", "dataset", "optimizer", "schedule", "retrain", "criterion", "protocol")


def about_run(cfg: Mapping[str, Any], choices: Mapping[str, Any], directory: Path) -> About:
    """What trackers are told of a run.

    Args:
      cfg: the resolved configuration, plain containers.
      choices: group -> chosen option.
      directory: of the result.
    """
    chosen = {group: str(choices[group]) for group in GROUPS}
    method = "+".join([chosen["method"], *cfg["companion"]])
    options = {k: v for k, v in cfg.items() if k not in NOT_PARAMETERS}
    tags = {"method": method, "model": chosen["model"], "dataset": chosen["dataset"]}
    group, tags["seed"] = "-".join(tags.values()), str(cfg["seed"])
    return About(directory, {**chosen, **flat(options)}, tags, group)


class Session:
    """Tells the trackers of a run each of its rows once, also over interruptions.

    A row is made of host numbers and goes to the file whether or not it is tracked, so that tracking neither
    waits for the device nor changes the run. An interrupted run writes the rows after its last checkpoint a
    second time; as it is exact, the n-th point of a curve is always the same, and of each curve as many
    points are left out as the tracker holds. Points that got lost with the process are given again.

    Args:
      trackers: option of the group `tracker` -> tracker.
      about: the run.
      batch_size: images of a step.
      step: optimizer steps of the run that are done.
    """

    def __init__(self, trackers: Mapping[str, Tracker], about: About, *, batch_size: int, step: int):
        self.about, self.batch_size, self.step = about, batch_size, step
        self.guarded = [Guarded(name, tracker) for name, tracker in trackers.items()]
        self._told = 0
        self._done = False
        self._mark = (time.monotonic(), step)

    def start(self) -> None:
        """Open the runs of the trackers."""
        for guarded in self.guarded:
            guarded.start(self.about, self.step)
        self._mark = (time.monotonic(), self.step)

    def earlier(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Tell those rows of the whole file that have not been told; their speed is not known."""
        for row in rows[self._told :]:
            values = points(row)
            self._log({**values, SPEED: None} if row["kind"] == "train" else values, row["total"])
        self._told = len(rows)
        self._mark = (time.monotonic(), rows[-1]["total"] if rows else self.step)

    def row(self, row: Mapping[str, Any]) -> None:
        """Tell a row; that of an epoch with the images per second since the last row, which ended a pause."""
        now, values = time.monotonic(), points(row)
        if row["kind"] == "train":
            images = (row["total"] - self._mark[1]) * self.batch_size
            values[SPEED] = images / max(now - self._mark[0], 1e-9)
        self._log(values, row["total"])
        self._told += 1
        self._mark = (time.monotonic(), row["total"])

    def sync(self) -> None:
        """Let the trackers put on the disk what they have."""
        for guarded in self.guarded:
            guarded.call("sync")

    def finish(self) -> None:
        """Tell the final numbers, after result.json has been written, and give the files of the result."""
        directory = self.about.directory
        result = json.loads((directory / "result.json").read_text())
        if any(guarded.on for guarded in self.guarded) and not (directory / "curve.png").exists():
            from prunebench.report.curve import curve_png

            curve_png(result, directory / "curve.png")
        files = [directory / name for name in FILES if (directory / name).exists()]
        for guarded in self.guarded:
            guarded.call("finish", summary(result), files)
        self._done = True

    def close(self) -> None:
        """Let go of the trackers, whether or not the run is done."""
        for guarded in self.guarded:
            guarded.call("close", self._done)

    def _log(self, values: Mapping[str, float | None], step: int) -> None:
        for guarded in self.guarded:
            guarded.log(values, step)


class Guarded:
    """A tracker that is switched off, with one line on stderr, when a call fails; the run goes on.

    Args:
      name: option of the group `tracker`.
      tracker: what is called.
    """

    def __init__(self, name: str, tracker: Tracker):
        self.name, self.tracker, self.on = name, tracker, True
        self.held: dict[str, int] = {}  # name -> points still to come that the tracker has already

    def start(self, about: About, step: int) -> None:
        """Open the tracker's run."""
        self.held = dict(self.call("start", about, step) or {})

    def log(self, values: Mapping[str, float | None], step: int) -> None:
        """Log the points that the tracker does not hold; None stands for one whose value is not known."""
        fresh = {}
        for name, value in values.items():
            if self.held.get(name, 0) > 0:
                self.held[name] -= 1
            elif value is not None:
                fresh[name] = value
        if fresh:
            self.call("log", fresh, step)

    def call(self, verb: str, *arguments: Any) -> Any:
        """What a verb of the tracker returns; None if it fails or the tracker is off."""
        if not self.on:
            return None
        try:
            return getattr(self.tracker, verb)(*arguments)
        except Exception as error:  # whatever a service or its library raises must not end a training
            self.on = False
            lines = str(error).strip().splitlines()
            why = f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
            print(
                f"prune-run: tracker.{self.name} is off, the run goes on ({why}); leave the tracker out "
                "or correct its options",
                file=sys.stderr,
                flush=True,
            )
            return None
