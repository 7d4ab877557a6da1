"""Scores of whole channels (filters, neurons) that are seen on training images.

The images are not augmented, the network is in eval mode and in full precision, pruned weights being 0. A
channel's activation is what the ReLU or GELU behind it gives, seen as modules: the nonlinearities to which a
path without further layers and nonlinearities leads from a layer that makes the channel. A channel of a
residual stream has several, one for every block; its score is the mean over them.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from prunebench.core.feeds import Call, Calls, Feed, hooked, rectifiers, trace
from prunebench.core.run import Run
from prunebench.core.units import Unit, alive_channels, unit_masks
from prunebench.criteria.channels import channel_means, channel_units
from prunebench.criteria.gradient import Forward, check_images, network, scoring_images

Measure = Callable[[Tensor], Tensor]
"""Activations of a batch, [images, channels, ...] -> for each channel a sum over the images, float64."""


def mean_activation(
    run: Run,
    *,
    granularity: str,
    drop: Literal["minimum", "maximum"] = "minimum",
    batches: int | None = None,
) -> dict[str, Tensor]:
    """Mean over training images and positions of |activation|: what hardly ever answers goes first.

    DropNet (Chong Min & Motani 2020, arXiv 2207.06646, sec. 2, table 1): with sparsity.allocation=global its
    metric minimum or, with drop=maximum, maximum; with uniform minimum_layer and maximum_layer. Differs: the
    authors' code averages a map before it takes the absolute value, which is the same behind a ReLU; there
    every convolution of a residual network is scored by itself, here a stream as a whole, by the mean over
    its blocks. Where a model says that a BatchNorm behind the ReLU gives the activation (`activation_of`, the
    paper's VGG-19), that is scored.

    Args:
      granularity: what is pruned, filter or neuron.
      drop: which channels go first; maximum is the paper's control and negates the scores.
      batches: batches of the training batch size, drawn anew at every event; null for all training images, as
        in the paper.

    Returns:
      unit name -> float64 score of each channel.

    Raises:
      ValueError: if an option is out of range, there are too few images, or a unit has no activation.
    """
    check_mean_activation(run, granularity=granularity, drop=drop, batches=batches)
    measure, behind = lambda a: _per_position(a.abs()), getattr(run.model, "activation_of", {})
    means = _means(run, granularity, "mean_activation", batches, measure, behind)
    return {n: -m for n, m in means.items()} if drop == "maximum" else means


def apoz(
    run: Run,
    *,
    granularity: str,
    form: Literal["position", "map"] = "position",
    batches: int | None = None,
) -> dict[str, Tensor]:
    """1 - APoZ, the share of activations that are not 0, over training images and positions.

    Average percentage of zeros, as DropNet's supplement compares itself to it (arXiv 2207.06646): what is 0
    most often goes first. sparsity.allocation says apoz (global) or apoz_layer (uniform). Zeros are counted
    behind the ReLU, also where a BatchNorm follows it (DropNet's VGG-19), whose trained shift leaves none.

    Args:
      granularity: what is pruned, filter or neuron.
      form: what is counted: every position of a map (the usual definition), or as in the authors' code the
        mean of the map, which behind a ReLU is 0 only where all of it is.
      batches: as in `mean_activation`.

    Returns:
      unit name -> float64 score of each channel, in [0, 1].

    Raises:
      ValueError: as `mean_activation`.
    """
    check_apoz(run, granularity=granularity, form=form, batches=batches)
    if form == "map":
        return _means(run, granularity, "apoz", batches, lambda a: _per_position(_map_means(a) != 0))
    return _means(run, granularity, "apoz", batches, lambda a: _per_position(a != 0))


def hrank(run: Run, *, granularity: str, batches: int = 5) -> dict[str, Tensor]:
    """Mean over images of the rank of the channel's H x W map: maps of low rank go first.

    HRank (Lin et al. 2020, arXiv 2002.10179; lmbxmu/HRank). The rank is that of torch.linalg.matrix_rank with
    its own tolerance, in float32 as there; the maps are those behind the ReLU. Differs: the authors prune
    layer by layer with fine-tuning between and rates set by hand (here sparsity.allocation={...}), and take 5
    batches of 128 augmented images.

    Args:
      granularity: what is pruned; only filters have maps.
      batches: batches of the training batch size, at least 1.

    Returns:
      unit name -> float64 score of each channel, at most the side of the map.

    Raises:
      ValueError: if an option is out of range, there are too few images, or a unit has no activation or no
        map.
    """
    check_hrank(run, granularity=granularity, batches=batches)
    return _means(run, granularity, "hrank", batches, _ranks)


def greedy_loss(run: Run, *, granularity: str, batches: int | None = None) -> dict[str, Tensor]:
    """Training loss without the channel, all others as they are: what is missed least goes first.

    The Oracle of DropNet (arXiv 2207.06646, sec. 5), which takes one unit away per round: it looks at the
    trained network without retraining it, and the next round begins from the initial weights. It costs a pass
    over the images for every channel that is left, for networks of some 40 units. The loss is plain
    cross-entropy.

    Args:
      granularity: what is pruned, filter or neuron.
      batches: as in `mean_activation`.

    Returns:
      unit name -> float64 score of each channel; -inf for removed channels.

    Raises:
      ValueError: if an option is out of range or there are too few images.
    """
    units = channel_units(run, granularity, "greedy_loss")
    params, alive = dict(run.model.named_parameters()), alive_channels(run.masks, units)
    scores = {}
    with network(run, "eval") as forward, torch.no_grad():
        for unit in units:
            scores[unit.name] = torch.full((unit.size,), -torch.inf, dtype=torch.float64, device=run.device)
            for channel in alive[unit.name].nonzero().flatten().tolist():
                others = torch.arange(unit.size, device=run.device) != channel
                masks = unit_masks(run.model, {unit.name: others}, run.masks)
                without = {n: params[n].detach() * m for n, m in [*masks.items(), *masks.tied.items()]}
                scores[unit.name][channel] = _mean_loss(run, forward, without, batches)
    return scores


def _mean_loss(run: Run, forward: Forward, weights: Mapping[str, Tensor], batches: int | None) -> Tensor:
    total, count = torch.zeros((), dtype=torch.float64, device=run.device), 0
    for x, y in _images(run, batches):
        total += F.cross_entropy(forward(weights, x), y, reduction="sum")
        count += len(y)
    return total / count


def _per_position(values: Tensor) -> Tensor:
    """Sum over images of the mean over positions."""
    rows = values.reshape(*values.shape[:2], -1)
    return rows.sum((0, 2), dtype=torch.float64) / rows.shape[2]


def _map_means(values: Tensor) -> Tensor:
    return values.reshape(*values.shape[:2], -1).mean(2)


def _ranks(maps: Tensor) -> Tensor:
    return torch.linalg.matrix_rank(maps.float()).sum(0).double()


def _images(run: Run, batches: int | None) -> Iterator[tuple[Tensor, Tensor]]:
    """All training images in their order, or so many batches of them; none is augmented."""
    return run.data.evaluation("train") if batches is None else iter(scoring_images(run, batches=batches))


def _means(
    run: Run,
    granularity: str,
    criterion: str,
    batches: int | None,
    measure: Measure,
    behind: Mapping[str, str] | None = None,
) -> dict[str, Tensor]:
    """Unit name -> mean of the measure over images, and over the activations of the unit.

    Args:
      behind: nonlinearity -> the module behind it whose output is measured in its place.
    """
    units = channel_units(run, granularity, criterion)
    feeds, of_units = activations(run, units)
    seen = {name: (behind or {}).get(name, name) for name in rectifiers(run.model)}
    modules = {name: run.model.get_submodule(module) for name, module in seen.items()}
    totals: dict[Call, Tensor] = {}

    def add(call: Call, output: Tensor) -> None:
        if call in feeds:
            total = measure(output.movedim(feeds[call].axis, 1))
            totals[call] = totals[call] + total if call in totals else total

    count, calls = 0, Calls(add)
    with network(run, "eval") as forward, hooked(modules, calls), torch.no_grad():
        for x, _ in _images(run, batches):
            calls.begin()
            forward({}, x)
            count += len(x)
    return {
        unit.name: torch.stack([channel_means(totals[c], unit, n) for c, n in of_units[unit.name]]).mean(0)
        / count
        for unit in units
    }


def activations(
    run: Run, units: Sequence[Unit]
) -> tuple[dict[Call, Feed], dict[str, list[tuple[Call, str]]]]:
    """What feeds every activation, and unit name -> its activations with a weight whose rows they follow."""
    x = torch.zeros(1, *run.data.shape, device=run.device, dtype=next(run.model.parameters()).dtype)
    with network(run, "eval") as forward:
        feeds = trace(run.model, lambda images: forward({}, images), x)
    found: dict[str, list[tuple[Call, str]]] = {}
    for unit in units:
        made = {name for name, dim in unit.made_by if dim == 0}
        rows = {call: [n for n in feed.weights or () if n in made] for call, feed in feeds.items()}
        found[unit.name] = [(call, names[0]) for call, names in rows.items() if names]
    return feeds, found


def check_activations(
    run: Run,
    *,
    granularity: str,
    criterion: str,
    batches: int | None = None,
    maps: bool = False,
) -> None:
    """Refuse before training what has no activation to look at, or no map."""
    units = channel_units(run, granularity, criterion)
    if batches is not None:
        check_images(run, batches=batches)
    try:
        _, found = activations(run, units)
    except ValueError as error:
        raise ValueError(f"criterion={criterion}: {error}; use criterion=l2 or fpgm") from None
    for unit in units:
        if not found[unit.name]:
            raise ValueError(
                f"criterion={criterion}: no ReLU or GELU module is seen behind {unit.name} of "
                f"{type(run.model).__name__}; leave its layers out (sparsity.exclude) or use criterion=l2"
            )
        flat = [n for _, n in found[unit.name] if run.model.get_parameter(n).ndim != 4]
        if maps and flat:
            raise ValueError(
                f"criterion={criterion}: the neurons of {unit.name} have no map whose rank could be taken; "
                "use sparsity=filter, sparsity.exclude or criterion=mean_activation"
            )


def check_mean_activation(run: Run, *, granularity: str, drop: str, batches: int | None) -> None:
    """Refuse what `mean_activation` cannot do with this network, before training."""
    if drop not in ("minimum", "maximum"):
        raise ValueError(f"criterion.drop={drop}: must be minimum or maximum")
    check_activations(run, granularity=granularity, criterion="mean_activation", batches=batches)


def check_apoz(run: Run, *, granularity: str, form: str, batches: int | None) -> None:
    """Refuse what `apoz` cannot do with this network, before training."""
    if form not in ("position", "map"):
        raise ValueError(f"criterion.form={form}: must be position or map")
    check_activations(run, granularity=granularity, criterion="apoz", batches=batches)


def check_hrank(run: Run, *, granularity: str, batches: int) -> None:
    """Refuse what `hrank` cannot do with this network, before training."""
    check_activations(run, granularity=granularity, criterion="hrank", batches=batches, maps=True)


def check_greedy_loss(run: Run, *, granularity: str, batches: int | None) -> None:
    """Refuse what `greedy_loss` cannot do with this network, before training."""
    channel_units(run, granularity, "greedy_loss")
    if batches is not None:
        check_images(run, batches=batches)


mean_activation.check, apoz.check = check_mean_activation, check_apoz
hrank.check, greedy_loss.check = check_hrank, check_greedy_loss
