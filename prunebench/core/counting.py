"""Multiply-adds that a piece of work takes, counted while it runs."""

from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


class MultiplyAdds(TorchDispatchMode):
    """Inside the block, counts the multiply-adds of convolutions and matrix products, forward and backward.

    As computed: zeros count, attention too; nothing else does. Formulas are those of torch's own counter.
    """

    def __init__(self) -> None:
        super().__init__()
        self._flops = 0

    @property
    def count(self) -> int:
        """Multiply-adds so far."""
        return self._flops // 2

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Do the operation, and count it."""
        out = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self._flops += formula(*args, **(kwargs or {}), out_val=out)
        return out
