"""Lookahead: magnitude weighted by the layers before and after."""

import torch
from torch import Tensor

from prunebench.core.run import Run
from prunebench.core.units import Junction


def lookahead(run: Run, *, normalize: bool = False) -> dict[str, Tensor]:
    """|w| * ||weights that write its input||_F * ||weights that read its output||_F.

    Park, Lee, Mo, Shin 2020 (arXiv 2002.04809; LAP, method/laprune.py of alinlab/lookahead_pruning, whose
    score is the square): for output channel j and input channel k, the norms are those of the previous
    layer's weights into its channel k and of the next layer's out of its channel j. A factor without a layer
    is 1. A linear layer that reads a flattened map has as many inputs per channel as the map has pixels: they
    share the channel's factor, and the norm out of the channel is taken over all of them.

    Where streams meet, the squared norms of the adjacent layers on both branches are added, an identity
    shortcut counting 1 (ours; the public code covers chains). A zero-padding shortcut counts 1
    for the channels that it copies. Which layers are adjacent is said by the model (`junctions`). BatchNorm
    is not looked at (that would be LAP-BN), nor are activations (LAP-act). Pruned neighbours count as 0.

    The paper prunes layer by layer, which is sparsity.allocation=uniform; its global variant
    (method/global_prune.py) divides the scores of every layer by their norm, which is normalize=true with
    sparsity.allocation=global. Biases and normalisation are not pruned.

    Args:
      normalize: divide the scores of every layer by their Frobenius norm.

    Returns:
      parameter name -> score of the parameter's shape, at least 0; 0 for pruned weights.

    Raises:
      ValueError: if the model does not say which layers are neighbours (attention, timm models).
    """
    params = {n: p.detach() for n, p in run.model.named_parameters()}
    before, after = {}, {}  # name -> squared norm for every input channel, output channel
    for junction in _junctions(run):
        into, out_of = junction_norms(junction, params)
        for name in junction.used_by:
            before[name] = into.repeat_interleave(params[name].shape[1] // len(into))
        after |= dict.fromkeys(junction.made_by, out_of)
    scores = {}
    for name in run.masks:
        score, rest = params[name].abs(), [1] * (params[name].ndim - 2)
        if name in before:
            score = score * before[name].sqrt().view(1, -1, *rest)
        if name in after:
            score = score * after[name].sqrt().view(-1, 1, *rest)
        scores[name] = score / score.norm() if normalize and bool(score.any()) else score
    return scores


def junction_norms(junction: Junction, params: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Squared norm of what writes each channel, and of what reads it; [channels] each."""
    into = sum(params[name].square().flatten(1).sum(1) for name in junction.made_by)
    first, end = junction.shortcut_in
    into[first:end] += 1
    out_of = torch.full_like(into, float(junction.shortcut_out))
    for name in junction.used_by:
        columns = params[name].square().transpose(0, 1).reshape(len(into), -1)  # k inputs of a channel
        out_of = out_of + columns.sum(1)
    return into, out_of


def check_lookahead(run: Run, *, normalize: bool) -> None:
    """Refuse a network whose layers have no neighbours, before training."""
    _junctions(run)


def _junctions(run: Run) -> list[Junction]:
    declared = getattr(run.model, "junctions", None)
    try:
        if declared is None:
            raise ValueError(f"{type(run.model).__name__} does not say which layers are neighbours")
        return declared()
    except ValueError as error:
        way_out = "use criterion=magnitude or lamp, or a model such as resnet18 or vgg16_bn"
        raise ValueError(f"criterion=lookahead: {error}; {way_out}") from None


lookahead.check = check_lookahead
