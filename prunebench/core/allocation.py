"""How a sparsity is spread over layers: functions (shapes, sparsity) -> sparsity of each layer."""

import math
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

Shapes = Mapping[str, tuple[int, ...]]


def uniform(shapes: Shapes, sparsity: float) -> dict[str, float]:
    """The same sparsity in every layer."""
    return dict.fromkeys(shapes, sparsity)


def uniform_plus(shapes: Shapes, sparsity: float) -> dict[str, float]:
    """Uniform, with a dense first convolution and at least 20 % of the last layer kept.

    Gale, Elsen, Hooker 2019 (arXiv 1902.09574), in the form of LAMP's code (arXiv 2010.07611): the other
    layers take the same, higher sparsity, so that the total is met.

    Raises:
      ValueError: if the others would have to be pruned by more than everything.
    """
    names = list(shapes)
    sizes = {n: math.prod(s) for n, s in shapes.items()}
    result = dict.fromkeys(names, 0.0)
    remove = sparsity * sum(sizes.values())
    pool = [n for i, n in enumerate(names) if not (i == 0 and len(shapes[n]) == 4)]
    share = remove / sum(sizes[n] for n in pool)
    last = names[-1]
    if share > 0.8 and len(pool) > 1:
        result[last] = 0.8
        pool.remove(last)
        share = (remove - 0.8 * sizes[last]) / sum(sizes[n] for n in pool)
    if share > 1:
        raise ValueError(
            f"sparsity.target={sparsity:.12g}: out of reach of sparsity.allocation=uniform_plus, which "
            "leaves the first convolution dense and 20 % of the last layer; lower it or use "
            "sparsity.allocation=uniform"
        )
    return result | dict.fromkeys(pool, share)


def er(shapes: Shapes, sparsity: float) -> dict[str, float]:
    """Erdos-Renyi: density proportional to (in + out) / (in * out), kernel size ignored.

    Mocanu et al. 2018 (arXiv 1707.04780); layers whose density would exceed 1 are dense (arXiv 1911.11134,
    sec. 3).
    """
    return _erdos_renyi(shapes, sparsity, {n: sum(s[:2]) / math.prod(s[:2]) for n, s in shapes.items()})


def erk(shapes: Shapes, sparsity: float) -> dict[str, float]:
    """Erdos-Renyi-Kernel: density proportional to (in + out + kh + kw) / (in * out * kh * kw).

    Evci et al. 2020 (arXiv 1911.11134, sec. 3); layers whose density would exceed 1 are dense and the rest is
    solved again. Linear layers as in ER.
    """
    return _erdos_renyi(shapes, sparsity, {n: sum(s) / math.prod(s) for n, s in shapes.items()})


def _erdos_renyi(shapes: Shapes, sparsity: float, raw: dict[str, float]) -> dict[str, float]:
    sizes = {n: math.prod(s) for n, s in shapes.items()}
    dense: set[str] = set()
    while True:
        rest = [n for n in shapes if n not in dense]
        if not rest:
            return dict.fromkeys(shapes, 0.0)
        budget = (1 - sparsity) * sum(sizes.values()) - sum(sizes[n] for n in dense)
        eps = budget / sum(raw[n] * sizes[n] for n in rest)
        top = max(raw[n] for n in rest)
        if eps * top <= 1:
            return {n: 0.0 if n in dense else 1 - eps * raw[n] for n in shapes}
        dense |= {n for n in rest if raw[n] == top}


def by_rates(shapes: Shapes, sparsity: float, *, rates: Mapping[str, float]) -> dict[str, float]:
    """Densities that pruning each layer by its own rate per round gives at this overall sparsity.

    After k rounds layer l keeps (1 - rates[l])^k, as in the lottery-ticket paper (arXiv 1803.03635, fig. 2),
    where the output layer is pruned at half the rate. Written with a real number k, the densities are a
    function of the overall sparsity alone, found by bisection.

    Args:
      rates: share of the remaining weights removed per round, in [0, 1), for every layer; 0 leaves it dense.

    Raises:
      ValueError: if the layers with rate 0 hold more weights than may be kept.
    """
    sizes = {n: math.prod(s) for n, s in shapes.items()}
    keep = (1 - sparsity) * sum(sizes.values())

    def kept(k: float) -> float:
        return sum(size * (1 - rates[n]) ** k for n, size in sizes.items())

    untouched = sum(size for n, size in sizes.items() if rates[n] == 0)
    if keep < untouched or (keep == untouched and sparsity > 0):
        raise ValueError(
            f"sparsity.target={sparsity:.12g}: out of reach, layers with rate 0 in sparsity.layer_rates hold "
            f"{untouched / sum(sizes.values()):.2%} of the prunable weights; lower the target or give them "
            "a rate"
        )
    low, high = 0.0, 1.0
    while kept(high) > keep:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if kept(middle) > keep else (low, middle)
    return {n: 1 - (1 - rates[n]) ** low for n in shapes}


def resolve_layers(
    option: str, by_pattern: Mapping[str, float], names: Sequence[str], model: nn.Module
) -> dict[str, float]:
    """Layer name -> value of the last pattern that matches it.

    Args:
      option: the key under `sparsity`, for messages.
      by_pattern: fnmatch pattern on parameter names, or "head" for the classifier -> value.
      names: prunable parameters.
      model: knows its classifier's name.

    Raises:
      ValueError: if a pattern matches nothing, or a layer matches none.
    """
    head = f"{getattr(model, 'head', 'head')}.weight"
    values: dict[str, float] = {}
    for pattern, value in by_pattern.items():
        matched = [n for n in names if fnmatchcase(n, head if pattern == "head" else pattern)]
        if not matched:
            raise ValueError(f"sparsity.{option}.{pattern}: matches no prunable layer, such as {names[0]}")
        values |= dict.fromkeys(matched, value)
    if missing := [n for n in names if n not in values]:
        raise ValueError(
            f"sparsity.{option}: gives no value for layer {missing[0]}; add a pattern such as '*'"
        )
    return {n: values[n] for n in names}


