"""Binary masks over the prunable parameters of a model."""

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn

# Their update is 0 wherever value, gradient and state are 0, so masked gradients keep pruned weights at 0
# and the second multiplication can be left out (2 % of a ResNet-18 step on a CPU). Exact types only: a
# subclass may differ.
KEEPS_ZEROS = (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop, torch.optim.Adagrad)


class Masks(Mapping[str, Tensor]):
    """Parameter name -> bool tensor of the parameter's shape; True keeps the weight.

    `tied` masks (scale, shift and bias of a dead channel) are applied with the others but not counted.
    The tensors are not changed after construction: a new state of pruning is a new `Masks`.

    Args:
      masks: one bool tensor per prunable parameter.
      tied: bool tensors of further parameters.
      kept: weights kept, by name or all together, where the caller knows them; None counts them when they are
        asked for.

    Raises:
      TypeError: if a tensor is not bool.
    """

    def __init__(
        self,
        masks: dict[str, Tensor],
        tied: dict[str, Tensor] | None = None,
        *,
        kept: dict[str, int] | int | None = None,
    ):
        for name, mask in (masks | (tied or {})).items():
            if mask.dtype != torch.bool:
                raise TypeError(f"mask {name!r} is {mask.dtype}, expected torch.bool")
        self._masks, self.tied = masks, tied or {}
        self._kept = kept if isinstance(kept, dict) else None
        self._all_kept = kept if isinstance(kept, int) else None
        self._multipliers: dict[str, Tensor] | None = None
        self._bound: tuple[nn.Module, list[Tensor], list[Tensor]] | None = None

    @classmethod
    def ones(cls, model: nn.Module, names: Iterable[str]) -> "Masks":
        """Masks that keep every weight of the named parameters."""
        params = dict(model.named_parameters())
        return cls({n: torch.ones_like(params[n], dtype=torch.bool) for n in names})

    def __getitem__(self, name: str) -> Tensor:
        return self._masks[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._masks)

    def __len__(self) -> int:
        return len(self._masks)

    @property
    def kept_per_layer(self) -> dict[str, int]:
        """Weights kept, by parameter name; counted once (one host synchronisation on CUDA)."""
        if self._kept is None:
            counts = [torch.count_nonzero(m) for m in self.values()]
            self._kept = dict(zip(self, torch.stack(counts).tolist() if counts else []))
        return self._kept

    def count(self) -> None:
        """Wait for the counts of kept weights now rather than at some later step."""
        _ = self.kept_per_layer

    @property
    def kept(self) -> int:
        """Weights kept, tied entries not counted."""
        return sum(self.kept_per_layer.values()) if self._all_kept is None else self._all_kept

    @property
    def total(self) -> int:
        """Prunable weights, tied entries not counted."""
        return sum(m.numel() for m in self.values())

    @property
    def sparsity(self) -> float:
        """Share of the prunable weights removed, in [0, 1]."""
        return 1 - self.kept / self.total if self.total else 0.0

    def overlap(self, other: "Masks") -> float:
        """Kept by both over kept by either (Jaccard index), in [0, 1]; 1 when both keep nothing."""
        both = sum(int(torch.count_nonzero(m & other[n])) for n, m in self.items())
        either = sum(int(torch.count_nonzero(m | other[n])) for n, m in self.items())
        return both / either if either else 1.0

    def inherit_(self, previous: "Masks") -> None:
        """Take over the multiplier tensors of the masks that these replace, so that their addresses stay.

        Captured CUDA graphs read those addresses: masks change from round to round, the graph does not.
        """
        if previous is self or previous._multipliers is None:
            return
        everything = self._masks | self.tied
        kept = {}
        for name, multiplier in previous._multipliers.items():
            if name in everything:
                kept[name] = multiplier.copy_(everything[name])
        self._multipliers, previous._multipliers, previous._bound = kept, None, None

    def _bind(self, model: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
        """Parameters and 0/1 multipliers of their dtype and memory format, for layers with a pruned entry.

        In any other dtype or memory format `_foreach_mul_` is 3 to 4 times slower.
        """
        if self._bound is None or self._bound[0] is not model:
            params = dict(model.named_parameters())
            multipliers = self._multipliers or {}
            # on CUDA counting would wait for the device
            known = self._kept is not None or not any(m.is_cuda for m in self._masks.values())
            whole = {n for n, m in self._masks.items() if known and self.kept_per_layer[n] == m.numel()}
            whole |= {n for n, m in self.tied.items() if bool(m.all())}
            for name, mask in (self._masks | self.tied).items():
                if name not in multipliers and name not in whole:
                    p = params[name]
                    multipliers[name] = torch.empty_like(p, requires_grad=False).copy_(mask)
            self._multipliers = multipliers
            self._bound = (model, [params[n] for n in multipliers], list(multipliers.values()))
        return self._bound[1], self._bound[2]

    def addresses(self, model: nn.Module) -> tuple[int, ...]:
        """Where the multipliers lie: equal as long as masks change in place only."""
        return tuple(m.data_ptr() for m in self._bind(model)[1])

    @torch.no_grad()
    def zero_weights_(self, model: nn.Module) -> None:
        """Set the pruned entries of the model's parameters to 0."""
        params, multipliers = self._bind(model)
        if params:
            torch._foreach_mul_(params, multipliers)
            torch._foreach_add_(params, 0.0)  # -0 becomes 0, as a packed checkpoint gives it back

    @torch.no_grad()
    def zero_gradients_(self, model: nn.Module) -> None:
        """Set the pruned entries of the gradients to 0; parameters without a gradient are passed over."""
        params, multipliers = self._bind(model)
        if not params:
            return
        grads = [p.grad for p in params]
        if None in grads:
            pairs = [(g, m) for g, m in zip(grads, multipliers) if g is not None]
            grads, multipliers = [g for g, _ in pairs], [m for _, m in pairs]
        if grads:
            torch._foreach_mul_(grads, multipliers)

    @torch.no_grad()
    def zero_optimizer_(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Set the pruned entries of every optimizer state tensor of the parameter's shape to 0."""
        for p, multiplier in zip(*self._bind(model)):
            for value in optimizer.state.get(p, {}).values():
                if isinstance(value, Tensor) and value.shape == p.shape:
                    value.mul_(multiplier.to(value.dtype))

    def step_(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """One optimizer step after which value, gradient and state of every pruned entry are 0."""
        self.zero_gradients_(model)
        optimizer.step()
        if type(optimizer) not in KEEPS_ZEROS:
            self.zero_weights_(model)
            self.zero_optimizer_(model, optimizer)

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """The bool tensors, as `Masks(**state)` takes them."""
        return {"masks": dict(self._masks), "tied": dict(self.tied)}
