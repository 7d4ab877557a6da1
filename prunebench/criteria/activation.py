"""Scores of channels by what they give on training images: DropNet's mean activation, APoZ, HRank.

A channel's activation is the output of the ReLU (or GELU) behind the layers that make it, in eval mode,
without augmentation. Where a channel has several (a residual stream has one in every block), their mean
counts. What a criterion of channels is stands in `prunebench.criteria.channels`.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from prunebench.core.feeds import Call, Calls, feeds_of, hooked
from prunebench.core.run import Run
from prunebench.core.units import Unit
from prunebench.criteria.gradient import check_images, network, scoring_images

Place = tuple[str, int]
"""A unit, and the axis of an activation's output that counts its channels."""


def mean_activation(
    run: Run,
    units: Sequence[Unit],
    *,
    drop: Literal["minimum", "maximum"] = "minimum",
    batches: int | None = None,
) -> dict[str, Tensor]:
    """Mean of |activation| over the training images and the positions of the feature map: DropNet's score.

    Tan & Motani 2020 (arXiv 2207.06646, sec. 2: E(a_i) = 1/t sum_j |V(a_i | x_j)| of a node, for a filter its
    mean over the positions, and table 1). drop=minimum, the lowest mean goes first, is DropNet; maximum is
    the metric of that name, whose score is the negative. One ranking over all layers is
    sparsity.allocation=global (minimum, maximum), one per layer uniform (minimum_layer, maximum_layer).

    Channels of equal score, as those that no image activates, are ranked at random. Differs from the authors'
    code (tanchongmin/DropNet): that averages a feature map before it takes the absolute value, which is not
    the paper's equation and the same after a ReLU; its "minimum" prefers early layers and may spare one of
    the lowest (an index that is off by one); its residual networks have a score for every convolution, here
    the channels of a residual stream live or die together and have the mean over its activations (ours).

    Args:
      drop: what goes first, the lowest means or the highest.
      batches: batches of the training batch size; None takes all training images, as the paper.

    Returns:
      unit name -> float64 [channels], the mean or its negative.

    Raises:
      ValueError: if an option is out of range, or a unit has no ReLU or GELU behind it.
    """
    check_mean_activation(run, units, drop=drop, batches=batches)
    places = behind_norms(run, places_of(run, units, "mean_activation"))
    means = channel_means(run, places, _sum_of_magnitudes, batches=batches)
    sign = -1 if drop == "maximum" else 1
    return shuffled_ties({n: sign * m for n, m in means.items()}, run.rng("ties"))


def apoz(
    run: Run,
    units: Sequence[Unit],
    *,
    zeros: Literal["position", "map"] = "position",
    batches: int | None = None,
) -> dict[str, Tensor]:
    """Share of activations that are not 0: one less the average percentage of zeros (APoZ).

    Hu et al. 2016 (arXiv 1607.03250); the baseline `apoz` of DropNet's supplement (arXiv 2207.06646). A unit
    with more zeros goes first. DropNet's code counts a feature map as one zero where its mean over the
    positions is 0 (zeros=map). Channels of equal score are ranked at random.

    Args:
      zeros: what is counted, every position of a feature map (as Hu et al.) or whole maps.
      batches: as in `mean_activation`.

    Returns:
      unit name -> float64 [channels], in [0, 1].

    Raises:
      ValueError: if an option is out of range, or a unit has no ReLU behind it.
    """
    check_apoz(run, units, zeros=zeros, batches=batches)
    value = _count_positions if zeros == "position" else _count_maps
    means = channel_means(run, places_of(run, units, "apoz"), value, batches=batches)
    return shuffled_ties(means, run.rng("ties"))


def hrank(run: Run, units: Sequence[Unit], *, batches: int = 5) -> dict[str, Tensor]:
    """Mean rank of the feature map, an H x W matrix, over training images; low ranks go first.

    Lin et al. 2020 (arXiv 2002.10179; rank_generation of lmbxmu/HRank): 5 batches of 128 images, the output
    of the ReLU, torch's default tolerance. The rank of a map of one pixel says only whether it is 0. The
    paper sets a rate by hand for every layer (sparsity.allocation={pattern: rate}) and prunes and fine-tunes
    layer by layer; here all layers are pruned at an event.

    Args:
      batches: batches of the training batch size, at least 1.

    Returns:
      unit name -> float64 [channels], between 0 and the side of the map.

    Raises:
      ValueError: if there are too few images, or a unit gives no feature maps (linear layers).
    """
    check_hrank(run, units, batches=batches)
    return channel_means(run, places_of(run, units, "hrank"), _sum_of_ranks, batches=batches)


def _sum_of_magnitudes(maps: Tensor) -> Tensor:
    return maps.abs().sum((0, *range(2, maps.ndim)), dtype=torch.float64) / maps[0, 0].numel()


def _count_positions(maps: Tensor) -> Tensor:
    return torch.count_nonzero(maps.transpose(0, 1).flatten(1), dim=1).double() / maps[0, 0].numel()


def _count_maps(maps: Tensor) -> Tensor:
    return torch.count_nonzero(maps.flatten(2).mean(2) if maps.ndim > 2 else maps, dim=0).double()


def _sum_of_ranks(maps: Tensor) -> Tensor:
    return torch.linalg.matrix_rank(maps.float()).sum(0).double()


