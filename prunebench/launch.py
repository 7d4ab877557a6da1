"""Hydra's part of `prune-run`: compose, check, run a job or a sweep, and turn every failure into one line."""

import inspect
import json
import multiprocessing
import os
import re
import signal
import sys
import tempfile
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, InstantiationException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from prunebench import config, overview
from prunebench.explain import check_arguments, explain
from prunebench.sweep import postponed

NOTES = "PRUNEBENCH_NOTES"  # names the file in which jobs note that they failed or finished


class ConfigError(ValueError):
    """The configuration is wrong; the message may have several lines, one problem each."""


class Signals:
    """Turns the first SIGINT or SIGTERM into a request; the second ends the process at once."""

    def __init__(self) -> None:
        self.number = 0

    def __call__(self) -> int:
        """The number of the signal that has come in, or 0."""
        return self.number

    def _receive(self, number: int, frame: Any) -> None:
        if self.number:
            os._exit(128 + number)
        self.number = number
        print(
            "\nprune-run: stopping after this step, with a checkpoint; again to quit at once", file=sys.stderr
        )

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Receive signals inside the block."""
        before = {n: signal.signal(n, self._receive) for n in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def launch(arguments: Sequence[str]) -> int:
    """Run the command; the exit code."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # exceptions come here instead of being printed by Hydra
    config.register()
    sweep = any(a in ("-m", "--multirun") for a in arguments)
    try:
        if found := check_arguments(arguments):
            raise ConfigError("\n".join(found))
        with notes_of_jobs() as notes:
            with suppress(KeyboardInterrupt):  # a signal stopped a job, which has noted it
                application(arguments)
            noted = [json.loads(line) for line in notes.read_text().splitlines()]
        failed = [note for note in noted if "message" in note]
        draw(Path(note["done"]) for note in noted if "done" in note)
    except (HydraException, OmegaConfBaseException) as error:
        return _fail(explain(error, arguments), 2)
    except OSError as error:  # Hydra makes the result directory before the job begins
        where = f"{error.filename}: cannot write result directories there ({error.strerror})"
        return _fail(f"{where}; choose another out=...", 2)
    except Exception as error:
        return _fail(*judge(error))
    if not failed:
        return 0
    if not sweep:
        return _fail(failed[0]["message"], failed[0]["code"])
    print(
        f"\nprune-run: {len(failed)} job{'s' if len(failed) > 1 else ''} of the sweep failed:",
        file=sys.stderr,
    )
    for job in failed:
        print(f"  {' '.join(job['overrides'])}\n    {job['message']}", file=sys.stderr)
    worst = max(job["code"] for job in failed)
    return worst if worst >= 128 else 2 if all(job["code"] == 2 for job in failed) else 1


def application(arguments: Sequence[str]) -> None:
    """Hydra's entry: parses the arguments, composes, and calls `job` once or for all jobs of a sweep."""
    # Hydra's parser takes -m only before or after all overrides; here it may stand anywhere.
    sys.argv[1:] = sorted(postponed(arguments), key=lambda a: a not in ("-m", "--multirun"))
    hydra.main(version_base="1.3", config_path=str(config.conf_directory()), config_name="config")(job)()


def job(cfg: DictConfig) -> None:
    """One run; in a sweep a failure is noted and the next job begins."""
    settings = HydraConfig.get()
    overrides = list(settings.overrides.task)
    sweep = str(settings.mode).endswith("MULTIRUN")
    if sweep:
        print(f"\n[{settings.job.num}] {' '.join(overrides)}", flush=True)
    try:
        run_job(cfg, settings, overrides)
    except (Exception, KeyboardInterrupt) as error:
        # Noted rather than raised: Hydra would print it in its own way, and end a sweep with it.
        message, code = judge(error, settings.runtime.output_dir)
        note({"overrides": overrides, "message": message, "code": code})
        if sweep:
            print(f"prune-run: job {settings.job.num} failed: {message}", file=sys.stderr)
        if code >= 128 and multiprocessing.parent_process() is None:
            raise KeyboardInterrupt from None
    finally:
        remove_if_empty(Path(settings.runtime.output_dir), parents=0 if sweep else 1)


def run_job(cfg: DictConfig, settings: Any, overrides: Sequence[str]) -> None:
    """Check the configuration and run it."""
    choices = dict(settings.runtime.choices)
    if found := config.problems(cfg, overrides, choices):
        raise ConfigError("\n".join(found))
    plain = config.plain(cfg)
    from prunebench.display import Display
    from prunebench.experiment import run_experiment
    from prunebench.oracle import is_oracle, run_oracle

    signals = Signals()
    display = Display(live=False if _jobs(settings) > 1 else None)
    with signals.installed():
        try:
            directory = _relative(Path(settings.runtime.output_dir))
            work = run_oracle if is_oracle(plain) else run_experiment
            work(
                plain,
                directory=directory,
                choices=choices,
                overrides=overrides,
                instantiate=instantiate,
                display=display,
                asked_to_stop=signals,
                jobs=_jobs(settings),
                identity=config.run_id(plain),
            )
        finally:
            display.close()
    if (directory / "result.json").exists() and not (directory / "curve.png").exists():
        note({"done": str(directory)})


