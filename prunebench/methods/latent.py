"""Methods whose network holds effective weights while the optimizer updates raw ones kept beside it."""

from typing import Any

from torch import Tensor

from prunebench.core.method import Method
from prunebench.core.run import Run


class Latent(Method):
    """Base of methods that train raw weights through effective ones, such as masked or shrunk copies.

    The parameters of the network always are the effective weights: forward passes, evaluation, diagnostics,
    DistributedDataParallel and `torch.compile` see the pruned network without knowing of the method, and
    nothing is left to fold at the end. A step lends the raw weights to the parameters, so that the optimizer
    (momentum and weight decay included) acts on them; a subclass then writes the new effective weights.
    `Reparameterized` computes them within the forward pass instead: its backward pass goes through them once
    more, and what reads `run.model` sees the raw ones.

    Attributes:
      raw: parameter name -> raw weight of every prunable parameter.
    """

    state = ("raw",)
    hard_masks = False
    revives = True
    during_training = True

    def __init__(self) -> None:
        self.raw: dict[str, Tensor] = {}

    def attach(self, run: Run) -> None:
        """Begin with the weights that the network has."""
        params = dict(run.model.named_parameters())
        self.raw = {n: params[n].detach().clone() for n in run.masks}

    def effective(self, run: Run) -> list[Tensor]:
        """The parameters of the raw weights, in their order."""
        params = dict(run.model.named_parameters())
        return [params[n] for n in self.raw]

    def step_raw(self, run: Run, params: list[Tensor]) -> None:
        """One optimizer step on the raw weights; the parameters have their own values again afterwards.

        Swapping the storage saves two copies of all weights per step.
        """
        shown = [p.data for p in params]
        for p, raw in zip(params, self.raw.values()):
            p.data = raw
        run.optimizer.step()
        for p, values in zip(params, shown):
            p.data = values

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load the raw weights onto the device where they are trained."""
        raw = {n: t.copy_(state["raw"][n]) for n, t in self.raw.items()}
        super().load_state_dict(state | {"raw": raw})
