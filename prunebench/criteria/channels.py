"""Scores of whole channels (filters, neurons) that are read off the weights.

The l1-norm of filters (Li et al. 2017, arXiv 1608.08710) is not here: it is criterion=magnitude with
sparsity=filter, where a channel's score is the sum of |w| over the weights that make it.

A channel that goes takes its bias and its BatchNorm scale and shift with it, and the weights that read it
(`prunebench.core.units.unit_masks`): all are 0, so that nothing of it leaks into the next layer, and the
smaller network computes the same. Where several layers make a channel (a residual stream) it is scored once,
over all of them. Ranked within each unit by sparsity.allocation=uniform, over the whole network by global; as
scores of wide and narrow layers are not on one scale, lamp ranks them after the normalisation of LAMP.

Of N channels together round((1 - sparsity) * N) stay, shared out over the units by largest remainder, where
FPGM's code removes int(C * rate) of a layer's C and that of the l1-norm keeps int(C * (1 - rate)).
"""

from functools import partial

import torch
from torch import Tensor

from prunebench.core.run import Run
from prunebench.core.units import Unit, alive_channels, model_units
from prunebench.criteria.gradient import NORMS


def channel_units(run: Run, granularity: str, criterion: str) -> list[Unit]:
    """The units that this granularity prunes.

    Raises:
      ValueError: if the granularity prunes no whole channels, or the model has none of that kind.
    """
    if granularity not in ("filter", "neuron"):
        raise ValueError(
            f"criterion={criterion}: scores whole channels, sparsity.granularity={granularity} prunes "
            "others; use sparsity=filter or sparsity=neuron"
        )
    return model_units(run.model, granularity, run.masks)


def channel_vectors(run: Run, unit: Unit) -> Tensor:
    """[size, entries] float64: for each channel all the prunable weights that make it, layer after layer."""
    params, parts = dict(run.model.named_parameters()), []
    for name, dim in unit.made_by:
        if name in run.masks:
            rows = params[name].detach().movedim(dim, 0).flatten(1)
            places = unit.places(name, dim, len(rows)).to(rows.device)
            rows, places = rows[places >= 0], places[places >= 0]
            parts.append(rows[places.argsort(stable=True)].reshape(unit.size, -1))
    return torch.cat(parts, 1).double()


def channel_means(rows: Tensor, unit: Unit, name: str) -> Tensor:
    """[size]: mean over those rows of a tensor that make each channel; what is no channel is left out.

    Args:
      rows: a value for every row of the tensor.
      name: state_dict name of the tensor, which makes channels along dimension 0.
    """
    places = unit.places(name, 0, len(rows)).to(rows.device)
    rows, places = rows[places >= 0], places[places >= 0]
    return rows.new_zeros(unit.size).index_add_(0, places, rows) / places.bincount(minlength=unit.size)


def l2(run: Run, *, granularity: str) -> dict[str, Tensor]:
    """||W_j||_2, the Euclidean norm of all weights that make a channel.

    As in soft filter pruning (He et al. 2018, arXiv 1808.06866), whose filters may grow back, unlike here.
    Differs from Torch-Pruning, which leaves the root out and averages over the layers of a group: the same
    ranking within a unit made by one layer. Biases and normalisation have no part in the score.

    Args:
      granularity: what is pruned, filter or neuron.

    Returns:
      unit name -> float64 score of each channel, at least 0; 0 for removed channels.

    Raises:
      ValueError: if the granularity is another.
    """
    return {u.name: channel_vectors(run, u).norm(dim=1) for u in channel_units(run, granularity, "l2")}


