"""P7 to P10: one global magnitude pruning event against others' schemes, its worst case, its exactness."""

import copy
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from benchmarks import peers
from benchmarks.parts import Parts, synthetic
from benchmarks.timing import Case, Row, alternate, at_least, at_most, clocked, control
from prunebench.core.masks import Masks
from prunebench.core.selection import select
from prunebench.criteria.magnitude import magnitude
from prunebench.machine import keep_freed_memory

GRID = 200  # weights rounded to multiples of 1 / GRID have a few dozen distinct magnitudes
PER_ROUND = 0.2  # share of what is alive that a later round removes

Weights = dict[str, Tensor]


class Event:
    """A pruning event that can be had again and again: scores, threshold, masks, zeroing.

    Args:
      p: the run.
      weights: name -> the dense weights, put back before every event.
      prior: sparsity before the event.
      ties: round the weights, so that most scores are tied.
    """

    def __init__(self, p: Parts, weights: Weights, *, prior: float = 0.0, ties: bool = False):
        self.p, self.run, self.prior = p, p.run, prior
        self.sparsity = 1 - (1 - prior) * (1 - PER_ROUND) if prior else 0.8
        self.weights = {n: (w * GRID).round() / GRID if ties else w for n, w in weights.items()}
        magnitudes = {n: w.abs() for n, w in self.weights.items()}
        self.masks = dict(select(magnitudes, prior, min_kept=1)) if prior else None
        if self.masks is not None:
            self.weights = {n: w * self.masks[n] for n, w in self.weights.items()}

    def prepare(self) -> None:
        """Weights and masks as they are before the event, and memory as `prune-run` has it."""
        run = self.run
        keep_freed_memory()
        with torch.no_grad():
            for name, weight in run.model.named_parameters():
                if name in self.weights:
                    weight.copy_(self.weights[name])
        run.masks = Masks.ones(run.model, self.weights) if self.masks is None else Masks(dict(self.masks))
        run.masks.zero_weights_(run.model)  # training before the event has done so, too
        run.clock.cycle = int(self.masks is not None)

    def ours(self) -> Case:
        """The method's own pruning event."""

        def work(_: None) -> None:
            self.p.method.prune(self.run, self.sparsity)

        return clocked(work, self.prepare)

    def theirs(self, event: Callable[[nn.Module, float], None], amount: float) -> Case:
        """Another scheme's event on a copy in the usual memory format."""
        self.prepare()
        model = peers.contiguous_copy(self.run.model)

        def fresh() -> nn.Module:
            peers.usual_memory()
            new = copy.deepcopy(model)
            if self.masks is not None and event is peers.global_unstructured:
                for name, module in new.named_modules():
                    if f"{name}.weight" in self.masks:
                        prune.custom_from_mask(module, "weight", self.masks[f"{name}.weight"].contiguous())
            return new

        return clocked(lambda new: event(new, amount), fresh)

    def error(self) -> int:
        """Zeros in the masks beyond or short of the number asked for, and weights that came back."""
        self.prepare()
        self.p.method.prune(self.run, self.sparsity)
        masks, total = self.run.masks, self.run.masks.total
        wrong = abs(masks.kept - round((1 - self.sparsity) * total))
        params = dict(self.run.model.named_parameters())
        wrong += sum(int(torch.count_nonzero(params[n] * ~m)) for n, m in masks.items())
        if self.masks is not None:
            wrong += sum(int(torch.count_nonzero(m & ~self.masks[n])) for n, m in masks.items())
        return wrong


def dense_weights(p: Parts) -> Weights:
    """Copies of the prunable weights, in their memory format."""
    return {n: w.detach().clone() for n, w in p.run.model.named_parameters() if n in p.run.masks}


def measure(rounds: Callable[[int], int]) -> Iterator[Row]:
    """Rows of the group."""
    p = synthetic("resnet18", "dataset.channels=3", "dataset.size=32", images=8, batch_size=8)
    weights = dense_weights(p)
    yield from _exact(p, weights)
    yield from _first_round(Event(p, weights), rounds(12))
    for prior, bar, ambitious in ((0.5, 10, 14), (0.8, 10, 20), (0.95, 10, 40)):
        yield from _later_round(Event(p, weights, prior=prior), rounds(7), bar, ambitious)
    yield from _spread(p, weights, rounds(30))
    yield from _transformer(rounds(3))


