"""The Oracle: every phase over a grid of peak learning rates, the best by validation goes on (SILO).

Of the Oracle of "Optimizing Learning Rate Schedules for Iterative Pruning" (arXiv 2212.06144) only the
abstract was at hand: at each pruning cycle the peak (max_lr) is searched on a grid. The grid, and the
tolerance of the "optimised interval" (the peaks whose validation accuracy is close to the best), are options;
their defaults are from memory.

It is a search over ordinary runs. A branch is a run of protocol=iterative whose `peaks` are the winners so
far and one value of the grid for the phase that is searched; everything before that phase comes from the
shared store, so that a branch trains one phase. Branches begin with the same masks and weights and see the
same batches. Each has a directory of its own under `<out>/.oracle`, addressed by its configuration: an
interrupted search goes on, and a larger grid trains only what is new. Once a phase is decided, of the
branches that lost only the numbers are kept. Metrics are measured, and trackers fed, along the winners only.

The run's own directory holds the run along the winners, equal bit for bit to one with protocol=iterative and
those peaks, and `oracle.json`: every branch, the winners, the intervals and what the search cost.
"""

import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

from prunebench.compression import provisional
from prunebench.config import run_id
from prunebench.core import parallel
from prunebench.experiment import (
    Busy,
    Instantiate,
    is_done,
    make_directory,
    make_trackers,
    prepare,
    run_experiment,
)
from prunebench.journal import Diverged, Interrupted
from prunebench.machine import pick_device
from prunebench.report.oracle import branch_line, oracle_lines
from prunebench.result import write_json

VERSION = 1
COSTS = ("steps", "samples", "train_macs")


def is_oracle(cfg: Mapping[str, Any]) -> bool:
    """Whether the configuration asks for the search rather than for one run."""
    return cfg["protocol"]["_target_"] == "prunebench.protocols.oracle"


def run_oracle(
    cfg: Mapping[str, Any],
    *,
    directory: Path,
    choices: Mapping[str, Any],
    overrides: Sequence[str],
    instantiate: Instantiate,
    display: Any,
    asked_to_stop: Callable[[], int],
    jobs: int = 1,
    identity: str = "",
) -> str:
    """Search, then run along the winners; arguments, result and errors as of `run_experiment`.

    Raises:
      ValueError: also if there are no validation images, the shared store is off, or there are several
        processes.
    """
    common = {
        "choices": choices,
        "overrides": overrides,
        "instantiate": instantiate,
        "asked_to_stop": asked_to_stop,
        "jobs": jobs,
    }
    own = {"directory": directory, "display": display, "identity": identity}
    display.quiet |= bool(cfg["trainer"]["quiet"])
    if cfg["plan"] or is_done(directory):
        done = run_experiment(cfg, **own, **common)
        if cfg["plan"]:
            times = len(cfg["protocol"]["grid"])
            display.event(
                f"oracle: every phase is trained with each of {times} peaks, {times} times this cost"
            )
        return done
    plan = _checked_plan(cfg, instantiate)
    grid, tolerance = sorted(cfg["protocol"]["grid"]), cfg["protocol"]["tolerance"]
    heading = (
        f"oracle: {len(plan)} phases, each with {len(grid)} peaks from {grid[0]:g} to {grid[-1]:g}; branches "
        f"lie in {_folder(cfg)}"
    )
    peaks: list[float] = []
    cycles: list[dict[str, Any]] = []
    spent = dict.fromkeys(COSTS, 0)
    for number, phase in enumerate(plan):
        branches, results, diverged = [], [], []
        for place, peak in enumerate(grid, start=1):
            branch_cfg = along(cfg, [*peaks, peak], len(plan)) | {"metrics": {}, "tracker": {}}
            folder = _folder(cfg) / f"{run_id(branch_cfg)}-{number + 1}"
            name = f"{phase.name} {place} of {len(grid)}, peak {peak:g}"
            shown = Branch(display, name, heading if number + place == 1 else "")
            try:
                _train(branch_cfg, directory=folder, display=shown, phases=number + 1, **common)
            except Diverged as error:
                diverged.append(peak)
                display.event(f"{phase.name}, peak {peak:g}: out of the search, {error}")
                if len(diverged) == len(grid):
                    raise
                continue
            results.append(json.loads((folder / "result.json").read_text()))
            branches.append(_numbers(results[-1], spent) | {"max_lr": peak, "directory": str(folder)})
            display.event(branch_line(phase.name, branches[-1]))
        cycles.append(_decide(phase.name, branches, tolerance) | {"diverged": diverged})
        peaks.append(cycles[-1]["best"])
        winner = next(r for b, r in zip(branches, results) if b["max_lr"] == peaks[-1])
        spent = {k: winner["cost"][k] for k in COSTS}
        for branch, result in zip(branches, results):
            if result is not winner:
                _forget(Path(branch["directory"]), result, winner, Path(cfg["trainer"]["store"]))
    cost = {k: sum(b["cost"][k] for c in cycles for b in c["branches"]) for k in COSTS}
    cost["branches"] = sum(len(c["branches"]) for c in cycles)
    content = {"version": VERSION, "grid": grid, "tolerance": tolerance, "cycles": cycles, "cost": cost}
    make_directory(directory, "out", directory.parent)
    write_json(directory / "oracle.json", content)
    extra = {"search": cost, "peaks": peaks}
    done = run_experiment(along(cfg, peaks, len(plan)), **own, **common, written=cfg, extra=extra)
    for line in oracle_lines(content):
        display.event(line)
    return done


