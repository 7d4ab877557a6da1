"""Accuracy and loss of the network as it stands, over a whole split."""

import torch
from torch.nn import functional as F

from prunebench.core import parallel
from prunebench.core.method import Method
from prunebench.core.run import Run
from prunebench.metrics.accuracy import topk_correct


@torch.no_grad()
def evaluate(run: Run, method: Method, split: str) -> dict[str, float]:
    """Top-1, top-5 and mean cross-entropy (natural logarithm, no label smoothing) over a split, in eval mode.

    Counts are exact: independent of the batch size, and of the number of processes that share the work.

    Args:
      split: "train" (not augmented), "valid" or "test".

    Returns:
      {"top1", "top5", "loss"}, accuracies in [0, 1].
    """
    run.update_model()
    training, network = run.model.training, run.network
    run.model.eval()
    run.network = run.model  # wrappers are for training: DistributedDataParallel would exchange buffers here
    sums = torch.zeros(4, dtype=torch.float64, device=run.device)
    for number, (x, y) in enumerate(run.data.evaluation(split)):
        if number % run.world != run.rank:
            continue
        with run.autocast():
            logits = method.forward(run, x)
        logits = logits.float()
        top1, top5 = topk_correct(logits, y)
        loss = F.cross_entropy(logits, y, reduction="sum")
        sums += torch.stack([top1, top5, loss, torch.tensor(len(y), device=run.device)])
    run.network = network
    run.model.train(training)
    top1, top5, loss, images = parallel.sum_over_ranks_(sums, run.world).tolist()
    return {"top1": top1 / images, "top5": top5 / images, "loss": loss / images}
