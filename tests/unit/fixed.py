"""Runs on a handful of given images, for diagnostics whose numbers are worked out by hand."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prunebench.core.masks import Masks
from prunebench.core.run import Run
from prunebench.core.units import prunable_names


class FixedData:
    """Data whose scoring images are the given ones, in their order; the same are the test split."""

    def __init__(self, images: Tensor, labels: Tensor):
        self.images, self.labels = images, labels
        self.sizes = {"train": len(labels), "valid": 0, "test": len(labels)}
        self.shape, self.num_classes = tuple(images.shape[1:]), int(labels.max()) + 1
        self.steps_per_epoch, self.batch_size = 1, len(labels)

    def scoring(self, generator, *, batches=1, batch_size=None):
        return [(self.images[:batch_size], self.labels[:batch_size])]

    def evaluation(self, split, *, batch_size=1000):
        yield self.images, self.labels


def run_of(model: nn.Module, images: Tensor, labels: Tensor | None = None) -> Run:
    """A run of the model in eval mode on these images, without masks that prune anything."""
    labels = torch.zeros(len(images), dtype=torch.int64) if labels is None else labels
    data = FixedData(images, labels)
    return Run(model=model.eval(), data=data, loss_fn=F.cross_entropy, prunable=prunable_names(model), seed=0)


def prune(run: Run, **masks: Tensor) -> None:
    """Set masks of the layers named, with "_" for "."; the others keep all."""
    named = {f"{name.replace('_', '.')}.weight": mask for name, mask in masks.items()}
    assert set(named) <= set(run.masks)
    run.set_masks(Masks({**run.masks, **named}, run.masks.tied))


def at(layers: list[dict], name: str) -> dict:
    """The row of a layer."""
    return next(layer for layer in layers if layer["name"] == name)
