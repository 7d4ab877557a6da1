"""What a pruning method may change, and the defaults that change nothing."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from prunebench.core.masks import Masks
from prunebench.core.phase import Phase


class Method:
    """Dense training. A method overrides only the verbs it changes; ordering is ordinary Python.

    Attributes:
      state: names of the attributes that a checkpoint carries: tensors, numbers, strings, dicts and lists of
        them, and modules. Anything that a later step depends on is in it, or resuming is wrong.
      hard_masks: True where value and optimizer state of a pruned weight are 0 after every step. False where
        pruned weights go on being updated while the method prunes: a new mask sets values to 0, optimizer
        state and dense weights kept beside the network go on. If values leave 0 before the next mask,
        `run.zeros_hold` is False until then, and rows of metrics.jsonl say so.
      revives: True where a pruned weight may return.
      granularity: what is pruned as one: "weight", "kernel", "filter" or "neuron".
      during_training: True where masks change or are drawn under `protocol=during_training`, which such a
        method needs. `run.goal` is the sparsity to have reached at the phase's end; None: leave masks alone.
    """

    state: tuple[str, ...] = ()
    hard_masks: bool = True
    revives: bool = False
    granularity: str = "weight"
    during_training: bool = False

    def plan(self, phases: list[Phase]) -> list[Phase]:
        """The protocol's plan with what this method needs in it: further phases, snapshots, other lengths.

        Raises:
          ValueError: if the method cannot work under this protocol.
        """
        return phases

    def network(self, model: nn.Module) -> nn.Module:
        """The network to train, freshly initialised: the configured one, or another in its place."""
        return model

    @property
    def stands_for(self) -> tuple[nn.Module, float] | None:
        """Where another network is trained: the configured one (on the meta device), and the widths' factor.

        Sparsity, compression and speed-up of the result are then relative to it.
        """
        return None

    def check(self, run: Any, asked: Sequence[float]) -> None:
        """Refuse what cannot work with this network, before any training.

        Args:
          asked: sparsity of every pruning event and of every phase that prunes while it trains, in order.

        Raises:
          ValueError: naming the option and the way out.
        """
        if asked and type(self).prune is Method.prune and not self.during_training:
            raise ValueError(f"method: {type(self).__name__} has no pruning event; choose protocol=dense")

    def attach(self, run: Any) -> None:
        """Build what depends on the model: hooks, parameters. Once per process, before a checkpoint loads."""

    def prune(self, run: Any, sparsity: float) -> None:
        """Set masks of the given sparsity, at a phase's pruning event."""
        raise NotImplementedError

    def forward(self, run: Any, x: Tensor) -> Tensor:
        """Logits of a batch, in training and in evaluation."""
        return run.network(x)

    def loss(self, run: Any, logits: Tensor, targets: Tensor) -> Tensor:
        """Scalar training loss, the mean over the batch."""
        return run.loss_fn(logits, targets)

    def step(self, run: Any) -> None:
        """Update weights and maybe masks; dense gradients are there."""
        run.masks.step_(run.model, run.optimizer)

    def changes_step(self, run: Any) -> bool:
        """Whether this step is another than that of plain training, which a CUDA graph may replay.

        A method whose other steps are plain (`Method.step` under masks that stay) overrides this.
        """
        return not leaves_training_alone(self)

    def waits(self, run: Any) -> bool:
        """Whether this step needs numbers from the device, for which the host waits."""
        return False

    def train_macs(self, run: Any, step: int, sparse: int, dense: int) -> int:
        """Multiply-adds that training on one image takes in a step, counted as three forward passes.

        Args:
          run: its clock stands after the step.
          step: of this phase, counted from 0.
          sparse: MACs of a forward pass with the masks that the step began with.
          dense: MACs of a forward pass without masks. A method that needs the gradient of every weight in
            this step takes `2 * sparse + dense` (RigL, arXiv 1911.11134, appendix H).
        """
        return 3 * sparse

    def remarks(self, run: Any) -> list[str]:
        """What the user should know of the masks that a pruning event has made, a line each."""
        return []

    def finish(self, run: Any) -> None:
        """Fold everything into plain weights and masks, after the last phase."""

    def param_groups(self) -> list[dict[str, Any]]:
        """Further trainable parameters, with their own `lr_scale` or `weight_decay`."""
        return []

    def compact(self, run: Any) -> nn.Module:
        """The deployable network, for cost metrics."""
        return run.model

    def alive(self, run: Any) -> dict[str, Tensor] | None:
        """Unit name -> bool tensor of channels left, where whole channels are pruned; else None."""
        return None

    def channels(self, run: Any) -> tuple[int, int] | None:
        """Channels kept and in all where whole channels are pruned, else None."""
        return None

    def state_dict(self) -> dict[str, Any]:
        """The attributes named in `state`."""
        values = {name: getattr(self, name) for name in self.state}
        return {n: v.state_dict() if isinstance(v, nn.Module) else v for n, v in values.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load what `state_dict` gave; modules load in place, so that an optimizer's references stay good."""
        for name in self.state:
            old = getattr(self, name, None)
            if isinstance(old, nn.Module):
                old.load_state_dict(state[name])
            else:
                setattr(self, name, state[name])


class Reparameterized(Method):
    """Forward sees `weights(run)`; the optimizer owns the raw parameters under their own names."""

    hard_masks = False

    def weights(self, run: Any) -> dict[str, Tensor]:
        """Parameter name -> tensor to use in its place."""
        raise NotImplementedError

    def forward(self, run: Any, x: Tensor) -> Tensor:
        """Logits of the network with the weights replaced."""
        return functional_call(run.model, self.weights(run), (x,))

    def step(self, run: Any) -> None:
        """Update the raw parameters."""
        run.optimizer.step()

    @torch.no_grad()
    def finish(self, run: Any) -> None:
        """Copy the effective weights into the parameters; what is 0 is pruned."""
        params = dict(run.model.named_parameters())
        effective = self.weights(run)
        for name, weight in effective.items():
            params[name].copy_(weight)
        run.set_masks(Masks({n: (params[n] != 0) if n in effective else run.masks[n] for n in run.masks}))


class Companion(Method):
    """A method around another: every verb goes to `base` unless overridden."""

    def __init__(self, base: Method):
        self.base = base

    @property
    def hard_masks(self) -> bool:
        """As the base method's."""
        return self.base.hard_masks

    @property
    def revives(self) -> bool:
        """As the base method's."""
        return self.base.revives

    @property
    def granularity(self) -> str:
        """As the base method's."""
        return self.base.granularity

    @property
    def during_training(self) -> bool:
        """As the base method's."""
        return self.base.during_training

    def plan(self, phases: list[Phase]) -> list[Phase]:
        """Plan of the base method."""
        return self.base.plan(phases)

    def network(self, model: nn.Module) -> nn.Module:
        """Network of the base method."""
        return self.base.network(model)

    @property
    def stands_for(self) -> tuple[nn.Module, float] | None:
        """As the base method's."""
        return self.base.stands_for

    def check(self, run: Any, asked: Sequence[float]) -> None:
        """Check the base method."""
        self.base.check(run, asked)

    def attach(self, run: Any) -> None:
        """Attach the base method."""
        self.base.attach(run)

    def prune(self, run: Any, sparsity: float) -> None:
        """Prune as the base method does."""
        self.base.prune(run, sparsity)

    def forward(self, run: Any, x: Tensor) -> Tensor:
        """Logits of the base method."""
        return self.base.forward(run, x)

    def loss(self, run: Any, logits: Tensor, targets: Tensor) -> Tensor:
        """Loss of the base method."""
        return self.base.loss(run, logits, targets)

    def step(self, run: Any) -> None:
        """Step of the base method."""
        self.base.step(run)

    def waits(self, run: Any) -> bool:
        """As the base method."""
        return self.base.waits(run)

    def train_macs(self, run: Any, step: int, sparse: int, dense: int) -> int:
        """Multiply-adds of the base method."""
        return self.base.train_macs(run, step, sparse, dense)

    def remarks(self, run: Any) -> list[str]:
        """Remarks of the base method."""
        return self.base.remarks(run)

    def finish(self, run: Any) -> None:
        """Finish the base method."""
        self.base.finish(run)

    def param_groups(self) -> list[dict[str, Any]]:
        """Parameters of the base method."""
        return self.base.param_groups()

    def compact(self, run: Any) -> nn.Module:
        """Deployable network of the base method."""
        return self.base.compact(run)

    def alive(self, run: Any) -> dict[str, Tensor] | None:
        """Channels of the base method that are left."""
        return self.base.alive(run)

    def channels(self, run: Any) -> tuple[int, int] | None:
        """Channels of the base method."""
        return self.base.channels(run)

    def state_dict(self) -> dict[str, Any]:
        """Own state, with the base method's under "base"."""
        return {"base": self.base.state_dict(), **super().state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load the base method's state, then the own one."""
        self.base.load_state_dict(state["base"])
        super().load_state_dict(state)


def has_finish(method: Method) -> bool:
    """Whether the method, or one that it wraps, does anything after the last phase."""
    if isinstance(method, Companion) and type(method).finish is Companion.finish:
        return has_finish(method.base)
    return type(method).finish is not Method.finish


TRAINING_VERBS = ("attach", "forward", "loss", "step", "param_groups")


def leaves_training_alone(method: Method) -> bool:
    """Whether training without a pruning event is plain dense training under this method and all it wraps."""
    if isinstance(method, Companion):
        plain = all(getattr(type(method), verb) is getattr(Companion, verb) for verb in TRAINING_VERBS)
        return plain and leaves_training_alone(method.base)
    return all(getattr(type(method), verb) is getattr(Method, verb) for verb in TRAINING_VERBS)