def _first_round(event: Event, rounds: int) -> Iterator[Row]:
    seconds = alternate(
        {
            "ours": event.ours(),
            "again": event.ours(),
            "global": event.theirs(peers.global_unstructured, event.sparsity),
            "quantile": event.theirs(peers.quantile_event, event.sparsity),
            "sort": event.theirs(peers.sorting_event, event.sparsity),
        },
        rounds,
    )
    ours = seconds["ours"]
    yield control("our event, resnet18", seconds, "ours", "again")
    what = "global_unstructured / our event: resnet18, first round"
    yield at_least("P7", what, seconds["global"] / ours, 20, 40)
    yield at_least("P8", "ShrinkBench's scheme / our event", seconds["quantile"] / ours, 3.5, 4.5)
    yield at_least("P8", "open_lth's scheme / our event", seconds["sort"] / ours, 2.5, 3.5)


def _later_round(event: Event, rounds: int, bar: float, ambitious: float) -> Iterator[Row]:
    seconds = alternate(
        {"ours": event.ours(), "global": event.theirs(peers.global_unstructured, PER_ROUND)}, rounds
    )
    what = f"global_unstructured / our event: resnet18, {event.prior:.0%} pruned before"
    yield at_least("P7", what, seconds["global"] / seconds["ours"], bar, ambitious)


def _transformer(rounds: int) -> Iterator[Row]:
    p = synthetic(
        *("timm", "model.name=vit_base_patch16_224", "dataset.channels=3", "dataset.size=224"),
        *("dataset.pad=0", "dataset.num_classes=1000"),
        images=1000,
        batch_size=8,
    )
    event = Event(p, dense_weights(p))
    seconds = alternate(
        {"ours": event.ours(), "global": event.theirs(peers.global_unstructured, event.sparsity)}, rounds
    )
    what = "global_unstructured / our event: ViT-B/16, first round"
    yield at_least("P7", what, seconds["global"] / seconds["ours"], 40, 70)


def _exact(p: Parts, weights: Weights) -> Iterator[Row]:
    wrong = 0
    for ties in (False, True):
        for prior in (0.0, 0.5, 0.8, 0.95):
            wrong += Event(p, weights, prior=prior, ties=ties).error()
    event = Event(p, weights)
    for sparsity in (0.0, 1e-7, 0.5, 0.999, 1 - 30 / p.run.masks.total):
        event.sparsity = sparsity
        wrong += event.error()
    what = "weights too many or too few: ties, prior zeros, 0 to 99.9997 %"
    yield at_most("P9", what, wrong, 0, 0, unit="")
    scores = {n: torch.zeros_like(s) for n, s in magnitude(p.run).items()}
    masks = select(scores, 0.9)
    flat = np.concatenate([m.flatten().numpy() for m in masks.values()])
    wrong = int(np.count_nonzero(flat != (np.arange(flat.size) < masks.kept)))
    yield at_most("P9", "weights out of order: all scores equal, channels_last", wrong, 0, 0, unit="")


def _spread(p: Parts, weights: Weights, rounds: int) -> Iterator[Row]:
    events = {"no ties": Event(p, weights), "ties": Event(p, weights, ties=True)}
    events |= {f"{prior:.0%} pruned": Event(p, weights, prior=prior) for prior in (0.5, 0.8, 0.95)}
    seconds = alternate({name: event.ours() for name, event in events.items()}, rounds)
    table = np.stack(list(seconds.values()))
    medians = np.median(table, 1)
    said = ", ".join(f"{name} {1e3 * m:.0f} ms" for name, m in zip(seconds, medians))
    print(f"      our event on resnet18: {said}")
    slow, fast = medians.argmax(), medians.argmin()
    yield at_most("P10", "slowest / fastest of our events", table[slow] / table[fast], 4, 2)
