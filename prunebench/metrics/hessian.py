"""Curvature of the loss: largest eigenvalue and trace of its Hessian."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from prunebench.core.method import Method
from prunebench.core.phase import Phase
from prunebench.core.run import Run, generator
from prunebench.metrics.metric import Metric, check_at_least, probe_losses, undisturbed

Losses = Callable[[], Iterable[Tensor]]
"""Gives the scalars, with their graphs, whose sum is the loss; anew at every call."""


class Hessian(Metric):
    """Largest eigenvalue and trace of the Hessian of the training loss at the network's weights.

    H is the second derivative of the mean cross-entropy over a fixed probe (after PyHessian, arXiv
    1912.07145) with respect to the free coordinates: all trainable parameters less those that the masks
    prune, whose entries of every vector are 0 before and after a product with H.

      eigenvalue: the one of largest magnitude, by power iteration from a normal vector; negative where the
        most curved direction is a maximum. It ends when the Rayleigh quotient changes by no more than
        `tolerance` (relative), or after `iterations`.
      radius: |eigenvalue|, the spectral radius.
      residual: ||H v - eigenvalue v|| of the unit vector v that was reached; some eigenvalue is no further
        than this from the one reported.
      iterations, converged: products used, and whether `tolerance` was met.
      trace: Hutchinson's estimate, the mean of z^T H z over `probes` Rademacher vectors z.
      trace_error: its standard error, the sample standard deviation over sqrt(probes).
      coordinates: number of free coordinates.
    Units: nats per squared unit of weight.

    Assumed: eval mode (BatchNorm with its running statistics), labels as trained, no augmentation, no label
    smoothing, float32 without TF32; of ReLU networks the second derivative off the kinks. For a method with
    soft masks the raw weights are the coordinates. Attention uses its unfused kernel, the only one that can
    be differentiated twice. The vectors are the same for every run. Cost: per product, forward and backward
    pass over the probe and about two backward passes more; the trace shares the former among all vectors.
    The host waits once per iteration, to decide whether to go on.

    Args:
      every: see `Metric`.
      images: size of the probe, at least 1.
      iterations: products of the power iteration at most, at least 1.
      tolerance: relative change of the eigenvalue that ends it, at least 0.
      probes: vectors for the trace, at least 2.
    """

    def __init__(
        self,
        *,
        every: str = "end",
        images: int = 512,
        iterations: int = 100,
        tolerance: float = 1e-3,
        probes: int = 50,
    ):
        super().__init__(every=every)
        check_at_least(1, "images", images)
        check_at_least(1, "iterations", iterations)
        check_at_least(0, "tolerance", tolerance)
        check_at_least(2, "probes", probes)
        self.images, self.iterations, self.tolerance, self.probes = images, iterations, tolerance, probes

    def check(self, run: Run, plan: Sequence[Phase]) -> None:
        """Refuse a network with an operation that torch cannot differentiate twice."""
        params, free = free_coordinates(run)
        try:
            with undisturbed(run), sdpa_kernel(SDPBackend.MATH):
                hessian_product(lambda: probe_losses(run, Method(), 1), params, free, free)
        except RuntimeError as error:
            if "derivative" not in str(error):
                raise
            raise ValueError(
                f"metrics.hessian: the network cannot be differentiated twice ({error}); leave the metric out"
            ) from error

    def measure(self, run: Run, method: Method) -> dict[str, Any]:
        """{"eigenvalue", "radius", "residual", "iterations", "converged", "trace", "trace_error", ...}."""
        params, free = free_coordinates(run)

        def losses() -> Iterator[Tensor]:
            return probe_losses(run, method, self.images)

        with sdpa_kernel(SDPBackend.MATH):
            top = power_iteration(
                lambda v: hessian_product(losses, params, free, v),
                torch.randn(len(free), generator=generator("hessian", "start")).to(free) * free,
                iterations=self.iterations,
                tolerance=self.tolerance,
            )
            trace, error = hutchinson(losses, params, free, probes=self.probes)
        return {
            "eigenvalue": top.eigenvalue,
            "radius": abs(top.eigenvalue),
            "residual": top.residual,
            "iterations": top.iterations,
            "converged": top.converged,
            "trace": trace,
            "trace_error": error,
            "coordinates": int(torch.count_nonzero(free)),
        }


@dataclass(frozen=True)
class Eigenpair:
    """What power iteration found; see `Hessian`."""

    eigenvalue: float
    vector: Tensor
    residual: float
    iterations: int
    converged: bool


def free_coordinates(run: Run) -> tuple[list[Tensor], Tensor]:
    """All trainable parameters, and one vector over them in order: 1 where free, 0 where pruned."""
    named = {n: p for n, p in run.model.named_parameters() if p.requires_grad}
    masks = {**run.masks, **run.masks.tied}
    free = [masks[n].to(p.dtype) if n in masks else torch.ones_like(p) for n, p in named.items()]
    return list(named.values()), _flat(free).detach()


def hessian_product(losses: Losses, params: Sequence[Tensor], free: Tensor, vector: Tensor) -> Tensor:
    """Product m * H (m * v) with m the free coordinates and H the Hessian of the sum of the losses.

    Args:
      losses: parts of the loss.
      params: n entries in all.
      free: [n], 1 or 0.
      vector: [n], v.

    Returns:
      [n], exactly 0 where `free` is.
    """
    vector = vector * free
    total = torch.zeros_like(vector)
    for loss in losses():
        gradient = _gradient(loss, params)
        total += _flat(torch.autograd.grad(gradient @ vector, params, materialize_grads=True))
    return total * free


def power_iteration(
    product: Callable[[Tensor], Tensor], start: Tensor, *, iterations: int, tolerance: float
) -> Eigenpair:
    """The eigenvalue of largest magnitude of a symmetric operator H: v <- H v / ||H v||, eigenvalue <v, H v>.

    Args:
      product: v -> H v.
      start: any vector that has a share of the one looked for.
      iterations: products at most.
      tolerance: relative change between two quotients that counts as converged.
    """
    vector, last = start / start.norm(), math.inf
    for number in range(1, iterations + 1):
        image = product(vector)
        quotient = vector.double() @ image.double()
        rest = image.double() - quotient * vector.double()
        value, size, residual = torch.stack([quotient, image.double().norm(), rest.norm()]).tolist()
        converged = size == 0 or abs(value - last) <= tolerance * abs(value)
        if converged or number == iterations or not math.isfinite(value):
            break
        vector, last = image / size, value
    return Eigenpair(value, vector, residual, number, converged)


def hutchinson(losses: Losses, params: Sequence[Tensor], free: Tensor, *, probes: int) -> tuple[float, float]:
    """Trace of the Hessian over the free coordinates, and its standard error.

    The mean of z^T H z over Rademacher vectors z (Hutchinson 1989). Arguments as in `hessian_product`; at
    least two probes.
    """
    products = torch.zeros(probes, dtype=torch.float64, device=free.device)
    for loss in losses():
        gradient = _gradient(loss, params)
        for i in range(probes):
            rng = generator("hessian", "trace", i)  # drawn again for every batch: all of them would not fit
            signs = torch.randint(2, free.shape, generator=rng, dtype=torch.int8).to(free) * 2 - 1
            z = signs * free
            more = i + 1 < probes  # the last one frees the graph, before the next batch builds its own
            image = torch.autograd.grad(gradient @ z, params, retain_graph=more, materialize_grads=True)
            products[i] += z.double() @ _flat(image).double()
    mean, deviation = torch.stack([products.mean(), products.std()]).tolist()
    return mean, deviation / math.sqrt(probes)


def _gradient(loss: Tensor, params: Sequence[Tensor]) -> Tensor:
    """Gradient as one vector that can be differentiated again."""
    return _flat(torch.autograd.grad(loss, params, create_graph=True, materialize_grads=True))


def _flat(tensors: Iterable[Tensor]) -> Tensor:
    return torch.cat([t.reshape(-1) for t in tensors])
