"""Accuracy on the training images: on the labels as trained, and on the true ones."""

from typing import Any

import torch
from torch.nn import functional as F

from prunebench.core.method import Method
from prunebench.core.run import Run
from prunebench.metrics.accuracy import topk_correct
from prunebench.metrics.metric import Metric


class TrainAccuracy(Metric):
    """Top-1 and loss over the whole training split without augmentation, in eval mode.

    Label noise (`dataset.label_noise`) makes two accuracies of it: on the labels as trained, which a network
    that memorises brings to 1, and on the true labels (sparse double descent, arXiv 2206.08684, figure 1). A
    network that learns the true labels only and answers all of them has `top1` = 1 - the share of wrong
    labels. Cost: a forward pass over the training split.

    Args:
      every: see `Metric`.
    """

    @torch.no_grad()
    def measure(self, run: Run, method: Method) -> dict[str, Any]:
        """{"top1", "true_top1", "wrong_top1", "loss"}: accuracies in [0, 1], cross-entropy in nats.

        `top1` and `loss` are on the labels as trained, `true_top1` on the true ones, and `wrong_top1` is that
        part of the wrong labels which the network answers as trained; None without any.
        """
        sums = torch.zeros(4, dtype=torch.float64, device=run.device)
        done = 0
        for x, y in run.data.evaluation("train"):
            true = run.data.true_labels[done : done + len(y)]
            done += len(y)
            logits = method.forward(run, x).float()
            wrong = y != true
            counts = (topk_correct(logits, y, 1)[0], topk_correct(logits, true, 1)[0])
            memorised = topk_correct(logits[wrong], y[wrong], 1)[0]
            loss = F.cross_entropy(logits, y, reduction="sum")
            sums += torch.stack([s.double() for s in (*counts, memorised, loss)])
        top1, true_top1, memorised, loss = sums.tolist()
        flips = round(run.data.flipped * done)
        return {
            "top1": top1 / done,
            "true_top1": true_top1 / done,
            "wrong_top1": memorised / flips if flips else None,
            "loss": loss / done,
        }