def sparsity_after_rounds(run: Any, *, rates: Mapping[str, float], rounds: int) -> float:
    """Overall sparsity when every layer has lost its own share of what remained, `rounds` times.

    Args:
      run: its masks say what is prunable.
      rates: layer pattern -> share per round (see `resolve_layers`).
      rounds: at least 0.
    """
    per_layer = resolve_layers("layer_rates", rates, list(run.masks), run.model)
    kept = sum(m.numel() * (1 - per_layer[n]) ** rounds for n, m in run.masks.items())
    return 1 - kept / run.masks.total


ALLOCATIONS = {"uniform": uniform, "uniform_plus": uniform_plus, "er": er, "erk": erk}


def spread(sparsities: Mapping[str, float], sizes: Mapping[str, int], sparsity: float) -> dict[str, int]:
    """Whole numbers to keep per layer that add up to round((1 - sparsity) * N).

    Every layer gets its exact share rounded down; what is missing goes to the largest remainders, one each
    (equal remainders: the earlier layer).
    """
    exact = {n: (1 - sparsities[n]) * size for n, size in sizes.items()}
    counts = {n: min(math.floor(e + 1e-9), sizes[n]) for n, e in exact.items()}
    missing = round((1 - sparsity) * sum(sizes.values())) - sum(counts.values())
    order = sorted(sizes, key=lambda n: counts[n] - exact[n])
    while missing:
        step = 1 if missing > 0 else -1
        movable = [n for n in (order if step > 0 else order[::-1]) if 0 <= counts[n] + step <= sizes[n]]
        if not movable:
            raise ValueError(f"sparsity={sparsity:.12g}: cannot be spread over {len(sizes)} layers")
        for n in movable[: abs(missing)]:
            counts[n] += step
            missing -= step
    return counts


def lamp_scores(scores: Tensor, alive: Tensor | None = None) -> Tensor:
    """LAMP: squared score over the sum of the squared scores that are not smaller, within one layer.

    Lee et al. 2021 (arXiv 2010.07611, eq. 2), with |w| as the score. The largest of each layer gets 1, so a
    global ranking empties no layer. Among equal scores the lower flat index counts as the larger.

    Args:
      scores: non-negative, any shape.
      alive: bool tensor of the same shape; pruned entries get -inf and take no part.

    Returns:
      float64 tensor of the same shape, in (0, 1] or 0 for a score of 0.
    """
    flat = scores.flatten().double()
    if alive is not None:
        flat = flat.masked_fill(~alive.flatten(), 0.0)
    order = torch.sort(flat, descending=True, stable=True).indices
    squares = flat[order].square()
    result = torch.empty_like(flat)
    result[order] = torch.nan_to_num(squares / squares.cumsum(0), nan=0.0)
    if alive is not None:
        result = result.masked_fill(~alive.flatten(), -torch.inf)
    return result.view(scores.shape)


def normalized(scores: Tensor, alive: Tensor | None = None, *, by: str) -> Tensor:
    """Scores of a layer over their own mean or maximum, so that layers of large weights do not take all.

    A global ranking of channels by plain norms empties the layers whose weights are small; Torch-Pruning
    divides the scores of each group by their mean for this reason.

    Args:
      scores: any shape; the mean is that of their magnitudes.
      alive: bool tensor of the same shape; pruned entries take no part.
      by: "mean" or "max".

    Returns:
      float64 tensor of the same shape; unchanged where all scores are 0.
    """
    wide = scores.double()
    there = wide.abs() if alive is None else wide[alive].abs()
    scale = (there.mean() if by == "mean" else there.max()) if there.numel() else wide.new_zeros(())
    return torch.where(scale > 0, wide / scale, wide)


def floors(sizes: Mapping[str, int], min_kept: int, max_ratio: float | None = None) -> dict[str, int]:
    """Entries that each layer keeps at least: `min_kept`, and what is left when `max_ratio` of it is gone."""
    share = 0.0 if max_ratio is None else 1 - max_ratio
    return {n: min(size, max(min_kept, math.ceil(share * size - 1e-9))) for n, size in sizes.items()}


def within_alive(counts: dict[str, int], alive: dict[str, int]) -> dict[str, int]:
    """Counts no larger than what is alive, same total.

    A layer may have fewer alive than an allocation leaves it: by one through rounding, by more where a
    companion has removed weights as well. What is missing is kept in the other layers instead, in proportion
    to what they would have lost (largest remainder first, then the earlier layer).
    """
    missing = sum(max(c - alive[n], 0) for n, c in counts.items())
    counts = {n: min(c, alive[n]) for n, c in counts.items()}
    room = {n: alive[n] - c for n, c in counts.items()}
    whole = sum(room.values())
    if missing > whole:
        raise ValueError("sparsity: more weights asked for than are alive; pruned weights do not return")
    if not missing:
        return counts
    exact = {n: missing * r / whole for n, r in room.items()}
    extra = {n: int(e) for n, e in exact.items()}
    order = sorted(room, key=lambda n: extra[n] - exact[n])
    for n in order[: missing - sum(extra.values())]:
        extra[n] += 1
    return {n: c + extra[n] for n, c in counts.items()}
