"""The state of one run, and nothing else: what a checkpoint holds."""

import hashlib
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from prunebench.core.compact import Shrunk
from prunebench.core.masks import Masks


def seed_of(*key: object) -> int:
    """63-bit seed that depends on nothing but the key."""
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def generator(*key: object) -> torch.Generator:
    """CPU generator seeded by the key: the same draws on every machine, and nothing to checkpoint."""
    return torch.Generator().manual_seed(seed_of(*key))


@contextmanager
def seeded(*key: object) -> Iterator[None]:
    """Seed torch's global CPU generator by the key inside the block, and restore its state after it."""
    state = torch.get_rng_state()
    torch.default_generator.manual_seed(seed_of(*key))
    try:
        yield
    finally:
        torch.set_rng_state(state)


@dataclass
class Clock:
    """Where a run stands. `step == 0` means that the phase has not been entered."""

    phase: int = 0  # index into the plan
    step: int = 0  # optimizer steps done in this phase
    steps: int = 0  # length of this phase, fixed when it is entered
    total: int = 0  # optimizer steps done in the run
    place: int = 0  # of these, steps on the way to this network: what batches and random draws depend on
    began: int = 0  # `place` at which the last phase of the plan itself was entered
    resumes: int = 0  # during a phase aside: `place` at which the plan goes on after it
    cycle: int = 0  # pruning events so far
    norm_drop: float = 0.0  # ||W - W^p|| / ||W|| at the last pruning event, all weights and biases
    pruned: float = 0.0  # share of the alive prunable weights removed at the last event
    stop_phase: bool = False  # a method or the patience rule may end the phase
    best: float = -math.inf  # best validation in this phase: top-1, or minus the loss
    best_step: int = 0  # step of the phase at which it was reached
    max_lr: float = 0.0  # largest learning rate in this phase so far

    def tick(self) -> None:
        """Count one optimizer step."""
        self.step += 1
        self.total += 1
        self.place += 1

    def next_phase(self) -> None:
        """Move to the start of the next phase."""
        self.phase += 1
        self.step = self.steps = self.best_step = 0
        self.stop_phase, self.best, self.max_lr = False, -math.inf, 0.0


@dataclass(frozen=True)
class Progress:
    """All that a learning-rate schedule may look at."""

    step: int  # 0-based step in the phase
    steps: int  # length of the phase
    steps_per_epoch: int
    cycle: int = 0  # pruning events so far
    cycles: int = 1  # pruning events of the whole plan, and the training before the first
    density: float = 1.0  # kept share of the prunable weights
    peak: float | None = None  # learning rate that the plan gives this phase in place of `optimizer.lr`
    norm_drop: float = 0.0  # see Clock
    pruned: float = 0.0  # see Clock


