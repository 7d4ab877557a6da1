"""Scores of whole channels from gates that multiply their activations."""

import torch
import torch.nn.functional as F
from torch import Tensor

from prunebench.core.feeds import Call, Calls, hooked
from prunebench.core.run import Run
from prunebench.criteria.activation import activations, check_activations
from prunebench.criteria.channels import channel_means, channel_units
from prunebench.criteria.gradient import network, scoring_images


def taylor_gate(run: Run, *, granularity: str, batches: int = 4) -> dict[str, Tensor]:
    """(dL/dz)^2 at z = 1, z a gate that multiplies the channel's activation; the mean over minibatches.

    Molchanov et al. 2019 (arXiv 1906.10771, Taylor-FO on gates behind BatchNorm and ReLU; method 22 of
    NVlabs/Taylor_pruning): to first order, the squared change of the loss when the channel is removed. dL/dz
    sums activation times gradient over images and positions, L is the mean loss of the minibatch. A residual
    stream has one gate for all its activations; its square is divided by their number, as in the authors'
    code, which on ImageNet ResNets divides all other gates by 3 as well (a multiplier that is never put back;
    not here). Without BatchNorm and bias it is criterion=taylor with form=unit. Differs: scores are taken at
    the pruning event, from the trained network in eval mode, not averaged over the steps of training with
    100 channels going every 30 steps; no moving average over events.

    Args:
      granularity: what is pruned, filter or neuron.
      batches: minibatches of the training batch size, at least 1.

    Returns:
      unit name -> float64 score of each channel, at least 0; 0 for removed channels.

    Raises:
      ValueError: if there are too few images, or a unit has no activation.
    """
    check_taylor_gate(run, granularity=granularity, batches=batches)
    units = channel_units(run, granularity, "taylor_gate")
    feeds, of_units = activations(run, units)
    behind, outputs = getattr(run.model, "activation_of", {}), {}
    modules = {name: run.model.get_submodule(behind.get(name, name)) for name, _ in feeds}
    total = {u.name: torch.zeros(u.size, dtype=torch.float64, device=run.device) for u in units}

    def keep(call: Call, output: Tensor) -> None:
        outputs[call] = output

    with network(run, "eval") as forward:
        for x, y in scoring_images(run, batches=batches):
            with hooked(modules, Calls(keep)):
                loss = F.cross_entropy(forward({}, x.detach().requires_grad_()), y)
            wanted = list(dict.fromkeys(call for calls in of_units.values() for call, _ in calls))
            grads = dict(zip(wanted, torch.autograd.grad(loss, [outputs[call] for call in wanted])))
            for unit in units:
                gate = torch.zeros_like(total[unit.name])
                for call, name in of_units[unit.name]:
                    product = (outputs[call].detach() * grads[call]).movedim(feeds[call].axis, 0).flatten(1)
                    rows = product.sum(1, dtype=torch.float64)
                    # the sum, not the mean, over the rows that make a channel
                    each = unit.places(name, 0, len(rows)).to(rows.device)
                    count = each[each >= 0].bincount(minlength=unit.size)
                    gate += channel_means(rows, unit, name) * count
                total[unit.name] += gate.square() / batches
    return {u.name: total[u.name] / len(of_units[u.name]) for u in units}


def check_taylor_gate(run: Run, *, granularity: str, batches: int) -> None:
    """Refuse what `taylor_gate` cannot do with this network, before training."""
    check_activations(run, granularity=granularity, criterion="taylor_gate", batches=batches)


taylor_gate.check = check_taylor_gate