def along(cfg: Mapping[str, Any], peaks: Sequence[float], phases: int) -> dict[str, Any]:
    """Configuration of the ordinary run with these peaks; phases beyond them get the last one.

    They are not trained in a branch. Every phase is shared, whatever the user shares otherwise.
    """
    result = deepcopy(dict(cfg))
    protocol = {k: v for k, v in cfg["protocol"].items() if k not in ("grid", "tolerance")}
    filled = [*peaks, *[peaks[-1]] * (phases - len(peaks))]
    result["protocol"] = protocol | {"_target_": "prunebench.protocols.iterative", "peaks": filled}
    result["trainer"] = dict(cfg["trainer"]) | {"share": "all"}
    return result


class Branch:
    """Shows of a branch only how far it is, under a name that says which."""

    quiet = False

    def __init__(self, display: Any, name: str, heading: str = ""):
        self.display, self.name, self.heading = display, name, heading

    def start(
        self, phase: str, index: int, count: int, steps: int, done: int, total: int, before: int
    ) -> None:
        """Begin to show the branch's phase."""
        self.display.start(self.name, index, count, steps, done, total, before)

    def update(self, step: int, **values: Any) -> None:
        """Show how far it is."""
        self.display.update(step, **values)

    def plan(self, *arguments: Any) -> None:
        """The heading of the search before its first branch: now all parts are known to fit together."""
        if self.heading:
            self.display.event(self.heading)

    def event(self, text: str) -> None:
        """Nothing, unless the branch waits for another process."""
        if text.startswith("waiting"):
            self.display.event(text)

    def phase_end(self, row: Mapping) -> None:
        """Nothing: the search says how it ended."""

    def finish(self, result: Mapping, directory: str) -> None:
        """Nothing."""


def _checked_plan(cfg: Mapping[str, Any], instantiate: Instantiate) -> list[Any]:
    """Phases of the plan, each of which is searched, after all checks of the run along the winners."""
    schedules = {"schedule": instantiate(cfg["schedule"]), "retrain_schedule": instantiate(cfg["retrain"])}
    plan = instantiate(provisional(cfg), **schedules)
    if parallel.launched_by_torchrun():
        raise ValueError(
            "protocol=oracle: searches in one process; leave torchrun out, or spread seeds over processes "
            "with -m seed=0,1 hydra/launcher=joblib"
        )
    make_trackers(cfg, instantiate)
    path = along(cfg, [cfg["protocol"]["grid"][0]], len(plan))
    run, *_ = prepare(path, device=pick_device(cfg["trainer"]["device"]), instantiate=instantiate)
    if not run.data.sizes["valid"]:
        raise ValueError(
            "protocol=oracle: chooses by validation top-1 and there are no validation images; set "
            "dataset.validation=0.1"
        )
    if cfg["trainer"]["share"] == "none":
        raise ValueError(
            "trainer.share=none: protocol=oracle goes on from the shared store; leave trainer.share at dense"
        )
    return plan


def _folder(cfg: Mapping[str, Any]) -> Path:
    return Path(cfg["out"]) / ".oracle"


def _numbers(result: Mapping[str, Any], before: Mapping[str, int]) -> dict[str, Any]:
    """What is kept of a branch; `before` is what the phases before it cost."""
    row = result["rounds"][-1]
    kept = {k: row[k] for k in ("asked", "sparsity", "valid", "test", "seconds")}
    return kept | {"cost": {k: result["cost"][k] - before[k] for k in COSTS}}


def _decide(phase: str, branches: Sequence[Mapping[str, Any]], tolerance: float) -> dict[str, Any]:
    """The winner by validation top-1, then validation loss, then the lower peak; and the near-best peaks."""
    best = min(branches, key=lambda b: (-b["valid"]["top1"], b["valid"]["loss"], b["max_lr"]))
    near = [b["max_lr"] for b in branches if b["valid"]["top1"] >= best["valid"]["top1"] - tolerance - 1e-12]
    return {
        "phase": phase,
        "asked": best["asked"],
        "sparsity": best["sparsity"],
        "best": best["max_lr"],
        "near_best": near,
        "branches": list(branches),
    }


def _forget(folder: Path, result: Mapping[str, Any], winner: Mapping[str, Any], store: Path) -> None:
    """Drop the weights of a branch that lost, also those in the shared store that the winner does not use."""
    for name in ("checkpoint.pt", "final.safetensors", "masks.safetensors"):
        (folder / name).unlink(missing_ok=True)
    for key in set(result["stored"].values()) - set(winner["stored"].values()):
        shutil.rmtree(store / key, ignore_errors=True)


def _train(cfg: Mapping[str, Any], **arguments: Any) -> None:
    """Train a branch, or wait until another search that has it in its grid, too, has trained it."""
    told = False
    while True:
        try:
            run_experiment(cfg, **arguments)
            return
        except Busy:
            if not told:
                arguments["display"].event("waiting: another process is training this branch")
                told = True
            if arguments["asked_to_stop"]():
                raise Interrupted(arguments["asked_to_stop"]()) from None
            time.sleep(1)
