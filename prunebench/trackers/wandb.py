"""Weights & Biases: a run on the service, or offline files that `wandb sync` sends there later."""

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from prunebench.trackers.tracker import About, need

WAIT = 30.0  # seconds for the service to answer at the start


class WandB:
    """Writes history, configuration, summary and picture; the run's id is the name of its result directory.

    Offline there is one folder, `<result directory>/wandb/offline-run-*`. A killed process leaves it
    incomplete, so a resumed run removes it and writes all of it again; only the speed of earlier
    epochs is lost. Online the service knows the step to go on from.

    Args:
      mode: offline opens no connection; online needs `wandb login` before.
      project: the project on the service.
      entity: user or team, null for the default one.
    """

    def __init__(
        self,
        mode: Literal["offline", "online"] = "offline",
        project: str = "prunebench",
        entity: str | None = None,
    ):
        self.mode, self.project, self.entity = mode, project, entity
        self._run: Any = None
        self._first = 0  # the service has what is before

    def check(self) -> None:
        """See `Tracker`; asks for no login.

        Raises:
          ValueError: also with mode=online and without a key.
        """
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # read when the package is imported
        wandb = need("wandb", "wandb")
        if self.mode == "online" and not self._logged_in(wandb):
            raise ValueError(
                "tracker.wandb.mode=online: not logged in; type wandb login before, or use mode=offline"
            )

    def _logged_in(self, wandb: Any) -> bool:
        wandb.setup(wandb.Settings(silent=True))
        try:
            return wandb.login(prompt=False)
        except wandb.errors.Error:  # there is a key; whether the service answers is seen at the start
            return True

    def start(self, about: About, step: int) -> Mapping[str, int]:
        """Begin the run, or go on with the one of the same id."""
        import wandb

        if self.mode == "offline":
            for folder in (about.directory / "wandb").glob(f"offline-run-*-{about.name}"):
                shutil.rmtree(folder)
        quiet = {"silent": True, "console": "off", "disable_git": True, "disable_code": True}
        local = {"x_disable_meta": True, "x_disable_stats": True, "x_disable_machine_info": True}
        self._run = wandb.init(
            mode=self.mode,
            project=self.project,
            entity=self.entity,
            dir=str(about.directory),
            id=about.name,
            name=about.name,
            group=about.group,
            tags=[about.tags[k] for k in ("method", "model", "dataset")] + [f"seed {about.tags['seed']}"],
            config=dict(about.parameters),
            allow_val_change=True,
            resume="allow" if self.mode == "online" else None,  # offline it has no effect but a warning
            reinit="create_new",
            settings=wandb.Settings(**quiet, **local, init_timeout=WAIT),
        )
        if self.mode == "online":
            self._first = self._run.starting_step
        return {}

    def log(self, values: Mapping[str, float], step: int) -> None:
        """See `Tracker`; what is logged at one step becomes one row of the history."""
        if step >= self._first:
            self._run.log(dict(values), step=step)

    def sync(self) -> None:
        """Nothing: a process of its own writes at once."""

    def finish(self, summary: Mapping[str, float], files: Sequence[Path]) -> None:
        """Final numbers into the summary, the picture into the history."""
        import wandb

        for path in files:
            if path.name == "curve.png":
                self._run.log({"curve": wandb.Image(str(path))})
        self._run.summary.update(dict(summary))

    def close(self, done: bool) -> None:
        """See `Tracker`."""
        if self._run is not None:
            self._run.finish(exit_code=0 if done else 1)
