"""MLflow: a run in a local database, or on a server."""

import json
import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prunebench.core.checkpoint import write_atomically
from prunebench.trackers.tracker import About, need

AT_ONCE = 100  # parameters of one request that a server takes
MANY = 500  # points, of which it takes 1000
SEND_EVERY = 5.0  # seconds
QUICK = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}  # to give up in seconds


class MLflow:
    """Writes curves, parameters, tags and the files of the result; `mlflow.json` remembers the run's id.

    Args:
      uri: of a tracking server or database; null for `<out>/.mlflow/mlflow.db`. Files of a run lie in the
        folder `artifacts` beside a SQLite database, or where the server keeps them.
      experiment: name of the experiment, made if missing.
    """

    def __init__(self, uri: str | None = None, experiment: str = "prunebench"):
        self.uri, self.experiment = uri, experiment
        self._client: Any = None
        self._id = ""
        self._pending: list[Any] = []
        self._sent = 0.0

    def check(self) -> None:
        """See `Tracker`."""
        for name, value in {**QUICK, "MLFLOW_DISABLE_TELEMETRY": "true"}.items():
            os.environ.setdefault(name, value)  # read when the package is imported
        need("mlflow", "mlflow")
        for name in ("mlflow", "alembic"):  # they tell of every table that they make
            logging.getLogger(name).setLevel(logging.WARNING)

    def start(self, about: About, step: int) -> Mapping[str, int]:
        """Make the run, or go on with the one that `mlflow.json` names."""
        from mlflow import MlflowClient

        uri = self.uri or f"sqlite:///{about.directory.parent.absolute() / '.mlflow' / 'mlflow.db'}"
        with alone(uri):
            self._client = MlflowClient(tracking_uri=uri)
            memory = about.directory / "mlflow.json"
            known = self._known(memory, uri)
            if known is None:
                self._id = self._made(about, uri)
                text = json.dumps({"uri": uri, "run": self._id}, indent=1)
                write_atomically(memory, lambda file: file.write(text.encode()))
                known = self._client.get_run(self._id)
            else:
                self._client.update_run(self._id, status="RUNNING")
        self._log_parameters(about.parameters, known.data.params)
        names = known.data.metrics
        return {name: len(self._client.get_metric_history(self._id, name)) for name in names}

    def _known(self, memory: Path, uri: str) -> Any:
        """The run of an earlier process, None if there is none in this place."""
        try:
            content = json.loads(memory.read_text())
        except (FileNotFoundError, ValueError):
            return None
        if content["uri"] != uri:
            return None
        self._id = content["run"]
        return self._client.get_run(self._id)

    def _made(self, about: About, uri: str) -> str:
        """Id of a new run of the experiment."""
        found = self._client.get_experiment_by_name(self.experiment)
        if found is None:
            database = local_database(uri)
            files = None if database is None else (database.parent / "artifacts").absolute().as_uri()
            experiment = self._client.create_experiment(self.experiment, artifact_location=files)
        else:
            experiment = found.experiment_id
        tags = {**about.tags, "group": about.group}
        return self._client.create_run(experiment, run_name=about.name, tags=tags).info.run_id

    def _log_parameters(self, parameters: Mapping[str, Any], known: Mapping[str, str]) -> None:
        """Those that the run lacks; MLflow lets none be changed."""
        from mlflow.entities import Param

        fresh = [Param(key, str(value)) for key, value in parameters.items() if key not in known]
        for first in range(0, len(fresh), AT_ONCE):
            self._client.log_batch(self._id, params=fresh[first : first + AT_ONCE])

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Send the points now and then: a request takes tens of milliseconds, however many it holds."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._pending += [Metric(name, float(value), now, step) for name, value in values.items()]
        if len(self._pending) >= MANY or time.monotonic() - self._sent > SEND_EVERY:
            self.sync()

    def sync(self) -> None:
        """Send what is pending."""
        for first in range(0, len(self._pending), MANY):
            self._client.log_batch(self._id, metrics=self._pending[first : first + MANY])
        self._pending, self._sent = [], time.monotonic()

    def finish(self, summary: Mapping[str, float], files: Sequence[Path]) -> None:
        """Final numbers as metrics, the files of the result as artifacts."""
        self.log(summary, 0)
        self.sync()
        for path in files:
            self._client.log_artifact(self._id, str(path))

    def close(self, done: bool) -> None:
        """See `Tracker`; a run that is not done can be gone on with."""
        if self._id:
            self.sync()
            self._client.set_terminated(self._id, status="FINISHED" if done else "KILLED")


def local_database(uri: str) -> Path | None:
    """The file of a SQLite database, None for anything else."""
    return Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None


@contextmanager
def alone(uri: str) -> Iterator[None]:
    """Keep other runs from making the same SQLite database and its tables at the same time."""
    from filelock import FileLock

    database = local_database(uri)
    if database is None:
        yield
        return
    database.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(str(database) + ".lock", timeout=120):
        yield