def draw(directories: Iterable[Path]) -> None:
    """The pictures of finished runs, after the last job: the next one need not wait for them."""
    for directory in directories:
        from prunebench.report.curve import curve_png

        curve_png(json.loads((directory / "result.json").read_text()), directory / "curve.png")


def remove_if_empty(directory: Path, *, parents: int) -> None:
    """Remove a result directory that Hydra made for a plan or a mistake, and so many folders above it."""
    with suppress(OSError):
        for folder in (directory, *directory.parents[:parents]):
            folder.rmdir()


def _relative(path: Path) -> Path:
    """The path as seen from the working directory, where it lies below it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _jobs(settings: Any) -> int:
    """Jobs that the launcher runs side by side on this machine."""
    jobs = settings.launcher.get("n_jobs", 1) or 1
    return (os.cpu_count() or 1) if jobs < 0 else jobs


def instantiate(node: Any, **runtime: Any) -> Any:
    """The object of a node; a `_partial_` one as a plain `functools.partial`.

    Hydra's own partial checks its target again at every call, 100 us for a learning rate that takes one.
    """
    return _unwrapped(hydra.utils.instantiate(node, _convert_="all", **runtime))


def _unwrapped(value: Any) -> Any:
    if isinstance(value, partial):
        keywords = {k: _unwrapped(v) for k, v in value.keywords.items()}
        return partial(_unwrapped(value.func), *value.args, **keywords)
    return value


@contextmanager
def notes_of_jobs() -> Iterator[Path]:
    """An empty file to which jobs, also in other processes, add what the command has to know of them."""
    handle, name = tempfile.mkstemp(prefix="prunebench-")
    os.close(handle)
    os.environ[NOTES] = name
    try:
        yield Path(name)
    finally:
        Path(name).unlink(missing_ok=True)


def note(content: Mapping[str, Any]) -> None:
    """Add a line to the notes of this command's jobs."""
    with open(os.environ[NOTES], "a") as file:
        file.write(json.dumps(dict(content)) + "\n")


# From exceptions to one line


def judge(error: BaseException, directory: str = "") -> tuple[str, int]:
    """Message and exit code of a failed run, whose result directory is named where a write failed."""
    cause, built = error, ""
    while isinstance(cause, InstantiationException) and (cause.__cause__ or cause.__context__) is not None:
        built, cause = str(cause), cause.__cause__ or cause.__context__
    name = type(cause).__name__
    if isinstance(cause, KeyboardInterrupt):
        return "interrupted", 130
    if name == "Interrupted":
        return "stopped, with a checkpoint; type the same command to go on", 128 + cause.signal
    if name in ("Diverged", "CheckpointError"):
        return str(cause), 1
    if failed := _failed_write(cause):
        kept = "the last good checkpoint is kept: make room and type the same command"
        return f"{failed.filename or directory}: {failed.strerror or failed}; {kept}", 1
    if isinstance(cause, ValueError):
        return _with_group(str(cause), built), 2
    if isinstance(cause, HydraException | OmegaConfBaseException):
        return explain(cause), 2
    if isinstance(cause, MemoryError) or name == "OutOfMemoryError":
        return "out of memory; lower trainer.batch_size (the last good checkpoint is kept)", 1
    detail = "".join(traceback.format_exception(cause))
    return f"internal error, please report it:\n{detail}", 1


def _with_group(message: str, built: str) -> str:
    """The message with its option's group in front, if it is an argument of the object that Hydra built.

    A constructor knows its arguments ("widths=..."), the user types their group too ("model.widths=...").
    """
    target = re.search(r"target '(prunebench\.(\w+)\.[\w.]+)'", built)
    option = re.match(r"(\w+)=", message)
    place = re.search(r"full_key: ((?:metrics|tracker)\.\w+)", built)  # there may be several of these
    group = place[1] if place else overview.PLURALS.get(target[2]) if target else None
    if option is None or group is None or option[1] in (*config.GROUPS, *config.GIVEN_BY_CODE):
        return message
    known = inspect.signature(hydra.utils.get_object(target[1])).parameters
    return f"{group}.{message}" if option[1] in known else message


def _failed_write(error: BaseException | None) -> OSError | None:
    """The OSError that an error is or comes from; torch.save makes a RuntimeError of that of a full disk."""
    while isinstance(error, RuntimeError):
        error = error.__cause__ or error.__context__
    return error if isinstance(error, OSError) else None


def _fail(message: str, code: int) -> int:
    lines = message.splitlines() or [""]
    if len(lines) > 1 and not message.startswith("internal error"):
        print(f"prune-run: the configuration has {len(lines)} problems", file=sys.stderr)
        print("\n".join(f"  {line}" for line in lines), file=sys.stderr)
    else:
        print(f"prune-run: {message}", file=sys.stderr)
    return code
