"""Measured time of the masked and of the physically smaller network, beside what both cost in theory."""

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from prunebench.core.method import Method
from prunebench.core.run import Run, generator
from prunebench.metrics.cost import ATTENTION, count_macs
from prunebench.metrics.metric import Metric, check_at_least


class Latency(Metric):
    """Time of a forward pass on the run's device, with one image and with many.

    `masked` is the network of the original size, whose dense kernels also multiply the zeros: masks alone
    bring no speed-up. `shrunk` is what is left when dead filters and neurons are cut out; it is there for
    sparsity.granularity=filter and neuron. For every batch size B in `batches`:

      masked_milliseconds_B, shrunk_milliseconds_B: median over `repeats` passes.
      masked_milliseconds_iqr_B, shrunk_milliseconds_iqr_B: distance between the quartiles.
      measured_speedup_B: median of masked over median of shrunk.
    and, once: `threads` of the CPU, `device`, and for each network its `params`, its `macs` for one image
    (convolutions and linear layers, counted in a forward pass; zeros count in the masked one) and the `bytes`
    of its parameters and buffers as they lie in a file.

    Assumed: eval mode, float32 without TF32 and autocast, no gradients, the run's memory format, normal
    random images. The networks take turns, pass by pass, so that a change of the machine's pace hits both;
    `warmup` passes of each come first. On CUDA the host waits before and after every pass. Times depend on
    the machine and on what else runs there: they are no function of the run's state as other metrics are.

    Args:
      every: see `Metric`.
      batches: batch sizes, each at least 1.
      warmup: passes that are not timed, at least 0.
      repeats: passes that are timed, at least 2.

    Raises:
      ValueError: if an option is out of range.
    """

    def __init__(
        self,
        *,
        every: str = "end",
        batches: list[int] = (1, 64),
        warmup: int = 20,
        repeats: int = 100,
    ):
        super().__init__(every=every)
        if not batches or len(set(batches)) < len(batches):
            raise ValueError(f"batches={list(batches)}: must be one or more different batch sizes")
        for size in batches:
            check_at_least(1, "batches", size)
        check_at_least(0, "warmup", warmup)
        check_at_least(2, "repeats", repeats)
        self.batches, self.warmup, self.repeats = batches, warmup, repeats

    @torch.no_grad()
    def measure(self, run: Run, method: Method) -> dict[str, Any]:
        """The numbers of the class's list."""
        networks = {"masked": run.model}
        small = method.compact(run).eval()
        if small is not run.model:
            networks["shrunk"] = small
        values: dict[str, Any] = {"threads": torch.get_num_threads(), "device": _name_of(run.device)}
        for name, network in networks.items():
            macs = count_macs(network, run.data.shape)
            values[f"{name}_params"] = sum(p.numel() for p in network.parameters())
            values[f"{name}_macs"] = sum(macs.values()) - macs[ATTENTION]
            values[f"{name}_bytes"] = sum(t.numel() * t.element_size() for t in network.state_dict().values())
        for size in self.batches:
            x = _images(run, size)
            times = milliseconds(list(networks.values()), x, warmup=self.warmup, repeats=self.repeats)
            for name, taken in zip(networks, times):
                low, median, high = torch.quantile(taken, torch.tensor([0.25, 0.5, 0.75]).double()).tolist()
                for key, value in zip(_names(name), (median, high - low)):
                    values[f"{key}_{size}"] = value
            if "shrunk" in networks:
                medians = [values[f"{_names(name)[0]}_{size}"] for name in networks]
                values[f"measured_speedup_{size}"] = medians[0] / medians[1]
        return values


def milliseconds(networks: Sequence[nn.Module], x: Tensor, *, warmup: int, repeats: int) -> list[Tensor]:
    """Times of forward passes of the networks in turn; one float64 tensor [repeats] per network."""
    wait = torch.cuda.synchronize if x.device.type == "cuda" else lambda: None
    taken = torch.zeros(len(networks), repeats, dtype=torch.float64)
    for turn in range(-warmup, repeats):
        for number, network in enumerate(networks):
            wait()
            start = time.perf_counter()
            network(x)
            wait()
            if turn >= 0:
                taken[number, turn] = 1000 * (time.perf_counter() - start)
    return list(taken)


def _names(network: str) -> tuple[str, str]:
    return f"{network}_milliseconds", f"{network}_milliseconds_iqr"


def _images(run: Run, size: int) -> Tensor:
    x = torch.randn(size, *run.data.shape, generator=generator("latency")).to(run.device)
    last = any(p.ndim == 4 and not p.is_contiguous() for p in run.model.parameters())
    return x.contiguous(memory_format=torch.channels_last) if last else x


def _name_of(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    import platform

    try:
        with open("/proc/cpuinfo") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
