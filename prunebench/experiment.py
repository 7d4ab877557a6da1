"""One run from its configuration: assemble the parts, train, and leave a result directory."""

import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from prunebench.assembly import Instantiate, assemble
from prunebench.core import parallel
from prunebench.core.loop import fit
from prunebench.core.method import Method
from prunebench.core.run import Run
from prunebench.core.selection import NanScores
from prunebench.describe import describe, identify, plan_rows, title, write_start
from prunebench.journal import diverged
from prunebench.machine import keep_freed_memory, pick_device, set_threads, spare_threads
from prunebench.metrics.cost import count_macs
from prunebench.record import Recorder
from prunebench.result import write_final, write_shrunk
from prunebench.store import open_store
from prunebench.trackers.session import Session, about_run


class Busy(ValueError):
    """Another process is working in the result directory."""


def run_experiment(
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
    phases: int | None = None,
    written: Mapping[str, Any] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> str:
    """Run, resume or skip the run of this configuration.

    Args:
      cfg: the resolved configuration, plain containers.
      directory: the run's own, a function of the configuration.
      choices: group -> chosen option.
      overrides: what the user typed.
      instantiate: builds the object of a node with `_target_`, given runtime arguments.
      display: shows the run (`prunebench.display.Display`).
      asked_to_stop: the number of a signal that has come in, or 0.
      jobs: jobs that run side by side on this machine.
      identity: the run's id.
      phases: how many of the protocol's phases to train; None for all.
      written: the configuration that config.yaml keeps, if not `cfg`.
      extra: further content of result.json.

    Returns:
      "done", "already done" or "planned".

    Raises:
      ValueError: for a configuration that cannot work, before any training.
      Interrupted, Diverged, CheckpointError, OSError: see prunebench.record.
    """
    from filelock import FileLock, Timeout

    if not cfg["plan"] and is_done(directory):
        refuse_missing_metrics(directory, cfg["metrics"])
        display.event(f"already done: {directory} (delete it to run again)")
        return "already done"
    trainer = cfg["trainer"]
    device = pick_device(trainer["device"])
    rank, world = parallel.start(device)
    display.quiet |= bool(trainer["quiet"]) or rank > 0
    threads = set_threads(trainer["threads"], jobs=jobs)
    if device.type == "cpu":
        keep_freed_memory()
    trackers = make_trackers(cfg, instantiate)
    run, method, plan, make_optimizer, metrics = prepare(
        cfg, device=device, instantiate=instantiate, rank=rank, world=world, phases=phases
    )
    macs = count_macs(run.model, run.data.shape)
    if device.type == "cpu":
        threads = spare_threads(trainer["threads"], macs=sum(macs.values()) * trainer["batch_size"])
    facts = describe(run, cfg, choices, threads=threads, macs=macs, directory=directory)
    display.plan(f"{title(cfg, choices)}, seed {cfg['seed']}", plan_rows(plan, run, macs, choices), facts)
    if cfg["plan"]:
        return "planned"
    about = identify(cfg, choices, identity, plan)
    if rank == 0:
        make_directory(directory, "out", directory.parent)
        if trainer["share"] != "none" and world == 1:
            make_directory(Path(trainer["store"]), "trainer.store", trainer["store"])
    parallel.wait_for_all(world)
    lock = FileLock(str(directory / "lock"))
    try:
        if rank == 0:
            lock.acquire(timeout=0)
    except Timeout:
        raise Busy(
            f"{directory}: another process is running this configuration; wait for it or stop it"
        ) from None
    try:
        if rank == 0:
            for left in directory.glob(".*.tmp"):  # of a process that was killed while it wrote
                left.unlink()
            write_start(directory, written or cfg, overrides, about, device=device, threads=threads)
        recorder = Recorder(
            directory,
            plan=plan,
            identity=about | {"metric_options": cfg["metrics"]} | dict(extra or {}),
            macs=macs,
            display=display,
            store=open_store(cfg, plan, run, method, threads, display, asked_to_stop),
            metrics=metrics,
            export=partial(_export, directory=directory, cfg=cfg),
            eval_every=trainer["eval_every"],
            checkpoint_every=trainer["checkpoint_every"],
            checkpoint_seconds=trainer["checkpoint_seconds"],
            asked_to_stop=asked_to_stop,
        )
        try:
            recorder.begin(run, method, make_optimizer)
            with tracked(recorder, trackers, about_run(cfg, choices, directory), run):
                try:
                    fit(plan, run, method, make_optimizer, recorder)
                except NanScores as error:
                    where = {"step": run.clock.step, "saved": recorder.checkpoints.last}
                    raise diverged(run, plan[run.clock.phase], "a score is nan", **where) from error
        finally:
            recorder.close()
    finally:
        lock.release()
        parallel.stop()
    return "done"


def make_trackers(cfg: Mapping[str, Any], instantiate: Instantiate) -> dict[str, Any]:
    """The trackers that are asked for, name -> tracker; none is imported that is not.

    Raises:
      ValueError: if a package is missing, or an option cannot work.
    """
    trackers = instantiate({"tracker": cfg["tracker"]})["tracker"]  # with their group, which errors name
    for tracker in trackers.values():
        tracker.check()
    return trackers


@contextmanager
def tracked(recorder: Recorder, trackers: Mapping[str, Any], about: Any, run: Run) -> Iterator[None]:
    """Tell the trackers, if any, what the recorder of the first process writes inside the block."""
    if not trackers or recorder.rows is None:
        yield
        return
    session = Session(trackers, about, batch_size=run.data.batch_size, step=run.clock.total)
    try:
        before = time.monotonic()
        session.start()
        recorder.rows.tell(session)
        recorder.started += time.monotonic() - before  # of the phase, which has not begun to train
        yield
        session.finish()
    finally:
        session.close()


def prepare(cfg: Mapping[str, Any], *, instantiate: Instantiate, **where: Any) -> tuple:
    """Run, method, plan, optimizer factory and metrics of a run, checked against each other.

    Args:
      cfg: the resolved configuration, plain containers.
      instantiate: builds the object of a node with `_target_`, given runtime arguments.
      where: further arguments of `prunebench.assembly.assemble`.

    Raises:
      ValueError: for parts that do not fit together.
    """
    run, method, plan, make_optimizer = assemble(cfg, instantiate=instantiate, **where)
    metrics = instantiate({"metrics": cfg["metrics"]})["metrics"]  # with their group, which errors name
    for name, metric in metrics.items():
        check_metric(name, metric, run, plan)
    return run, method, plan, make_optimizer, metrics


def is_done(directory: Path) -> bool:
    """Whether a whole result.json is there; a damaged one is written again from the last checkpoint."""
    try:
        json.loads((directory / "result.json").read_text())
    except (FileNotFoundError, ValueError):
        return False
    return True


def refuse_missing_metrics(directory: Path, wanted: Mapping[str, Any]) -> None:
    """Raise ValueError if a finished run did not measure what is asked for now."""
    measured = json.loads((directory / "result.json").read_text()).get("metric_options", {})
    if missing := [name for name, options in wanted.items() if measured.get(name) != options]:
        raise ValueError(
            f"metrics=[{','.join(wanted)}]: {directory} is done and did not measure {', '.join(missing)} in "
            "this way; delete it to run again with it, or choose another out=..."
        )


def check_metric(name: str, metric: Any, run: Run, plan: Sequence[Any]) -> None:
    """Let a metric refuse the network or the plan; a bare option is named with its group."""
    try:
        metric.check(run, plan)
    except ValueError as error:
        named = "." in str(error).partition("=")[0] or str(error).startswith("metrics=")
        raise ValueError(str(error) if named else f"metrics.{name}.{error}") from None


def make_directory(directory: Path, key: str, value: object) -> None:
    """Create the directory that an option names and see that it can be written.

    Raises:
      ValueError: if it cannot.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):  # of a name of its own: jobs side by side try this, too
            pass
    except OSError as error:
        raise ValueError(
            f"{key}={value}: cannot be written ({error.strerror}); choose another {key}=..."
        ) from None


def _export(run: Run, method: Method, *, directory: Path, cfg: Mapping[str, Any]) -> dict[str, Any]:
    """Write the final networks; what result.json says of the shrunk one."""
    c, h, _ = run.data.shape
    description = {
        "model": cfg["model"],
        "in_channels": c,
        "image_size": h,
        "num_classes": run.data.num_classes,
        "class_names": list(run.data.class_names),
        "sparsity": run.masks.sparsity,
    }
    if method.stands_for is not None:
        description["scaled"] = method.stands_for[1]  # of the model: network.scaled(this) fits the weights
    write_final(directory, run, method, description=description)
    shrunk = write_shrunk(directory, run, method, description=description)
    return {} if shrunk is None else {"shrunk": shrunk}
