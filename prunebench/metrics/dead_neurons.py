"""Dead neurons: how much of what a network computes is 0, and why."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from prunebench.core.feeds import Call, Calls, Feed, hooked, rectifiers, trace
from prunebench.core.masks import Masks
from prunebench.core.method import Method
from prunebench.core.phase import Phase
from prunebench.core.run import Run
from prunebench.metrics.metric import Metric, check_at_least, probe, undisturbed

COUNTS = ("zeros", "static", "never_active", "dead_channels")
STRUCTURE = ("static", "dynamic")


class DeadNeurons(Metric):
    """Share of dead neurons on a fixed probe, in all and per activation, by structure and by data.

    A neuron is one scalar output of a ReLU-like module: one per hidden unit of a linear layer, one per
    channel and position of a convolution. It is dead for an image if that output is 0. Of a GELU, which is
    hardly ever 0, an output <= 0 counts as dead: an assumption, the paper's rule was not at hand.

    As in AP (arXiv 2212.06145; the names from its abstract, the split from memory):
      dnr: mean over the images of the share of dead neurons.
      static: share of neurons that are dead by structure: every incoming weight of their unit (a channel)
        is pruned, and no image of the probe makes it active anywhere (a BatchNorm shift or a shortcut can).
      dynamic: dnr - static.
    By data alone, where whatever is dead for every image counts as static:
      never_active: share of neurons that no image of the probe makes active.
      dynamic_observed: dnr - never_active.
    All lie in [0, 1], with static <= never_active <= dnr. `dead_channels` of `channels` have no neuron that
    is ever active.

    Incoming weights are those of the convolutions and linear layers from which a path without further layers
    and activations leads to the activation and that have as many channels: of a residual block both the last
    convolution and the projection. Where there is none (DenseNet's concatenations), static and dynamic are
    None for that activation and the two totals leave it out; `traced` is the share of neurons that they do
    cover. What is pruned is read off the masks.

    Modules of type ReLU, ReLU6 and GELU are seen, functional activations and other types are not. The network
    is in eval mode. Cost: one forward pass over the probe.

    Args:
      every: see `Metric`.
      images: size of the probe, at least 1.
    """

    def __init__(self, *, every: str = "phase", images: int = 2000):
        super().__init__(every=every)
        check_at_least(1, "images", images)
        self.images = images

    def check(self, run: Run, plan: Sequence[Phase]) -> None:
        """Refuse a network in which no activation can be seen."""
        with undisturbed(run):
            feeds = trace_feeds(run, Method())
        if not feeds:
            raise ValueError(
                "metrics.dead_neurons: the model has no ReLU or GELU module whose outputs can be counted; "
                "leave the metric out"
            )

    @torch.no_grad()
    def measure(self, run: Run, method: Method) -> dict[str, Any]:
        """Counts and shares as above, and "layers" with the same per activation."""
        feeds = trace_feeds(run, method)
        if not feeds:  # a method has put other activations in their place
            return {"neurons": 0, "layers": []}
        zeros: dict[Call, Tensor] = {}
        active: dict[Call, Tensor] = {}

        def count(call: Call, output: Tensor) -> None:
            alive = output > 0
            dead, ever = alive.numel() - torch.count_nonzero(alive), alive.any(0)
            zeros[call] = zeros[call] + dead if call in zeros else dead
            active[call] = active[call] | ever if call in active else ever

        images, calls = 0, Calls(count)
        with hooked(rectifiers(run.model), calls):
            for x, _ in probe(run, self.images):
                calls.begin()
                method.forward(run, x)
                images += len(x)
        counted = torch.stack([_count(zeros[c], active[c], feed, run.masks) for c, feed in feeds.items()])
        rows = []
        for (call, feed), counts in zip(feeds.items(), counted.tolist()):
            sizes = {"neurons": active[call].numel(), "channels": active[call].shape[feed.axis - 1]}
            rows.append(sizes | dict(zip(COUNTS, counts)))
        traced = [row for row, feed in zip(rows, feeds.values()) if feed.weights is not None]
        whole, part = _shares(_sum(rows), images), _shares(_sum(traced), images)
        layers = []
        for (call, feed), row in zip(feeds.items(), rows):
            unknown = {} if feed.weights is not None else dict.fromkeys(STRUCTURE)
            layers.append({"name": _title(call), **_shares(row, images), **unknown})
        structure = {n: part[n] for n in STRUCTURE}
        return {**whole, **structure, "traced": part["neurons"] / whole["neurons"], "layers": layers}


def trace_feeds(run: Run, method: Method) -> dict[Call, Feed]:
    """What feeds every call of a ReLU or GELU module, in order of execution, by one image of the probe.

    Raises:
      ValueError: if an activation sees more rows than images, so that they cannot be counted per image.
    """
    ((x, _),) = probe(run, 1)
    try:
        return trace(run.model, lambda images: method.forward(run, images), x)
    except ValueError as error:
        raise ValueError(f"metrics.dead_neurons: {error}; leave the metric out") from None


def _count(zeros: Tensor, active: Tensor, feed: Feed, masks: Masks) -> Tensor:
    """int64 tensor of the `COUNTS` of one call of an activation.

    Args:
      zeros: number of outputs that were 0, over all images.
      active: bool tensor of the shape of one image's output: neurons that an image made active.
      feed: what feeds it.
      masks: of the run.
    """
    channels = active.movedim(feed.axis - 1, 0).reshape(active.shape[feed.axis - 1], -1)
    gone = torch.full_like(channels[:, 0], feed.weights is not None)
    for name in feed.weights or ():
        gone &= ~masks[name].flatten(1).any(1) if name in masks else torch.zeros_like(gone)
    dead = ~channels.any(1)
    static = (gone & dead).sum() * channels.shape[1]
    return torch.stack([zeros, static, (~channels).sum(), dead.sum()])


def _sum(rows: Sequence[Mapping[str, int]]) -> dict[str, int]:
    return {name: sum(row[name] for row in rows) for name in ("neurons", "channels", *COUNTS)}


def _shares(counts: Mapping[str, int], images: int) -> dict[str, Any]:
    """What a row says of these counts, over so many images; the shares of no neuron are None."""
    neurons = counts["neurons"]
    if not neurons:
        return {"neurons": 0, **dict.fromkeys(STRUCTURE)}
    dnr = counts["zeros"] / (images * neurons)
    static, never = counts["static"] / neurons, counts["never_active"] / neurons
    return {
        "neurons": neurons,
        "dnr": dnr,
        "static": static,
        "dynamic": dnr - static,
        "never_active": never,
        "dynamic_observed": dnr - never,
        "channels": counts["channels"],
        "dead_channels": counts["dead_channels"],
    }


def _title(call: Call) -> str:
    name, number = call
    return name if number == 0 else f"{name} (call {number + 1})"
