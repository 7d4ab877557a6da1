"""The one training loop: every plan of every method runs here."""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from prunebench.core import parallel
from prunebench.core.allocation import spread, uniform
from prunebench.core.counting import MultiplyAdds
from prunebench.core.handover import give_state, take_state
from prunebench.core.masks import Masks
from prunebench.core.method import Method
from prunebench.core.phase import Phase, cycles, parse_length
from prunebench.core.run import Run

MakeOptimizer = Callable[[Run, Method], torch.optim.Optimizer]


class Observer(Protocol):
    """What the loop tells while it runs (`prunebench.record.Recorder`)."""

    def pruned(self, run: Run, method: Method, phase: Phase) -> None:
        """New masks are applied to the weights; nothing is restored yet."""

    def entered(self, run: Run, method: Method, phase: Phase) -> None:
        """A phase has begun: pruned and restored, not trained yet."""

    def after_step(self, run: Run, method: Method, phase: Phase, loss: Tensor) -> float | None:
        """A step is done; what the phase monitors if it was measured now (higher = better), else None."""

    def settled(self, run: Run, method: Method, phase: Phase) -> None:
        """All that the step brings is done: the moment for checkpoints and for stopping."""

    def phase_end(self, run: Run, method: Method, phase: Phase) -> None:
        """A phase is trained; the clock still stands in it."""

    def between(self, run: Run, method: Method) -> None:
        """The clock stands before the next phase, or after the last."""

    def finish(self, run: Run, method: Method) -> None:
        """The run is done."""


class Sink:
    """Observer that records nothing."""

    def pruned(self, run: Run, method: Method, phase: Phase) -> None:
        """Nothing."""

    def entered(self, run: Run, method: Method, phase: Phase) -> None:
        """Nothing."""

    def after_step(self, run: Run, method: Method, phase: Phase, loss: Tensor) -> float | None:
        """Nothing."""

    def settled(self, run: Run, method: Method, phase: Phase) -> None:
        """Nothing."""

    def phase_end(self, run: Run, method: Method, phase: Phase) -> None:
        """Nothing."""

    def between(self, run: Run, method: Method) -> None:
        """Nothing."""

    def finish(self, run: Run, method: Method) -> None:
        """Nothing."""


def fit(
    plan: Sequence[Phase], run: Run, method: Method, make_optimizer: MakeOptimizer, observer: Observer
) -> None:
    """Train every phase of the plan that the clock has not passed, then finish the method.

    A run whose state was loaded from a checkpoint goes on exactly where it was.

    Args:
      plan: phases with distinct names.
      run: its clock says where to begin.
      method: attached to the run already.
      make_optimizer: builds the optimizer of each phase over the model's and the method's parameters.
      observer: is told of every step; it measures, records and may raise to end the run.
    """
    run.cycles = cycles(plan)
    while run.clock.phase < len(plan):
        phase = plan[run.clock.phase]
        if run.clock.step == 0:
            enter(phase, run, method, make_optimizer, observer)
            observer.entered(run, method, phase)
        snapshots = phase.snapshots_at(run)
        patience = None if phase.patience is None else parse_length(phase.patience, run.data.steps_per_epoch)
        while run.clock.step < run.clock.steps and not run.clock.stop_phase:
            for name in snapshots.get(run.clock.step, ()):
                run.snapshot(name)
            loss = train_step(phase, run, method)
            run.clock.tick()
            value = observer.after_step(run, method, phase, loss)
            if value is not None:
                _judge(phase, run, value, patience)
            observer.settled(run, method, phase)
        for name in snapshots.get(run.clock.steps, ()):
            run.snapshot(name)
        if phase.keep == "best" and "best" in run.snapshots:
            _take_best(run, method)
        if phase.hands_on:
            take_state(run)
        run.unshrink()
        kept = _asked_count(phase, run)
        assert kept in (None, run.masks.kept), f"{phase.name}: {run.masks.kept} kept, {kept} asked for"
        parallel.broadcast_buffers_(run.model, run.world)
        observer.phase_end(run, method, phase)
        if phase.aside:
            run.step_back()
        run.clock.next_phase()
        observer.between(run, method)
    method.finish(run)
    observer.finish(run, method)


def enter(phase: Phase, run: Run, method: Method, make_optimizer: MakeOptimizer, observer: Observer) -> None:
    """Prune, restore weights, build a new optimizer, apply the masks: the only place where a phase begins.

    The optimizer is new in every phase: momentum kept over a rewind would be wrong. It begins with the state
    of the last one where that phase hands it on.
    """
    run.goal, run.zeros_hold, run.scoring = phase.reach, True, None
    if phase.aside:
        run.step_aside()
        if phase.shuffle:
            run.set_masks(shuffled(run.masks, phase.shuffle, run))
    else:
        run.clock.began = run.clock.place
    if phase.sparsity is not None:
        _prune(phase, run, method)
        observer.pruned(run, method, phase)
    elif phase.within:
        run.clock.cycle += 1
    if phase.weights != "keep":
        run.restore(phase.weights)
    if method.hard_masks or not phase.within:
        run.masks.zero_weights_(run.model)
    run.shrink(method)
    run.optimizer = make_optimizer(run, method)
    give_state(run)
    run.clock.steps = phase.steps(run)


