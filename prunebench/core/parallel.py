"""Several processes that share every batch (torchrun): what must be equal on all of them is made so here."""

import os

import torch
import torch.distributed as dist
from torch import Tensor, nn

from prunebench.core.masks import Masks


def launched_by_torchrun() -> bool:
    """Whether this process is one of several started by torchrun."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def start(device: torch.device) -> tuple[int, int]:
    """Join the process group; (rank, number of processes). One process needs none."""
    if not launched_by_torchrun():
        return 0, 1
    if not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return dist.get_rank(), dist.get_world_size()


def sum_over_ranks_(tensor: Tensor, world: int) -> Tensor:
    """The tensor, summed in place over all processes."""
    if world > 1:
        dist.all_reduce(tensor)
    return tensor


def from_first_rank(masks: Masks, world: int) -> Masks:
    """The first process's masks, on every process."""
    if world == 1:
        return masks
    state = masks.state_dict()
    for group in state.values():
        for name, mask in group.items():
            shared = mask.to(torch.uint8)
            dist.broadcast(shared, 0)
            group[name] = shared.bool()
    return Masks(**state)


def average_gradients_(params: list[Tensor], world: int) -> None:
    """Mean over processes of the gradients of parameters that DistributedDataParallel does not own."""
    for p in params:
        if world > 1 and p.grad is not None:
            dist.all_reduce(p.grad)
            p.grad /= world


def any_rank(flag: bool, device: torch.device, world: int) -> bool:
    """Whether the flag is set on any process."""
    if world == 1:
        return flag
    return bool(sum_over_ranks_(torch.tensor(float(flag), device=device), world) > 0)


def broadcast_buffers_(model: nn.Module, world: int) -> None:
    """Give every process the first one's buffers (BatchNorm running statistics)."""
    if world > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)


def wait_for_all(world: int) -> None:
    """Return when every process has come here."""
    if world > 1:
        dist.barrier()


def local_rank() -> int:
    """Number of this process on its machine, which names its CUDA device."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def stop() -> None:
    """Leave the process group, if this process is in one."""
    if dist.is_initialized():
        dist.destroy_process_group()
