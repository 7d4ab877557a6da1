"""Linear mode connectivity: how much worse a network gets on the straight way to another one."""

import copy
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prunebench.core.method import Method
from prunebench.core.phase import Phase
from prunebench.core.run import Run
from prunebench.metrics.accuracy import topk_correct
from prunebench.metrics.metric import Metric, check_at_least, probe

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
NORM_BATCH = 250  # images per batch when running statistics are estimated again: part of the definition
QUANTITIES = ("train_error", "train_loss", "test_error", "test_loss")


class Barrier(Metric):
    """Barrier in error and loss on the line between this network and another one.

    theta(a) = (1 - a) theta_A + a theta_B, a = 0, ..., 1 at evenly spaced `points`; A is the other network, B
    is this one now. With E the share of wrong answers (top-1) or the mean cross-entropy in nats,

      barrier: max over a of E(a) - [(1 - a) E(A) + a E(B)]; at least 0.
      instability: max over a of E(a) - [E(A) + E(B)] / 2, as in arXiv 1912.05671, section 2; a pair whose
        error instability is below 0.02 is called stable there.

    `train_...` is on a fixed probe of training images (labels as trained, no augmentation), `test_...` on the
    whole test split, which is only reported: nothing is chosen by it. `curve` holds E at every a. Between
    rounds, or seeds, networks differ in their masks; the points between have the union of the kept sets.

    BatchNorm's running statistics are estimated anew at every point, both ends included, as plain averages
    over batches of about 250 images of the probe; other buffers are interpolated. All of that happens in a
    copy of the network; a network without BatchNorm skips the estimation. Of a method with soft masks, the
    weights that its forward pass uses are interpolated.

    Every value is None at the first measurement with "previous". Cost: per point a forward pass over the test
    split and one (BatchNorm: two) over the probe; with "previous" checkpoints hold one network more.

    Args:
      every: see `Metric`.
      other: "previous", the network when it was last measured, or the directory of a finished run of the same
        architecture.
      points: evaluations on the line, ends included, at least 3.
      images: size of the probe, at least 2.
    """

    state = ("last",)

    def __init__(
        self, *, every: str = "phase", other: str = "previous", points: int = 11, images: int = 2000
    ):
        super().__init__(every=every)
        check_at_least(3, "points", points)
        check_at_least(2, "images", images)
        self.other, self.points, self.images = other, points, images
        self.last: dict[str, Tensor] | None = None

    def check(self, run: Run, plan: Sequence[Phase]) -> None:
        """Refuse a single measurement, another architecture, and statistics that processes share."""
        if self.other == "previous":
            self.refuse_single_measurement(plan)
        else:
            check_same_shapes(self.other, run.model.state_dict())
        if any(isinstance(m, nn.SyncBatchNorm) for m in run.model.modules()):
            raise ValueError(
                "metrics.barrier: cannot estimate the statistics of trainer.sync_bn=true, one process "
                "measures; set that to false or leave the metric out"
            )

    @torch.no_grad()
    def measure(self, run: Run, method: Method) -> dict[str, Any]:
        """{"train_error_barrier", "train_error_instability", ...} and "curve"; see the class."""
        now = seen_state(run, method)
        if self.other == "previous":
            before, self.last = self.last, now
        else:
            before = _load(self.other, run.device)
        names = [f"{quantity}_{kind}" for quantity in QUANTITIES for kind in ("barrier", "instability")]
        if before is None:
            return dict.fromkeys((*names, "curve"))
        count = min(self.images, run.data.sizes["train"])
        parts = math.ceil(count / NORM_BATCH)  # as even as they can be: no left-over of a few images
        batches = list(probe(run, count, batch_size=math.ceil(count / parts)))
        model = copy.deepcopy(run.model)
        shares, measured = [i / (self.points - 1) for i in range(self.points)], []
        for share in shares:
            interpolate_(model, before, now, share)
            estimate_statistics_(model, [x for x, _ in batches])
            measured += [error_and_loss(model, batches), error_and_loss(model, run.data.evaluation("test"))]
        curve = torch.stack(measured).view(self.points, len(QUANTITIES)).T.tolist()
        values = [kind(e) for e in curve for kind in (barrier, instability)]
        points = [{"share": a, **dict(zip(QUANTITIES, e))} for a, *e in zip(shares, *curve)]
        return {**dict(zip(names, values)), "curve": points}