@torch.no_grad()
def channel_means(
    run: Run, places: dict[Call, Place], value: Callable[[Tensor], Tensor], *, batches: int | None
) -> dict[str, Tensor]:
    """Mean over images of a value of every channel's activations; of several of a unit's, their mean.

    Args:
      places: from `places_of`.
      value: activations [N, channels, ...] -> the values of the channels, summed over the N images.
      batches: of the training batch size; None for all training images.

    Returns:
      unit name -> float64 [channels].
    """
    sums, count = {}, 0
    images = run.data.evaluation("train") if batches is None else scoring_images(run, batches=batches)

    def add(call: Call, output: Tensor) -> None:
        if call in places:
            summed = value(output.movedim(places[call][1], 1))
            sums[call] = sums[call] + summed if call in sums else summed

    calls = Calls(add)
    with network(run, "eval") as forward, torch.no_grad(), hooked(modules_of(run, places), calls):
        for x, y in images:
            calls.begin()
            forward({}, x)
            count += len(y)
    own: dict[str, list[Tensor]] = {}
    for call, (unit, _) in places.items():
        own.setdefault(unit, []).append(sums[call] / count)
    return {unit: torch.stack(means).mean(0) for unit, means in own.items()}


def places_of(run: Run, units: Iterable[Unit], criterion: str) -> dict[Call, Place]:
    """Where the activations of the units are: call of a ReLU or GELU -> its unit and channel axis.

    Raises:
      ValueError: if a unit has none.
    """
    units = list(units)
    ((image, _),) = run.data.scoring(run.rng("criterion"), batches=1, batch_size=1)
    with network(run, "eval") as forward:
        feeds = feeds_of(run.model, partial(forward, {}), image)
    places = {}
    for unit in units:
        weights = {n for n, _ in unit.made_by}
        own = {call: (unit.name, f.axis) for call, f in feeds.items() if weights & set(f.weights or ())}
        if not own:
            raise ValueError(
                f"criterion={criterion}: the channels of {unit.name} have no ReLU or GELU behind them; "
                "choose another criterion, or exclude the layer (sparsity.exclude)"
            )
        places |= own
    return places


def behind_norms(run: Run, places: dict[Call, Place]) -> dict[Call, Place]:
    """The same places where the model's own activations are.

    A model may name a module behind a ReLU, a BatchNorm, whose output goes to the next layer:
    `activation_of`, ReLU -> module.
    """
    behind = getattr(run.model, "activation_of", {})
    return {(behind.get(name, name), number): place for (name, number), place in places.items()}


def modules_of(run: Run, places: Iterable[Call]) -> dict[str, torch.nn.Module]:
    """The modules that give the activations, by name."""
    return {name: run.model.get_submodule(name) for name in dict.fromkeys(name for name, _ in places)}


def shuffled_ties(scores: dict[str, Tensor], rng: torch.Generator) -> dict[str, Tensor]:
    """The same scores with ties broken at random: entries of equal value are set apart by the last digits.

    Args:
      scores: float64 by name; one ranking over all of them.
      rng: on the CPU.
    """
    flat = torch.cat([s.flatten() for s in scores.values()]).cpu()
    order = torch.randperm(len(flat), generator=rng)
    order = order[torch.sort(flat[order], stable=True).indices]
    values = flat[order]
    first = torch.searchsorted(values, values)  # of the entries that are equal
    digit = torch.nextafter(values, torch.full_like(values, torch.inf)) - values
    apart = torch.empty_like(flat)
    apart[order] = values + (torch.arange(len(values)) - first) * digit
    parts = apart.split([s.numel() for s in scores.values()])
    return {n: part.view(s.shape).to(s.device) for part, (n, s) in zip(parts, scores.items())}


def check_activation(run: Run, units: Sequence[Unit], *, batches: int | None, criterion: str) -> None:
    """Refuse too many batches, and units without activations, before training."""
    if batches is not None:
        check_images(run, batches=batches)
    places_of(run, units, criterion)


def check_mean_activation(run: Run, units: Sequence[Unit], *, drop: str, batches: int | None) -> None:
    """Refuse options of `mean_activation` before training."""
    if drop not in ("minimum", "maximum"):
        raise ValueError(f"criterion.drop={drop}: must be minimum or maximum")
    check_activation(run, units, batches=batches, criterion="mean_activation")


def check_apoz(run: Run, units: Sequence[Unit], *, zeros: str, batches: int | None) -> None:
    """Refuse options of `apoz`, and a network without ReLU, before training."""
    if zeros not in ("position", "map"):
        raise ValueError(f"criterion.zeros={zeros}: must be position or map")
    check_activation(run, units, batches=batches, criterion="apoz")
    places = places_of(run, units, "apoz")
    modules = modules_of(run, places)
    for (name, _), (unit, _) in places.items():
        if not isinstance(modules[name], torch.nn.ReLU | torch.nn.ReLU6):
            raise ValueError(
                f"criterion=apoz: a {type(modules[name]).__name__} as that of {unit} is hardly ever 0; "
                "choose criterion=mean_activation"
            )


def check_hrank(run: Run, units: Sequence[Unit], *, batches: int) -> None:
    """Refuse what `hrank` cannot do with this network, before training."""
    check_activation(run, units, batches=batches, criterion="hrank")
    params = dict(run.model.named_parameters())
    for unit in units:
        if not any(n in params and params[n].ndim == 4 for n, _ in unit.made_by):
            raise ValueError(
                f"criterion=hrank: {unit.name} gives no feature maps that could have a rank; use "
                "sparsity.granularity=filter or another criterion"
            )


for criterion in (mean_activation, apoz, hrank):
    criterion.of_units = True
mean_activation.check, apoz.check, hrank.check = check_mean_activation, check_apoz, check_hrank
