"""What the run computes on: device, threads, precision, memory format, and a record of all that."""

import ctypes
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from prunebench import __version__
from prunebench.core import parallel
from prunebench.models.layers import has_unsafe_strided_1x1

ALL_THREADS = torch.get_num_threads()  # of the process as it started
SHORT_STEP = 10_000_000  # MACs


def pick_device(name: str) -> torch.device:
    """The device of a name; "auto" is CUDA where there is one.

    Raises:
      ValueError: if there is no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"trainer.device={name}: must be auto, cpu, cuda or cuda:<number>") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            f"trainer.device={name}: no CUDA device is available here; use trainer.device=cpu or auto"
        )
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"trainer.device={name}: must be auto, cpu, cuda or cuda:<number>")
    if device.type == "cuda" and parallel.launched_by_torchrun():
        device = torch.device("cuda", parallel.local_rank())
        torch.cuda.set_device(device)
    return device


def set_threads(threads: int | None, *, jobs: int) -> int:
    """Set the number of CPU threads, by default all cores shared out among jobs; the number in force.

    Raises:
      ValueError: if it is less than 1.
    """
    if threads is not None and threads < 1:
        raise ValueError(f"trainer.threads={threads}: must be 1 or more, or null for all cores")
    torch.set_num_threads(threads if threads is not None else max(1, ALL_THREADS // jobs))
    return torch.get_num_threads()


def spare_threads(threads: int | None, *, macs: int) -> int:
    """Use one thread where a step is too short to be shared; the number in force.

    The default run (lenet300 on digits, 3.2 M MACs a batch) takes 10 to 12 s with one thread, 15 s with two.

    Args:
      threads: as the user set it; null leaves the choice to us.
      macs: of a batch, forward only.
    """
    if threads is None and macs < SHORT_STEP:
        torch.set_num_threads(1)
    return torch.get_num_threads()


def keep_freed_memory() -> None:
    """Let the C library keep freed blocks for the next step instead of giving them back to the system.

    By default glibc maps every tensor above 32 MB anew, and the kernel clears its pages each time: a step of
    batch 128 at 32x32 on two threads takes 1.48 times as long with ResNet-18, 1.31 times with ResNet-20
    (`python -m benchmarks memory`). The process holds a fifth more memory. Other C libraries are left alone.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    mmap_threshold, trim_threshold = -3, -1  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD of malloc.h
    libc = ctypes.CDLL(None)
    libc.mallopt(mmap_threshold, 2**30)
    libc.mallopt(trim_threshold, 2**31 - 1)


def precision_of(name: str, device: torch.device) -> torch.dtype | None:
    """Autocast dtype, or None for float32. On CPUs without bf16 units auto avoids bf16, 4 to 14 times slower.

    Raises:
      ValueError: if the name is none of auto, fp32, bf16.
    """
    if name not in ("auto", "fp32", "bf16"):
        raise ValueError(f"trainer.precision={name}: must be one of auto, fp32, bf16")
    if name == "bf16" and device.type == "cpu" and not _cpu_has_bf16():
        print(
            "warning: trainer.precision=bf16: this CPU has no bf16 units, fp32 is faster here",
            file=sys.stderr,
        )
    wanted = name == "bf16" or (name == "auto" and device.type == "cuda" and torch.cuda.is_bf16_supported())
    return torch.bfloat16 if wanted else None


def _cpu_has_bf16() -> bool:
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.machine() == "arm64"
    return "avx512_bf16" in flags or "amx_bf16" in flags or " bf16" in flags


def set_deterministic(deterministic: bool) -> None:
    """Deterministic kernels on CUDA, or the fastest ones."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(deterministic)
    torch.utils.deterministic.fill_uninitialized_memory = False
    torch.backends.cudnn.benchmark = not deterministic


def use_channels_last(setting: bool | str, model: nn.Module) -> bool:
    """Whether convolutions run in channels_last: faster by 7 to 30 %, and harmful in one case on a CPU.

    oneDNN corrupts memory in the backward pass of strided 1x1 convolutions with fewer than 8 input channels.

    Raises:
      ValueError: if the setting is none of auto, true, false, or asks for that case.
    """
    if setting not in ("auto", True, False):
        raise ValueError(f"trainer.channels_last={setting}: must be one of auto, true, false")
    unsafe = next(model.parameters()).device.type == "cpu" and has_unsafe_strided_1x1(model)
    if setting is True and unsafe:
        raise ValueError(
            "trainer.channels_last=true: this network has strided 1x1 convolutions with fewer than 8 input "
            "channels, which crash in this format on a CPU; use trainer.channels_last=auto"
        )
    has_convolutions = any(isinstance(m, nn.Conv2d) for m in model.modules())
    return bool(setting) and has_convolutions and not unsafe


def environment(device: torch.device, threads: int) -> dict[str, Any]:
    """Versions, device and the state of the source checkout, if it is one."""
    from importlib.metadata import version

    packages = ("torch", "torchvision", "timm", "numpy", "hydra-core", "omegaconf")
    return {
        "prunebench": __version__,
        "python": platform.python_version(),
        "packages": {p: version(p) for p in packages} | {"torch": torch.__version__},  # with its CUDA
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "threads": threads,
        "git": _git_state(Path(__file__).parent.parent),
    }


def _git_state(folder: Path) -> dict[str, Any] | None:
    """Commit and whether files differ from it; None outside a checkout."""
    if not (folder / ".git").exists():
        return None
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, check=True
        )
        status = subprocess.run(
            ["git", "status", "--porcelain"], cwd=folder, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return {"commit": commit.stdout.strip(), "changed": bool(status.stdout.strip())}
