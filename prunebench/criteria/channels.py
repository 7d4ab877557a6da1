"""Scores of whole channels that need no data: of filters and hidden neurons, not of single weights.

A criterion of channels is given the units that may be pruned and returns unit name -> score of each channel.
A dead channel's score is not looked at: it never returns.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from prunebench.core.run import Run
from prunebench.core.units import Unit, alive_channels
from prunebench.criteria.gradient import NORMS

Normalize = Literal["none", "mean", "max"]


def random_channel(run: Run, units: Sequence[Unit]) -> dict[str, Tensor]:
    """U(0, 1) per channel: with every allocation each is as likely to go as any other that it is ranked with.

    The random metric of DropNet (arXiv 2207.06646, table 1) and the control of all criteria of channels.
    (`random` draws per weight; sums over more weights are larger, which tells when layers are ranked
    together.) Drawn on the CPU, the same on every device.

    Returns:
      unit name -> float64 [channels].
    """
    rng = run.rng("criterion")
    return {u.name: torch.rand(u.size, generator=rng, dtype=torch.float64).to(run.device) for u in units}


def filter_norm(
    run: Run, units: Sequence[Unit], *, p: Literal[1, 2] = 1, normalize: Normalize = "none"
) -> dict[str, Tensor]:
    """L1 or L2 norm of the weights that make a channel.

    p=1 is Li et al. 2017 (arXiv 1608.08710): the sum of |w| over the filter, which `magnitude` with filters
    is, too; p=2 that of soft filter pruning (He et al. 2018, arXiv 1808.06866), root included. Both papers
    rank every layer by itself, sparsity.allocation=uniform. A channel that several layers make (a residual
    stream) has the norm of all their weights together; the papers leave such layers alone or prune them to
    the plan of the shortcut. Biases and normalisation do not count.

    One ranking over all layers (allocation=global) by norms that are not normalised empties layers of small
    weights; `normalize` divides a layer's scores by their mean or largest, as VainF/Torch-Pruning does by
    the mean, and sparsity.allocation=lamp normalises in its own way.

    Args:
      p: 1 or 2.
      normalize: none, mean or max, over the alive channels of a unit.

    Returns:
      unit name -> float64 [channels], at least 0.

    Raises:
      ValueError: if an option is none of these.
    """
    check_filter_norm(run, units, p=p, normalize=normalize)
    scores = {u.name: torch.linalg.vector_norm(filters(run, u), ord=p, dim=1) for u in units}
    return normalized(run, units, scores, normalize)


def check_filter_norm(run: Run, units: Sequence[Unit], *, p: int, normalize: str) -> None:
    """Refuse options of `filter_norm` before training."""
    if p not in (1, 2):
        raise ValueError(f"criterion.p={p}: must be 1 or 2")
    check_normalize(run, units, normalize=normalize)


def fpgm(run: Run, units: Sequence[Unit], *, normalize: Normalize = "none") -> dict[str, Tensor]:
    """Sum of the distances to all other filters of the layer; the lowest is next to their geometric median.

    He et al. 2019 (arXiv 1811.00250, eq. 4; pruning_cifar10.py of he-y/filter-pruning-geometric-median):
    redundant filters go, not small ones. Euclidean distances of the raw weights, the same share in every
    layer (sparsity.allocation=uniform). Distances are taken to alive filters only: the paper's soft pruning
    lets zeroed filters count and come back, here they do neither. Of a channel that several layers make (a
    residual stream) the filter is all their weights together. Biases and normalisation do not count.

    Args:
      normalize: as in `filter_norm`.

    Returns:
      unit name -> float64 [channels], at least 0.
    """
    check_normalize(run, units, normalize=normalize)
    alive, scores = alive_channels(run.masks, units), {}
    for unit in units:
        rows = filters(run, unit)
        # differences, not the expansion by products, which loses what is left of nearly equal filters
        distances = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")
        scores[unit.name] = (distances * alive[unit.name].to(rows)).sum(1)
    return normalized(run, units, scores, normalize)


def bn_scale(run: Run, units: Sequence[Unit]) -> dict[str, Tensor]:
    """|gamma|, the scale of the channel's BatchNorm (network slimming; Liu et al. 2017, arXiv 1708.06519).

    Meant for networks trained with an L1 penalty on the scales (method=slimming) and one ranking over all
    layers (sparsity.allocation=global). Of a channel with several BatchNorms (a residual stream) the mean
    over them counts, as VainF/Torch-Pruning reduces groups; the paper selects the inputs of a block instead
    and leaves the stream whole. What is removed with the channel are filter, bias, scale and shift.

    Returns:
      unit name -> float64 [channels], at least 0.

    Raises:
      ValueError: if a unit has no BatchNorm with a scale.
    """
    return {name: torch.stack(scales).mean(0) for name, scales in _scales(run, units).items()}


def _scales(run: Run, units: Sequence[Unit]) -> dict[str, list[Tensor]]:
    """Unit name -> |gamma| of every BatchNorm of its channels."""
    norms, found = {f"{n}.weight": m for n, m in run.model.named_modules() if isinstance(m, NORMS)}, {}
    for unit in units:
        own = [norms[n].weight for n, _ in unit.made_by if n in norms and norms[n].affine]
        if not own:
            raise ValueError(
                f"criterion=bn_scale: the channels of {unit.name} have no BatchNorm; choose a model such as "
                "vgg16_bn or resnet18, another criterion, or exclude the layer (sparsity.exclude)"
            )
        found[unit.name] = [gamma.detach().double().abs() for gamma in own]
    return found


def check_bn_scale(run: Run, units: Sequence[Unit]) -> None:
    """Refuse channels without BatchNorm before training."""
    _scales(run, units)


def filters(run: Run, unit: Unit) -> Tensor:
    """All weights that make each channel, float64 [channels, weights]; no biases, no normalisation."""
    params: dict[str, nn.Parameter] = dict(run.model.named_parameters())
    parts = [params[n].detach().movedim(dim, 0) for n, dim in unit.made_by if n in run.masks]
    return torch.cat([p.reshape(unit.size, -1).double() for p in parts], dim=1)


def normalized(
    run: Run, units: Sequence[Unit], scores: dict[str, Tensor], how: Normalize
) -> dict[str, Tensor]:
    """Scores of every unit over the mean or the largest of its alive channels; units of zeros stay."""
    if how == "none":
        return scores
    alive, result = alive_channels(run.masks, units), {}
    for name, score in scores.items():
        living = score[alive[name]]
        size = living.mean() if how == "mean" else living.max()
        result[name] = score / torch.where(size > 0, size, 1.0)
    return result


def check_normalize(run: Run, units: Sequence[Unit], *, normalize: str) -> None:
    """Refuse another normalisation before training."""
    if normalize not in ("none", "mean", "max"):
        raise ValueError(f"criterion.normalize={normalize}: must be none, mean or max")


for criterion in (random_channel, filter_norm, fpgm, bn_scale):
    criterion.of_units = True
filter_norm.check, fpgm.check, bn_scale.check = check_filter_norm, check_normalize, check_bn_scale