def fpgm(run: Run, *, granularity: str) -> dict[str, Tensor]:
    """Sum over j' of ||W_j - W_j'||_2, the distances to all other channels: the middle goes first.

    Filter pruning via geometric median (He et al. 2019, arXiv 1811.00250, eq. 4): a filter near the geometric
    median of its layer can be replaced by the others, whatever its norm.
    Differs: the authors set filters to 0 at the end of every epoch and let them grow back, and their zeroed
    filters count among the others. Here filters are removed at the protocol's pruning events and stay away,
    and only the channels that are left count, as in the smaller network. With layers that make a channel
    together, W_j is made of the weights in all of them. Biases and normalisation have no part in the score.

    Args:
      granularity: what is pruned, filter or neuron.

    Returns:
      unit name -> float64 score of each channel, at least 0; 0 for removed channels.

    Raises:
      ValueError: if the granularity is another.
    """
    units = channel_units(run, granularity, "fpgm")
    scores, alive = {}, alive_channels(run.masks, units)
    for unit in units:
        left = alive[unit.name]
        vectors = channel_vectors(run, unit)[left]
        # not by way of the scalar product, which is off by 1e-8 of the norm where two filters are equal
        distances = torch.cdist(vectors, vectors, compute_mode="donot_use_mm_for_euclid_dist")
        scores[unit.name] = distances.new_zeros(unit.size)
        scores[unit.name][left] = distances.sum(1)
    return scores


def bn_scale(run: Run, *, granularity: str) -> dict[str, Tensor]:
    """|gamma_j|, the scale of the channel's BatchNorm, which method=slimming trains to be sparse.

    Network Slimming (Liu et al. 2017, arXiv 1708.06519, sec. 3), which ranks all scales of the network
    together (sparsity.allocation=global). Where several BatchNorms belong to a channel (residual streams,
    which the paper's networks do not prune), the mean over them. The shift has no part in the score.

    Args:
      granularity: what is pruned, filter or neuron.

    Returns:
      unit name -> score of each channel, at least 0.

    Raises:
      ValueError: if the granularity is another, or a unit has no BatchNorm with a scale.
    """
    scores, params = {}, dict(run.model.named_parameters())
    names = scales_of_units(run, granularity)
    for unit in channel_units(run, granularity, "bn_scale"):
        sizes = [params[n].detach().double().abs() for n in names[unit.name]]
        of_each = [channel_means(s, unit, n) for s, n in zip(sizes, names[unit.name])]
        scores[unit.name] = torch.stack(of_each).mean(0)
    return scores


def scales_of_units(run: Run, granularity: str) -> dict[str, list[str]]:
    """Unit name -> parameter names of the BatchNorm scales of its channels.

    Raises:
      ValueError: as `bn_scale`.
    """
    units = channel_units(run, granularity, "bn_scale")
    norms = {f"{n}.weight" for n, m in run.model.named_modules() if isinstance(m, NORMS) and m.affine}
    found = {u.name: [n for n, _ in u.made_by if n in norms] for u in units}
    for name, scales in found.items():
        if not scales:
            raise ValueError(
                f"criterion=bn_scale: the {granularity}s of {name} in {type(run.model).__name__} have no "
                "BatchNorm with a scale; choose a model with BatchNorm behind every layer, or criterion=l2"
            )
    return found


def random_channels(run: Run, *, granularity: str) -> dict[str, Tensor]:
    """U(0, 1) for every channel: each is as likely to go as any other, in a unit and over all of them.

    The control of the criteria of channels. criterion=random draws for every weight and sums, so that in one
    ranking over all units wide layers get the higher scores. Drawn on the CPU, the same on every device.

    Args:
      granularity: what is pruned, filter or neuron.

    Returns:
      unit name -> score of each channel, in [0, 1).

    Raises:
      ValueError: if the granularity is another.
    """
    rng = run.rng("criterion")
    units = channel_units(run, granularity, "random_channels")
    return {u.name: torch.rand(u.size, generator=rng, dtype=torch.float64).to(run.device) for u in units}


def check_channels(run: Run, *, granularity: str, criterion: str) -> None:
    """Refuse single weights, and a model without such channels, before training."""
    channel_units(run, granularity, criterion)


def check_bn_scale(run: Run, *, granularity: str) -> None:
    """Refuse units without BatchNorm before training."""
    scales_of_units(run, granularity)


l2.check = partial(check_channels, criterion="l2")
fpgm.check = partial(check_channels, criterion="fpgm")
random_channels.check = partial(check_channels, criterion="random_channels")
bn_scale.check = check_bn_scale