def barrier(values: Sequence[float]) -> float:
    """Largest excess over the straight line between the ends, at least 0; NaN if a value is.

    Args:
      values: at evenly spaced points, at least 2.

    >>> round(barrier([0.2, 0.9, 0.4]), 12)
    0.6
    """
    first, rise, last = values[0], values[-1] - values[0], len(values) - 1
    return _largest([0.0, *(v - (first + rise * i / last) for i, v in enumerate(values[:-1]))])


def instability(values: Sequence[float]) -> float:
    """Largest excess over the mean of the ends, at least half their difference; NaN if a value is."""
    return _largest(values) - (values[0] + values[-1]) / 2


def _largest(values: Sequence[float]) -> float:
    return math.nan if any(map(math.isnan, values)) else max(values)


def seen_state(run: Run, method: Method) -> dict[str, Tensor]:
    """Copy of the state dict as the forward pass sees it: soft masks make other weights of the parameters."""
    state = {n: t.detach().clone() for n, t in run.model.state_dict().items()}
    if method.hard_masks:
        return state

    def look(model: nn.Module, args: Any) -> None:
        state.update({n: p.detach().clone() for n, p in model.named_parameters()})

    handle = run.model.register_forward_pre_hook(look)
    try:
        ((x, _),) = probe(run, 1)
        method.forward(run, x)
    finally:
        handle.remove()
    return state


@torch.no_grad()
def interpolate_(model: nn.Module, a: Mapping[str, Tensor], b: Mapping[str, Tensor], share: float) -> None:
    """Set parameters and buffers to (1 - share) * a + share * b, in place; whole numbers to those of b."""
    for name, tensor in model.state_dict().items():
        tensor.copy_(torch.lerp(a[name], b[name], share) if tensor.is_floating_point() else b[name])


@torch.no_grad()
def estimate_statistics_(model: nn.Module, batches: Sequence[Tensor]) -> None:
    """Set BatchNorm's running statistics to their plain averages over batches of images, in place.

    Everything else stays in eval mode. Without BatchNorm nothing is done.
    """
    norms = [m for m in model.modules() if isinstance(m, NORMS) and m.track_running_stats]
    momenta = [m.momentum for m in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum, norm.training = None, True  # None: cumulative average
    for batch in batches if norms else ():
        model(batch)
    for norm, momentum in zip(norms, momenta):
        norm.momentum, norm.training = momentum, False


@torch.no_grad()
def error_and_loss(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """Share of wrong answers and mean cross-entropy over labelled batches: float64 [2] on the device."""
    sums = 0
    for x, y in batches:
        logits = model(x).float()
        wrong = len(y) - topk_correct(logits, y, 1)[0]
        loss = F.cross_entropy(logits, y, reduction="sum")
        sums = sums + torch.stack([wrong.double(), loss.double(), torch.full_like(loss, len(y)).double()])
    return sums[:2] / sums[2]


def check_same_shapes(directory: str, state: Mapping[str, Tensor]) -> None:
    """Compare the names and shapes of a finished run's weights with those of a state dict.

    Raises:
      ValueError: if there is no such run, or its network is another one; a bare `other=...` message.
    """
    from safetensors import SafetensorError, safe_open

    what = f"other={directory}"
    if not Path(directory).is_dir():
        raise ValueError(f"{what}: must be previous or the directory of a finished run; there is no such one")
    path = Path(directory) / "final.safetensors"
    if not path.exists():
        raise ValueError(f"{what}: has no final.safetensors, the run there is not finished")
    try:
        with safe_open(path, framework="pt") as file:
            shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{what}: its final.safetensors cannot be read ({error})") from None
    own = {name: list(tensor.shape) for name, tensor in state.items()}
    for name in [*own, *shapes]:
        if shapes.get(name) != own.get(name):
            there, here = (_shape(s.get(name)) for s in (shapes, own))
            raise ValueError(f"{what}: is another network; {name} has {there} there and {here} here")


def _shape(shape: list[int] | None) -> str:
    return "no entry" if shape is None else f"shape {shape}"


def _load(directory: str, device: torch.device) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(Path(directory) / "final.safetensors", device=str(device))
