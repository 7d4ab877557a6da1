"""How others do it, in a few lines: torch.nn.utils.prune, and the schemes of ShrinkBench and open_lth."""

import copy
import ctypes

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.utils.data import DataLoader, Dataset


def prunable_modules(model: nn.Module) -> list[tuple[nn.Module, str]]:
    """(module, "weight") of every convolution and linear layer, as torch.nn.utils.prune wants them."""
    return [(m, "weight") for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]


def usual_memory() -> None:
    """Undo `prunebench.machine.keep_freed_memory`: glibc's own thresholds, where others' schemes run."""
    libc = ctypes.CDLL(None)
    libc.mallopt(-3, 32 * 2**20)  # M_MMAP_THRESHOLD, where glibc's moving one ends
    libc.mallopt(-1, 64 * 2**20)  # M_TRIM_THRESHOLD


def contiguous_copy(model: nn.Module) -> nn.Module:
    """A copy in the usual memory format."""
    return copy.deepcopy(model).to(memory_format=torch.contiguous_format)


def hooked(model: nn.Module, masks: dict[str, Tensor]) -> nn.Module:
    """A copy whose weights are `weight_orig * weight_mask`, computed by a hook before every forward pass."""
    model = contiguous_copy(model)
    for name, module in model.named_modules():
        if f"{name}.weight" in masks:
            prune.custom_from_mask(module, "weight", masks[f"{name}.weight"].float().contiguous())
    return model


def global_unstructured(model: nn.Module, amount: float) -> None:
    """torch.nn.utils.prune's global magnitude pruning of this share of what is alive."""
    prune.global_unstructured(prunable_modules(model), prune.L1Unstructured, amount=amount)


@torch.no_grad()
def quantile_event(model: nn.Module, sparsity: float) -> None:
    """Scheme of ShrinkBench: all weights to numpy, `np.quantile`, one mask per layer, weights times masks."""
    weights = [m.weight for m, _ in prunable_modules(model)]
    magnitudes = [np.abs(w.detach().cpu().numpy().copy()) for w in weights]
    threshold = np.quantile(np.concatenate([m.flatten() for m in magnitudes]), sparsity)
    for weight, magnitude in zip(weights, magnitudes):
        mask = torch.tensor((magnitude > threshold).astype(np.float32))
        weight.copy_(weight * mask)


@torch.no_grad()
def sorting_event(model: nn.Module, sparsity: float) -> None:
    """Scheme of open_lth: weights cloned to numpy, a full sort, `np.where` with a strict comparison."""
    weights = [m.weight for m, _ in prunable_modules(model)]
    arrays = [w.detach().clone().cpu().numpy() for w in weights]
    ranked = np.sort(np.abs(np.concatenate([a.flatten() for a in arrays])))
    threshold = ranked[min(int(np.ceil(sparsity * ranked.size)), ranked.size - 1)]
    for weight, array in zip(weights, arrays):
        mask = np.where(np.abs(array) > threshold, np.ones_like(array), np.zeros_like(array))
        weight.mul_(torch.as_tensor(mask))


@torch.no_grad()
def topk_scatter_update(
    weights: list[Tensor], masks: list[Tensor], gradients: list[Tensor], momenta: list[Tensor], share: float
) -> list[Tensor]:
    """Scheme of rigl-torch for one update: in each layer two topk of full length, `scatter`, and `.item()`.

    Args:
      weights, momenta: changed in place.
      masks: bool, contiguous.
      share: of the kept weights that move.

    Returns:
      The new masks.
    """
    found = []
    for w, m, g, v in zip(weights, masks, gradients, momenta):
        size, kept = m.numel(), int(m.sum().item())
        count = int(share * kept)
        rank = torch.arange(size, device=w.device)
        order = torch.topk(w.abs().flatten(), size).indices
        stay = torch.zeros(size, device=w.device).scatter(0, order, (rank < kept - count).float())
        score = g.abs().flatten()
        lifted = torch.where(stay == 1, torch.full_like(score, score.min().item() - 1), score)
        order = torch.topk(lifted, size).indices
        come = torch.zeros(size, device=w.device).scatter(0, order, (rank < count).float())
        new = (stay + come).view_as(w).bool()
        w.mul_(new)
        w.copy_(torch.where(new & ~m, torch.zeros_like(w), w))
        v.mul_(new)
        found.append(new)
    return found


class PillowImages(Dataset):
    """Images decoded and augmented one at a time, as torchvision's data sets of version 1 do.

    Args:
      images: uint8 [N, C, H, W], C 1 or 3.
      labels: int64 [N].
      pad: margin of the random crop; 0 for none.
      flip: mirror at random.
    """

    def __init__(self, images: Tensor, labels: Tensor, *, pad: int, flip: bool):
        from torchvision import transforms

        channels, size = images.shape[1], images.shape[-1]
        self.arrays = images.permute(0, 2, 3, 1).squeeze(3 if channels == 1 else 0).numpy()
        self.labels = labels.tolist()
        chosen = [transforms.RandomCrop(size, padding=pad)] if pad else []
        chosen += [transforms.RandomHorizontalFlip()] if flip else []
        chosen += [transforms.ToTensor(), transforms.Normalize([0.5] * channels, [0.25] * channels)]
        self.transform = transforms.Compose(chosen)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        from PIL import Image

        return self.transform(Image.fromarray(self.arrays[index])), self.labels[index]


def pillow_loader(images: Tensor, labels: Tensor, *, batch_size: int, pad: int, flip: bool) -> DataLoader:
    """The usual loader, in this process."""
    return DataLoader(
        PillowImages(images, labels, pad=pad, flip=flip), batch_size=batch_size, shuffle=True, num_workers=0
    )


def usual_epoch(model: nn.Module, optimizer: torch.optim.Optimizer, loader: DataLoader) -> float:
    """An epoch of the usual loop: loss, top-1 and top-5 are read at every step."""
    model.train()
    loss_fn, total, top1, top5, seen = nn.CrossEntropyLoss(), 0.0, 0, 0, 0
    for x, y in loader:
        optimizer.zero_grad()
        logits = model(x)
        loss = loss_fn(logits, y)
        loss.backward()
        optimizer.step()
        ranked = logits.topk(5, 1).indices == y[:, None]
        top1, top5 = top1 + ranked[:, 0].sum().item(), top5 + ranked.any(1).sum().item()
        total, seen = total + loss.item() * len(y), seen + len(y)
    return total / seen


def torch_pruning_step(model: nn.Module, images: Tensor, weights: list[str]) -> nn.Module:
    """Torch-Pruning's L1 step to half of the filters of these convolutions; the model itself, smaller."""
    import torch_pruning

    layers = {
        f"{name}.weight": m for name, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)
    }
    importance = torch_pruning.importance.MagnitudeImportance(p=1, group_reduction="first", normalizer=None)
    pruner = torch_pruning.pruner.MagnitudePruner(
        model,
        images[:1],
        importance,
        pruning_ratio=0.5,
        ignored_layers=[layer for name, layer in layers.items() if name not in weights],
    )
    pruner.step()
    return model
