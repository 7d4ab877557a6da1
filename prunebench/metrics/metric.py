"""What may be measured beside accuracy, when, and without leaving a trace in the run."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from prunebench.core.method import Method
from prunebench.core.phase import Phase, parse_length
from prunebench.core.run import Run, generator

PROBE_BATCH = 250  # images; results do not depend on it


class Metric:
    """A diagnostic of the network, a function of the run's state and of fixed images.

    It changes nothing that training reads: no weight, buffer, gradient, mode or random state.

    Args:
      every: "phase" (at the end of every phase that is a result), "end" (of the last one only), or a length
        such as "2ep": also whenever so much of a phase is trained.

    Attributes:
      state: names of the attributes that a checkpoint carries, as in `Method`.

    Raises:
      ValueError: if `every` is none of these.
    """

    state: tuple[str, ...] = ()

    def __init__(self, *, every: str = "phase"):
        if every not in ("phase", "end"):
            try:
                parse_length(every, 1)
            except ValueError:
                raise ValueError(
                    f"every={every}: must be phase, end, or a length such as 2ep or 100it"
                ) from None
            if float(every[:-2]) == 0:
                raise ValueError(f"every={every}: must be longer than 0")
        self.every = every

    def check(self, run: Run, plan: Sequence[Phase]) -> None:
        """Refuse what this network or plan cannot give, before any training.

        Raises:
          ValueError: naming the metric and the way out.
        """

    def refuse_single_measurement(self, plan: Sequence[Phase]) -> None:
        """For metrics that compare with the last time.

        Raises:
          ValueError: if the plan gives one measurement only.
        """
        if self.every == "end" or (self.every == "phase" and sum(p.is_round for p in plan) < 2):
            raise ValueError(f"every={self.every}: needs two measurements, this plan gives one")

    def begin(self, run: Run) -> None:
        """See a phase that has begun, pruned and restored, not trained yet. What is kept is `state`."""

    def watch(self, run: Run) -> None:
        """See the run after every step, at a cost of next to nothing. What is kept is `state`."""

    def measure(self, run: Run, method: Method) -> dict[str, Any]:
        """Values for a row of metrics.jsonl: numbers, None, and lists and dicts of them.

        Numbers at the top are drawn by prune-report; "layers" may hold a list of dicts, one per layer.
        """
        raise NotImplementedError

    def due(self, step: int, steps: int, steps_per_epoch: int) -> bool:
        """Whether to measure when `step` of a phase's `steps` are done, not counting the phase's end."""
        if self.every in ("phase", "end") or step == steps:
            return False
        return step % max(1, parse_length(self.every, steps_per_epoch)) == 0

    def state_dict(self) -> dict[str, Any]:
        """The attributes named in `state`."""
        return {name: getattr(self, name) for name in self.state}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what `state_dict` gave."""
        for name in self.state:
            setattr(self, name, state[name])


def measure_due(
    metrics: Mapping[str, Metric], run: Run, method: Method, *, last_phase: bool | None
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and values of every metric that is due now.

    Args:
      metrics: name -> metric.
      run: its clock stands after a step.
      method: gives the forward pass.
      last_phase: at a phase's end, whether it is the last one; None within a phase.
    """
    clock = run.clock
    for name, metric in metrics.items():
        metric.watch(run)
        due = metric.due(clock.step, clock.steps, run.data.steps_per_epoch)
        if due if last_phase is None else metric.every != "end" or last_phase:
            with undisturbed(run):
                values = as_json(metric.measure(run, method))
            yield name, values


def begin_phase(metrics: Mapping[str, Metric], run: Run) -> None:
    """Tell every metric that a phase begins."""
    for metric in metrics.values():
        metric.begin(run)


def states(metrics: Mapping[str, Metric]) -> dict[str, dict[str, Any]]:
    """What a checkpoint carries of the metrics."""
    return {name: metric.state_dict() for name, metric in metrics.items()}


def load_states(metrics: Mapping[str, Metric], saved: Mapping[str, Mapping[str, Any]]) -> None:
    """Load what `states` gave; a metric that came in since begins afresh."""
    for name, metric in metrics.items():
        if name in saved:
            metric.load_state_dict(saved[name])


@contextmanager
def undisturbed(run: Run) -> Iterator[None]:
    """Eval mode and the bare network in full precision inside the block; everything as it was after it.

    Full precision also means no TF32, which convolutions on CUDA use unless told otherwise. Gradients are
    left to `torch.autograd.grad`, which writes none into the parameters.
    """
    run.update_model()
    modes = [(m, m.training) for m in run.model.modules()]
    buffers = [(b, b.clone()) for b in run.model.buffers()]
    random, network, precision = torch.get_rng_state(), run.network, run.precision
    tf32 = torch.backends.cudnn.allow_tf32
    run.network, run.precision, torch.backends.cudnn.allow_tf32 = run.model, None, False
    run.model.eval()
    try:
        yield
    finally:
        run.network, run.precision, torch.backends.cudnn.allow_tf32 = network, precision, tf32
        for module, training in modes:
            module.training = training
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)
        torch.set_rng_state(random)


def probe(run: Run, images: int, *, batch_size: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
    """Fixed training images without augmentation, the same for every run on the data set and split.

    Args:
      images: how many; all training images if there are fewer.
      batch_size: images per batch, by default PROBE_BATCH; which images are chosen does not depend on it.

    Yields:
      float32 [B, C, H, W], normalised, and int64 [B].
    """
    count, size = min(images, run.data.sizes["train"]), batch_size or PROBE_BATCH
    ((x, y),) = run.data.scoring(generator("probe"), batches=1, batch_size=count)
    for start in range(0, count, size):
        yield x[start : start + size], y[start : start + size]


def probe_losses(run: Run, method: Method, images: int) -> Iterator[Tensor]:
    """Cross-entropy of every batch of the probe, with its graph; they add up to the mean over the probe.

    Plain cross-entropy (natural logarithm) whatever the training loss, on the labels as trained.
    """
    count = min(images, run.data.sizes["train"])
    for x, y in probe(run, images):
        yield F.cross_entropy(method.forward(run, x), y, reduction="sum") / count


def check_at_least(least: int, option: str, value: int) -> None:
    """Raises ValueError if the value of an option is below `least`."""
    if value < least:
        raise ValueError(f"{option}={value}: must be at least {least}")


def as_json(values: Any) -> Any:
    """Nested containers with None in the place of numbers that are not finite, which JSON does not have."""
    if isinstance(values, dict):
        return {key: as_json(value) for key, value in values.items()}
    if isinstance(values, list):
        return [as_json(value) for value in values]
    return None if isinstance(values, float) and not math.isfinite(values) else values