@torch.no_grad()
def _prune(phase: Phase, run: Run, method: Method) -> None:
    """The phase's pruning event, and what adaptive schedules want to know of it."""
    params, alive = list(run.model.parameters()), run.masks.kept
    before = [p.detach().clone() for p in params]
    scored = run.masks
    with torch.enable_grad(), MultiplyAdds() as work:
        method.prune(run, phase.sparsity)
    run.scoring = work.count, scored
    masks = parallel.from_first_rank(run.masks, run.world)
    if phase.shuffle:
        masks = shuffled(masks, phase.shuffle, run)
    if masks is not run.masks:
        run.set_masks(masks)
    moved = torch._foreach_norm(torch._foreach_sub(before, [p.detach() for p in params]))
    norm, drop = (float(torch.stack(n).norm()) for n in (torch._foreach_norm(before), moved))
    run.clock.norm_drop = drop / norm if norm else 0.0
    run.clock.pruned = (alive - run.masks.kept) / alive if alive else 0.0
    run.clock.cycle += 1


def shuffled(masks: Masks, how: str, run: Run) -> Masks:
    """Masks of the same number of weights in random places, a control (arXiv 1803.03635, app. E).

    Args:
      how: "layerwise" keeps every layer's count, "global" permutes over all layers, "even" gives every layer
        the same sparsity.
    """
    rng = run.rng("shuffle")
    sizes = {n: m.numel() for n, m in masks.items()}
    if how == "global":
        flat = torch.cat([m.flatten().cpu() for m in masks.values()])
        parts = dict(
            zip(masks, flat[torch.randperm(flat.numel(), generator=rng)].split(list(sizes.values())))
        )
    else:
        counts = masks.kept_per_layer
        if how == "even":
            shapes = {n: tuple(m.shape) for n, m in masks.items()}
            counts = spread(uniform(shapes, masks.sparsity), sizes, masks.sparsity)
        parts = {}
        for n, size in sizes.items():
            parts[n] = torch.zeros(size, dtype=torch.bool)
            parts[n][torch.randperm(size, generator=rng)[: counts[n]]] = True
    new = {n: torch.empty_like(m).copy_(parts[n].view(m.shape)) for n, m in masks.items()}
    return Masks(new, masks.tied)


def train_step(phase: Phase, run: Run, method: Method) -> Tensor:
    """One optimizer step; the batch's mean loss, detached. Nothing here waits for the device."""
    run.goal = phase.reach
    run.seed_step()
    set_learning_rate(phase, run)
    x, y = run.data.batch(run.seed, run.clock.place, rank=run.rank, world=run.world)
    if not run.model.training:  # setting the mode of every module takes 3 % of a LeNet-300 step
        run.model.train()
    if run.graphed_step is not None and len(y) == run.data.batch_size and not method.changes_step(run):
        return run.graphed_step(run, method, x, y)
    run.optimizer.zero_grad(set_to_none=True)
    with run.autocast():
        loss = method.loss(run, method.forward(run, x), y)
    if run.world > 1:
        # Ranks may hold unequal parts of the last batch; their mean gradient is to be the whole batch's.
        loss = loss * (len(y) * run.world / _batch_length(run))
    loss.backward()
    if run.world > 1:
        parallel.average_gradients_([p for g in method.param_groups() for p in g["params"]], run.world)
    method.step(run)
    return loss.detach()


def _batch_length(run: Run) -> int:
    """Images of this step's batch over all ranks: the last batch of an epoch may be smaller."""
    start = run.clock.place % run.data.steps_per_epoch * run.data.batch_size
    return min(run.data.batch_size, run.data.sizes["train"] - start)


def set_learning_rate(phase: Phase, run: Run) -> float:
    """Set this step's learning rate in every group; the multiple of the base rate."""
    factor = phase.schedule(run.progress(phase.peak))
    for number, group in enumerate(run.optimizer.param_groups):
        base = group["initial_lr"] if phase.peak is None else phase.peak
        if not number:
            run.clock.max_lr = max(run.clock.max_lr, base * factor)
        lr = base * factor * group.get("lr_scale", 1.0)
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(lr)
        else:
            group["lr"] = lr
    return factor


def _judge(phase: Phase, run: Run, value: float, patience: int | None) -> None:
    """Keep the best network so far, and end the phase when it has not got better for long enough.

    A phase that prunes while it trains is judged from where it has reached its sparsity, and only where the
    zeros are there: weights that move between two zeroings make a better, denser network.
    """
    if _asked_count(phase, run) not in (None, run.masks.kept) or not run.zeros_hold:
        run.clock.best_step = run.clock.step
    elif value > run.clock.best:
        run.clock.best, run.clock.best_step = value, run.clock.step
        if phase.keep == "best":
            run.snapshot("best")
            if phase.within:
                run.snapshots["best masks"] = {n: m.clone() for n, m in run.masks.items()}
    elif patience is not None and run.clock.step - run.clock.best_step >= patience:
        run.clock.stop_phase = True


def _take_best(run: Run, method: Method) -> None:
    """Go back to the best network of the phase, and to the masks that it had."""
    run.go_back("best")
    if method.hard_masks:
        run.masks.zero_weights_(run.model)


def _asked_count(phase: Phase, run: Run) -> int | None:
    """Weights that a phase which prunes while it trains is to keep at its end; None if that is not asked."""
    if not phase.within or phase.reach is None or phase.nearly:
        return None
    return round((1 - phase.reach) * run.masks.total)
