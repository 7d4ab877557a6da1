"""Everything a run leaves on disk, and how it goes on after an interruption."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from prunebench.core import checkpoint, parallel
from prunebench.core.method import Method, has_finish
from prunebench.core.phase import Phase, end_of, parse_length
from prunebench.core.run import Run
from prunebench.journal import Checkpoints, Losses, Rows, Shown, Stop, diverged
from prunebench.ledger import Ledger
from prunebench.metrics.evaluation import evaluate
from prunebench.metrics.metric import Metric, begin_phase, load_states, measure_due, states
from prunebench.result import assemble, dense_test, kept_weights, pruned_lines, round_row, write_json
from prunebench.store import PrefixStore, copy_checkpoint


class Recorder:
    """Writes rows, checkpoints and the result of one run, and resumes it.

    Only the first of several processes (torchrun) writes; all of them measure.

    Args:
      directory: holds everything; made if missing.
      plan: the phases.
      identity: what result.json says of the run: id, method, model, dataset, seed, ...
      macs: prunable name -> MACs per image.
      display: what the user sees.
      store: shared prefixes, or None.
      metrics: name -> what else is measured.
      export: called with the run at the end; writes the final weights, gives more content of result.json.
      eval_every: validation accuracy is measured this often, "1ep" or "500it".
      checkpoint_every, checkpoint_seconds: a checkpoint is written this often, and at phase ends.
      asked_to_stop: the number of a signal that has come in, or 0.
    """

    def __init__(
        self,
        directory: Path,
        *,
        plan: Sequence[Phase],
        identity: Mapping[str, Any],
        macs: Mapping[str, int],
        display: Any,
        store: PrefixStore | None,
        metrics: Mapping[str, Metric],
        export: Callable[[Run, Method], dict[str, Any] | None],
        eval_every: str,
        checkpoint_every: str,
        checkpoint_seconds: float,
        asked_to_stop: Callable[[], int],
    ):
        self.directory, self.plan, self.identity, self.macs = directory, plan, identity, macs
        self.display, self.export, self.metrics = display, export, metrics
        self.store = store or PrefixStore(directory, {}, lambda key: None)
        self.eval_every, self.checkpoint_every = eval_every, checkpoint_every
        self.checkpoint_seconds, self._stop = checkpoint_seconds, Stop(asked_to_stop)
        self.rounds: list[dict[str, Any]] = []
        self.controls: list[dict[str, Any]] = []  # rows of the phases aside
        self.ledger = Ledger(macs)
        self.shared: list[dict[str, str]] = []  # the prefix that was not trained here
        self.pure = True  # the state is what the addresses of the store say: nothing changed on resuming
        self.seconds, self.started = 0.0, time.monotonic()  # of this phase, before this process took it up
        self.rows: Rows | None = None
        self._shown, self._top1, self.pruned_test = Shown(display, plan), None, None

    # Starting and resuming

    def begin(self, run: Run, method: Method, make_optimizer: Callable) -> None:
        """Load the checkpoint of this directory, else the longest shared prefix, else start afresh.

        Raises:
          CheckpointError: if the checkpoint cannot be used.
        """
        spe = run.data.steps_per_epoch
        self._eval_steps = max(1, parse_length(self.eval_every, spe))
        steps = max(1, parse_length(self.checkpoint_every, spe))
        path = self.directory / "checkpoint.pt"
        self.checkpoints = Checkpoints(path, every=steps, seconds=self.checkpoint_seconds)
        self._losses = Losses(spe, run.device)
        self._make_optimizer = make_optimizer
        self.rows = Rows(self.directory / "metrics.jsonl") if run.rank == 0 else None
        self.started = time.monotonic()
        if path.exists():
            extra = self._load(checkpoint.load(path), path, run, method)
            if self.rows is not None:
                self.rows.cut(extra["rows"])
            self.pure = self.pure and extra["keys"] == self.store.keys
            self._shown.resumed(run)
        elif self.rows is not None:
            self.rows.cut(0)
        if run.clock.step == 0:
            self._give(run)  # unless that was done before the interruption
            self._look_into_store(run, method)
        else:
            self.store.longest(run.clock.phase)  # the lock of the prefix that this run is in the middle of
            self._shown.start(run, self.plan[run.clock.phase])

    def _load(self, content: Mapping[str, Any], path: Path, run: Run, method: Method) -> dict[str, Any]:
        checkpoint.restore(content, path=path, run=run, method=method, make_optimizer=self._make_optimizer)
        extra = content["extra"]
        self.rounds, self.controls = extra["rounds"], extra.get("controls", [])
        self.ledger.load(extra["trained"], run)
        self.pruned_test, self._top1, self.seconds = extra["pruned_test"], extra["top1"], extra["seconds"]
        self._losses.load(extra["losses"])
        self.shared, self.pure = list(extra["shared"]), extra["pure"]
        load_states(self.metrics, checkpoint.to_device(extra["metrics"], run.device))
        self.started = time.monotonic()
        self.checkpoints.begin(run)
        return extra

    def _look_into_store(self, run: Run, method: Method) -> None:
        """Take over the longest stored prefix beyond the clock; else train it, holding its lock."""
        found = self.store.longest(run.clock.phase) if run.clock.phase < len(self.plan) else None
        if found is None:
            return
        index, folder = found
        self._load(self.store.content(index, method), folder / "checkpoint.pt", run, method)
        self.rows.replace((folder / "metrics.jsonl").read_bytes())
        name = self.plan[index].name
        self.shared = [{"phase": name, "key": folder.name}]
        self.display.event(f"{name}: taken from the shared store ({folder.name}), not trained again")
        self._save(run, method)
        self._look_into_store(run, method)

    def _give(self, run: Run) -> None:
        """Put the state at the end of the last phase into the store, if it belongs there."""
        ended = run.clock.phase - 1
        if self.pure and ended in self.store.keys:
            self.store.put(ended, self.rows.content(), partial(copy_checkpoint, self.checkpoints.path))

    # What the loop tells

    def pruned(self, run: Run, method: Method, phase: Phase) -> None:
        """Measure the test accuracy right after pruning, before anything is restored or trained."""
        self.pruned_test = self._measure(run, method, phase, "test")
        self._row(run, phase, "prune", split="test", when="pruned", asked=phase.sparsity, **self.pruned_test)
        for line in pruned_lines(run, method, self.pruned_test["top1"]):
            self.display.event(f"{phase.name}: {line}")

    def entered(self, run: Run, method: Method, phase: Phase) -> None:
        """Begin the phase's clock and show it."""
        if phase.sparsity is None:
            self.pruned_test = None
        self._losses.clear()
        self.ledger.begin(run)
        if run.rank == 0 and phase.is_round:
            begin_phase(self.metrics, run)
        self._shown.start(run, phase)

    def after_step(self, run: Run, method: Method, phase: Phase, loss: Tensor) -> float | None:
        """Rows at epoch ends, validation, display, checkpoints, signals: each when due, otherwise no wait."""
        self._losses.add(loss)
        self.ledger.step(run, method)
        clock, last, monitored = run.clock, run.clock.step == run.clock.steps, None
        if self._shown.due():
            seen = self._losses.peek()
            if seen is not None and not math.isfinite(seen):
                self._judge_losses(run, phase)
            self._shown.update(run, seen, self._top1)
        if clock.step % run.data.steps_per_epoch == 0 or last:
            self._epoch_row(run, phase)
        if run.data.sizes.get("valid") and (clock.step % self._eval_steps == 0 or last):
            measured = self._measure(run, method, phase, "valid")
            self._top1 = measured["top1"]
            monitored = -measured["loss"] if phase.monitor == "loss" else self._top1
            self._row(run, phase, "eval", split="valid", when="epoch", **measured)
        self._measure_more(run, method, phase, when="epoch")
        return monitored

    def settled(self, run: Run, method: Method, phase: Phase) -> None:
        """Stop if a signal asked for it, after a checkpoint; else write one when it is due."""
        if run.clock.step == run.clock.steps or run.clock.stop_phase:
            return  # the phase's end writes one, and looks for signals
        stop = self._stop.within_phase(run)
        if stop or self.checkpoints.due(run.clock.total):
            self._judge_losses(run, phase)
            self._save(run, method)
        if stop:
            raise self._stop.error

    def phase_end(self, run: Run, method: Method, phase: Phase) -> None:
        """Measure the test accuracy and add the phase's row to the table of rounds."""
        if self._losses.count:  # of an epoch that the method or the patience rule cut short
            self._epoch_row(run, phase)
        row = self._round(run, method, phase, self.pruned_test, self._phase_seconds())
        row |= self.ledger.add(run, phase, row)
        if phase.aside:  # its masks are those of the round beside it
            row |= {k: self.rounds[-1][k] for k in ("asked", "score_macs") if k in self.rounds[-1]}
        self._row(run, phase, "eval", split="test", when="end", **row["test"])
        {"phase": self.rounds, "control": self.controls, "auxiliary": []}[phase.kind].append(row)
        self._measure_more(run, method, phase, when="end")
        self._row(run, phase, phase.kind, round=row, **kept_weights(run))
        self.display.phase_end(row)

    def between(self, run: Run, method: Method) -> None:
        """Checkpoint at a phase's end, and give or take a shared prefix."""
        self._losses.clear()
        self.seconds, self.started, self._top1 = 0.0, time.monotonic(), None
        self._save(run, method)
        self._give(run)
        self._look_into_store(run, method)
        if run.clock.phase < len(self.plan) and self._stop.now(run):
            raise self._stop.error

    def finish(self, run: Run, method: Method) -> None:
        """Write the final weights and, last of all, result.json."""
        if has_finish(method):
            final = self._round(run, method, self.plan[-1], None, 0.0)
            self.rounds.append(final | {"phase": "final", "epochs": 0.0, "steps": 0})
        if run.rank == 0:
            self.rows.sync()
            more = self.export(run, method) or {}
            result = assemble(run, self) | more
            write_json(self.directory / "result.json", result)
            self.display.finish(result, str(self.directory))
        parallel.wait_for_all(run.world)

    def close(self) -> None:
        """Close the rows' file and let go of the store's lock."""
        if self.rows is not None:
            self.rows.close()
        self.store.release()

    # Parts of the above

    def _phase_seconds(self) -> float:
        return self.seconds + time.monotonic() - self.started

    def _round(
        self, run: Run, method: Method, phase: Phase, pruned: Mapping[str, float] | None, seconds: float
    ) -> dict[str, Any]:
        """Measure the network as it stands; its row of the table of rounds."""
        test = self._measure(run, method, phase, "test")
        valid = self._measure(run, method, phase, "valid") if run.data.sizes.get("valid") else None
        measured = {"test": test, "valid": valid, "pruned": pruned, "dense": dense_test(self.rounds)}
        return round_row(run, method, phase, self.macs, **measured, seconds=seconds)

    def _measure_more(self, run: Run, method: Method, phase: Phase, *, when: str) -> None:
        """Rows of the metrics that are due at this step of a phase, or at its end."""
        if self.metrics and run.rank == 0 and phase.is_round:
            last = phase is end_of(self.plan) if when == "end" else None
            for name, values in measure_due(self.metrics, run, method, last_phase=last):
                self._row(run, phase, "metric", metric=name, when=when, **values)

    def _epoch_row(self, run: Run, phase: Phase) -> None:
        losses = self._judge_losses(run, phase)
        if losses:
            mean, lr = math.fsum(losses) / len(losses), run.optimizer.param_groups[0]["lr"]
            self._row(run, phase, "train", loss=mean, lr=float(lr), **self.ledger.changes(run))
        self._losses.clear()

    def _judge_losses(self, run: Run, phase: Phase) -> list[float]:
        """The losses since the last row; every process must find all of them finite."""
        losses = self._losses.read()
        bad = next((i for i, loss in enumerate(losses) if not math.isfinite(loss)), None)
        if bad is None:
            return losses
        step = run.clock.step - len(losses) + bad + 1
        raise diverged(run, phase, f"the loss is {losses[bad]}", step=step, saved=self.checkpoints.last)

    def _measure(self, run: Run, method: Method, phase: Phase, split: str) -> dict[str, float]:
        """Metrics of a split; a loss that is not finite ends the run before a checkpoint or result has it."""
        measured = evaluate(run, method, split)
        if not math.isfinite(measured["loss"]):
            what, saved = f"the {split} loss is {measured['loss']}", self.checkpoints.last
            raise diverged(run, phase, what, step=run.clock.step, saved=saved)
        return measured

    def _row(self, run: Run, phase: Phase, kind: str, **values: Any) -> None:
        if self.rows is not None:
            self.rows.write_at(run, phase, kind, **values)

    def _save(self, run: Run, method: Method) -> None:
        """Write a checkpoint; the rows it counts on are on the disk before it is."""
        if self.rows is None:
            self.checkpoints.begin(run)
            return
        extra = {
            "rows": self.rows.sync(),
            "rounds": self.rounds,
            "controls": self.controls,
            "trained": self.ledger.state,
            "seconds": self._phase_seconds(),
            "pruned_test": self.pruned_test,
            "top1": self._top1,
            "losses": self._losses.read(),
            "shared": self.shared,
            "keys": self.store.keys,
            "pure": self.pure,
            "metrics": checkpoint.to_cpu(states(self.metrics)),
        }
        self.checkpoints.write(run, method, extra)
