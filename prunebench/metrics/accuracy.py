"""Top-1 and top-k accuracy of a batch."""

import torch
from torch import Tensor


def topk_correct(logits: Tensor, targets: Tensor, k: int = 5) -> tuple[Tensor, Tensor]:
    """Number of images whose target is the highest logit, and among the `k` highest.

    Classes with equal logits are ranked by their index, the lower first, on every device (`torch.topk`
    promises no order). An image with a NaN logit counts as wrong in both. Nothing is read back from the
    device.

    Args:
      logits: [N, classes], any float dtype.
      targets: [N], class indices in [0, classes).
      k: ranks that count as correct, at least 1; cut to the number of classes, where every image is correct.

    Returns:
      Two int64 scalars on the device of `logits`: top-1 and top-k counts, in [0, N].

    Raises:
      ValueError: if `k` is below 1 or the shapes do not fit.

    >>> top1, top2 = topk_correct(torch.tensor([[0.1, 0.7, 0.2], [0.5, 0.1, 0.5]]), torch.tensor([2, 2]), k=2)
    >>> int(top1), int(top2)
    (0, 2)
    """
    if k < 1:
        raise ValueError(f"k={k}: must be at least 1")
    if logits.ndim != 2 or targets.shape != logits.shape[:1]:
        raise ValueError(
            f"logits {list(logits.shape)} and targets {list(targets.shape)}: must be [N, classes] and [N]"
        )
    column = targets.unsqueeze(1)
    own = logits.gather(1, column)
    before = torch.arange(logits.shape[1], device=logits.device) < column
    rank = ((logits > own) | ((logits == own) & before)).sum(1)
    valid = ~logits.isnan().any(1)
    return ((rank == 0) & valid).sum(), ((rank < k) & valid).sum()
