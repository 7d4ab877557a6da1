"""Scores of channels by what their removal does to the training loss, estimated and measured."""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from prunebench.core.feeds import Call, Calls, hooked
from prunebench.core.run import Run
from prunebench.core.units import Unit, alive_channels
from prunebench.criteria.activation import behind_norms, check_activation, modules_of, places_of
from prunebench.criteria.gradient import check_images, network, scoring_images


def taylor_gate(run: Run, units: Sequence[Unit], *, batches: int = 4) -> dict[str, Tensor]:
    """(dL/dz)^2 at z = 1, z a gate that multiplies the channel's activation; the mean over minibatches.

    Molchanov et al. 2019 (arXiv 1906.10771, Taylor-FO on gates behind BatchNorm and ReLU; method 22 of
    NVlabs/Taylor_pruning): to first order, how the squared loss changes when the channel is removed. dL/dz
    sums activation times gradient over images and positions, L is the mean loss of the minibatch. A residual
    stream has one gate for all its activations; its square is divided by their number, as in the authors'
    code, which on ImageNet ResNets divides all other gates by 3 as well (a multiplier that is never put back;
    not here). Differs: scores are taken at the pruning event, from the trained network in eval mode, not
    averaged over the steps of training with 100 channels going every 30 steps; no moving average.

    Args:
      batches: minibatches of the training batch size, at least 1.

    Returns:
      unit name -> float64 [channels], at least 0.

    Raises:
      ValueError: if there are too few images, or a unit has no ReLU or GELU behind it.
    """
    check_taylor_gate(run, units, batches=batches)
    places, outputs = behind_norms(run, places_of(run, units, "taylor_gate")), {}
    total = {u.name: torch.zeros(u.size, dtype=torch.float64, device=run.device) for u in units}

    def keep(call: Call, output: Tensor) -> None:
        if call in places:
            outputs[call] = output

    with network(run, "eval") as forward:
        for x, y in scoring_images(run, batches=batches):
            with hooked(modules_of(run, places), Calls(keep)):
                loss = F.cross_entropy(forward({}, x.detach().requires_grad_()), y)
            grads = torch.autograd.grad(loss, [outputs[call] for call in places])
            gates = {name: torch.zeros_like(score) for name, score in total.items()}
            for (call, (unit, axis)), grad in zip(places.items(), grads):
                products = (outputs[call].detach() * grad).movedim(axis, 0).flatten(1)
                gates[unit] += products.sum(1, dtype=torch.float64)
            for name, gate in gates.items():
                total[name] += gate.square() / batches
    calls = [unit for unit, _ in places.values()]
    return {name: score / calls.count(name) for name, score in total.items()}


def leave_one_out(run: Run, units: Sequence[Unit], *, batches: int | None = None) -> dict[str, Tensor]:
    """Training loss without the channel and without retraining: DropNet's greedy Oracle.

    Tan & Motani 2020 (arXiv 2207.06646, sec. 5): after training, every alive unit is set to 0 by itself and
    the loss of the trained weights is taken on the training set; the unit whose loss is the lowest goes. The
    paper drops one unit per round, in one ranking over all layers: sparsity.allocation=global and a
    sparsity.rate below one over the number of units, with method=dropnet. Where more go at once, they are
    the lowest of these losses, which is not greedy any more. Plain cross-entropy, eval mode, no augmentation.

    Cost: as many passes over the images as there are alive channels, in every round; meant for networks of
    some dozens.

    Args:
      batches: batches of the training batch size; None takes all training images, as the paper.

    Returns:
      unit name -> float64 [channels], mean loss without it; 0 for dead channels.
    """
    check_leave_one_out(run, units, batches=batches)
    params = {n: p.detach() for n, p in run.model.named_parameters()}
    alive, count = alive_channels(run.masks, units), 0
    loss = {u.name: torch.zeros(u.size, dtype=torch.float64, device=run.device) for u in units}
    images = run.data.evaluation("train") if batches is None else scoring_images(run, batches=batches)
    with network(run, "eval") as forward, torch.no_grad():
        for x, y in images:
            count += len(y)
            for unit, channel in _alive(units, alive):
                logits = forward(_without(unit, channel, params), x)
                loss[unit.name][channel] += F.cross_entropy(logits.double(), y, reduction="sum")
    return {name: total / count for name, total in loss.items()}


def _alive(units: Sequence[Unit], alive: dict[str, Tensor]) -> Iterator[tuple[Unit, int]]:
    for unit in units:
        yield from ((unit, channel) for channel in alive[unit.name].nonzero().flatten().tolist())


def _without(unit: Unit, channel: int, params: dict[str, Tensor]) -> dict[str, Tensor]:
    """The parameters that make the channel, with its entries set to 0: its activation is 0."""
    silent = {}
    for name, dim in unit.made_by:
        if name in params:
            copy, each = params[name].clone(), params[name].shape[dim] // unit.size
            copy.narrow(dim, channel * each, each).zero_()
            silent[name] = copy
    return silent


def check_taylor_gate(run: Run, units: Sequence[Unit], *, batches: int) -> None:
    """Refuse what `taylor_gate` cannot do with this network, before training."""
    check_activation(run, units, batches=batches, criterion="taylor_gate")


def check_leave_one_out(run: Run, units: Sequence[Unit], *, batches: int | None) -> None:
    """Refuse too many batches before training."""
    if batches is not None:
        check_images(run, batches=batches)


for criterion in (taylor_gate, leave_one_out):
    criterion.of_units = True
taylor_gate.check, leave_one_out.check = check_taylor_gate, check_leave_one_out