class Run:
    """Everything that a checkpoint holds, and what the methods act on.

    Args:
      model: the network, on its device. Its parameter names never change during a run.
      data: batches, evaluation and scoring images (`prunebench.data.loader.Data`).
      loss_fn: (logits, targets) -> mean loss of the batch, a scalar tensor.
      prunable: names of the parameters that masks may cover.
      seed: all randomness of the run is a function of it.
      fresh_state: builds the state dict of a freshly initialised model from any key; the key ("init",)
        gives the weights that the run started from.
      precision: autocast dtype of forward and loss, or None for full precision.
      rank, world: this process and the number of processes that share every batch.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        data: Any,
        loss_fn: Callable[[Tensor, Tensor], Tensor],
        prunable: list[str],
        seed: int,
        fresh_state: Callable[..., dict[str, Tensor]] | None = None,
        precision: torch.dtype | None = None,
        rank: int = 0,
        world: int = 1,
    ):
        self.model, self.data, self.loss_fn, self.seed = model, data, loss_fn, seed
        self.network: nn.Module = model  # what forward calls: the model, or a wrapper of it (DDP, compiled)
        self.device = next(model.parameters()).device
        self.precision, self.rank, self.world = precision, rank, world
        self.shrinks = False  # whether pruned channels are cut out for training (trainer.shrink)
        self.shrunk: Shrunk | None = None  # the smaller network of this phase; the model lags behind it
        self.masks = Masks.ones(model, prunable)
        self.zeros_hold = True  # False: a step has moved weights that these masks set to 0 when they were new
        self.optimizer: torch.optim.Optimizer | None = None
        self.graphed_step: Callable[..., Tensor] | None = None  # prunebench.core.graph.GraphedStep
        self.clock = Clock()
        self.cycles = 1  # pruning events of the plan, and the training before the first
        self.goal: float | None = None  # sparsity at the end of this phase, of a method that prunes within it
        self.scoring: tuple[int, Masks] | None = None  # MACs of this phase's pruning event, masks before it
        self.snapshots: dict[str, dict[str, Tensor]] = {}
        self._fresh_state = fresh_state

    def rng(self, purpose: str) -> torch.Generator:
        """CPU generator that depends only on (seed, purpose, `clock.place`): no draw disturbs another."""
        return generator(self.seed, purpose, self.clock.place)

    def seed_step(self) -> None:
        """Reseed torch's global generators, which dropout draws from, for this step.

        `torch.manual_seed` would do the same at 300 times the price (it visits every backend).
        """
        seed = seed_of(self.seed, "step", self.clock.place, self.rank)
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.default_generators[self.device.index or 0].manual_seed(seed)

    def autocast(self) -> torch.autocast:
        """Context for forward and loss."""
        return torch.autocast(self.device.type, dtype=self.precision, enabled=self.precision is not None)

    def progress(self, peak: float | None = None) -> Progress:
        """What the learning-rate schedule sees at this step, in a phase with this `peak`."""
        c = self.clock
        return Progress(
            step=c.step,
            steps=c.steps,
            steps_per_epoch=self.data.steps_per_epoch,
            cycle=c.cycle,
            cycles=self.cycles,
            peak=peak,
            density=1.0 - self.masks.sparsity,
            norm_drop=c.norm_drop,
            pruned=c.pruned,
        )

    def set_masks(self, masks: Masks) -> None:
        """Replace the masks, and zero weights and optimizer state of what is pruned now."""
        self.replace_masks(masks)
        masks.zero_weights_(self.model)
        if self.optimizer is not None:
            masks.zero_optimizer_(self.model, self.optimizer)

    @property
    def trained(self) -> nn.Module:
        """The network whose parameters the optimizer owns: the model, or what stands in its place."""
        return self.model if self.shrunk is None else self.shrunk.network

    def shrink(self, method: Any) -> None:
        """Cut the dead channels out for the training of this phase, if that is wanted and there are any.

        The optimizer is to be built after it. Masks, snapshots, checkpoints and measurements stay those of
        the whole model, into which `update_model` brings the trained values.
        """
        alive = method.alive(self) if self.shrinks else None
        if alive and not all(bool(a.all()) for a in alive.values()):
            for p in self.model.parameters():
                p.grad = None
            self.shrunk = Shrunk(self.model, alive)
            self.network = self.shrunk.network

    def update_model(self) -> None:
        """Bring the values of the smaller network, if one is trained, into the model."""
        if self.shrunk is not None:
            self.shrunk.give_(self.model)

    def unshrink(self) -> None:
        """End the training of the smaller network; the model has its values."""
        if self.shrunk is not None:
            self.update_model()
            self.shrunk, self.network = None, self.model

    def replace_masks(self, masks: Masks) -> None:
        """Replace the masks alone, for methods without hard masks, which zero weights when they want it."""
        masks.inherit_(self.masks)
        self.masks = masks

    def initial_state(self) -> dict[str, Tensor]:
        """State dict that the run started from."""
        return self.snapshots["init"] if "init" in self.snapshots else self._fresh_state("init")

    def snapshot(self, name: str) -> None:
        """Keep a copy of the network's parameters and buffers under a name."""
        self.update_model()
        self.snapshots[name] = {k: v.detach().clone() for k, v in self.model.state_dict().items()}

    def restore(self, name: str) -> None:
        """Load "random" (new initial weights), "init" (those of the start) or a snapshot, in place.

        Raises:
          KeyError: if there is no such snapshot.
        """
        if name == "random":
            state = self._fresh_state("reinit", self.clock.place, self.clock.cycle)
        elif name == "init":
            state = self.initial_state()
        else:
            state = self.snapshots[name]
        self.model.load_state_dict(state)
        if self.shrunk is not None:
            self.shrunk.take_(self.model)

    def step_aside(self) -> None:
        """Keep what the plan goes on with after a phase aside, and stand where the phase before it began."""
        self.snapshot("aside")
        self.snapshots["aside masks"] = {n: m.clone() for n, m in self.masks.items()}
        self.clock.resumes, self.clock.place = self.clock.place, self.clock.began

    def step_back(self) -> None:
        """Stand where the plan goes on, as if the phase aside had not been."""
        self.go_back("aside")
        self.clock.place = self.clock.resumes

    def go_back(self, name: str) -> None:
        """Restore a snapshot and the masks that were kept with it, if any, and forget both."""
        if masks := self.snapshots.pop(f"{name} masks", None):
            self.set_masks(Masks(masks, self.masks.tied))
        self.restore(name)
        del self.snapshots[name]

    def state_dict(self) -> dict[str, Any]:
        """Plain containers and tensors; the tensors are the live ones, not copies."""
        self.update_model()
        return {
            "model": self.model.state_dict(),
            "masks": self.masks.state_dict(),
            "optimizer": self.optimizer.state_dict() if self.optimizer is not None else None,
            "clock": asdict(self.clock),
            "snapshots": self.snapshots,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load what `state_dict` gave. The optimizer must have been built already when it has a state."""
        self.model.load_state_dict(state["model"])
        on_device = {
            kind: {n: m.to(self.device) for n, m in masks.items()} for kind, masks in state["masks"].items()
        }
        self.masks = Masks(**on_device)
        self.clock = Clock(**{"place": state["clock"]["total"]} | state["clock"])  # earlier ones lack it
        self.snapshots = {
            name: {k: v.to(self.device) for k, v in values.items()}
            for name, values in state["snapshots"].items()
        }
        if state["optimizer"] is not None and self.optimizer is not None:
            self.optimizer.load_state_dict(state["optimizer"])
