"""TensorBoard: event files in the result directory."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prunebench.trackers.points import SUMMARY
from prunebench.trackers.tracker import About, need


class TensorBoard:
    """Writes curves, the configuration as hyperparameters, and the picture of the result.

    Args:
      folder: null for the folder `tensorboard` in the result directory; otherwise a folder that gets one
        folder for each run, named as its result directory.
    """

    def __init__(self, folder: str | None = None):
        self.folder = folder
        self._writer: Any = None

    def check(self) -> None:
        """See `Tracker`."""
        need("tensorboard", "tensorboard")
        need("torch.utils.tensorboard", "tensorboard")

    def start(self, about: About, step: int) -> Mapping[str, int]:
        """Append to the event files of the run; readers drop what was written after its checkpoint."""
        from torch.utils.tensorboard import SummaryWriter

        folder = about.directory / "tensorboard" if self.folder is None else Path(self.folder) / about.name
        held = self._held(folder, step) if any(folder.glob("events.*")) else None
        purge = None if held is None else step + 1
        self._writer = SummaryWriter(str(folder), purge_step=purge, max_queue=1000)
        if held is None:
            self._write_hyperparameters(about)
            self._writer.flush()
        return held or {}

    def _held(self, folder: Path, step: int) -> dict[str, int]:
        from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator

        events = EventAccumulator(str(folder), size_guidance={SCALARS: 0}).Reload()
        return {name: sum(e.step <= step for e in events.Scalars(name)) for name in events.Tags()[SCALARS]}

    def _write_hyperparameters(self, about: About) -> None:
        from torch.utils.tensorboard.summary import hparams

        metrics = dict.fromkeys(["final/top1", *SUMMARY], 0.0)  # declares names; the values come at the end
        for part in hparams(dict(about.parameters), metrics):
            self._writer.file_writer.add_summary(part)
        tags = "\n".join(f"{key}: {value}  " for key, value in about.tags.items())
        self._writer.add_text("run", f"{about.name}  \n{tags}", 0)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """See `Tracker`."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def sync(self) -> None:
        """See `Tracker`."""
        self._writer.flush()

    def finish(self, summary: Mapping[str, float], files: Sequence[Path]) -> None:
        """Final numbers at step 0, which the table of hyperparameters shows; configuration and picture."""
        for name, value in summary.items():
            self._writer.add_scalar(name, value, 0)
        for path in files:
            if path.name == "curve.png":
                self._writer.add_image("curve", _picture(path), 0, dataformats="HWC")
            elif path.name == "config.yaml":
                self._writer.add_text("config", "    " + path.read_text().replace("\n", "\n    "), 0)

    def close(self, done: bool) -> None:
        """See `Tracker`."""
        if self._writer is not None:
            self._writer.close()


def _picture(path: Path) -> Any:
    """A picture as an array of height x width x 3, uint8."""
    import numpy as np
    from PIL import Image

    return np.array(Image.open(path).convert("RGB"))
