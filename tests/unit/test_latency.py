"""Measured times, and the sizes that stand beside them."""

import pytest
import torch
from torch import nn

from prunebench.metrics import latency as module
from prunebench.metrics.latency import Latency, milliseconds
from prunebench.metrics.metric import undisturbed
from tests.conformance import kit

torch.set_num_threads(1)


class Tick(nn.Module):
    """Takes as many milliseconds as its next number says, on a clock of its own."""

    def __init__(self, clock, numbers):
        super().__init__()
        self.clock, self.numbers, self.calls = clock, iter(numbers), 0

    def forward(self, x):
        self.calls += 1
        self.clock[0] += next(self.numbers) / 1000
        return x


def test_networks_take_turns_and_warm_up_passes_are_not_timed(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(module.time, "perf_counter", lambda: clock[0])
    first, second = Tick(clock, [99, 1, 2, 3]), Tick(clock, [99, 10, 20, 30])
    taken = milliseconds([first, second], torch.zeros(1), warmup=1, repeats=3)
    assert taken[0].tolist() == pytest.approx([1, 2, 3])
    assert taken[1].tolist() == pytest.approx([10, 20, 30])
    assert first.calls == second.calls == 4


def measured(monkeypatch, *options):
    """A measurement in which the masked network takes 4, 1, 3, 2, 5 ms and the small one a tenth."""
    parts = kit.assemble(kit.tiny(kit.Case("one_shot"), "lenet300", *options))
    parts.method.prune(parts.run, 0.5)
    times = torch.tensor([4.0, 1.0, 3.0, 2.0, 5.0]).double()
    monkeypatch.setattr(module, "milliseconds", lambda nets, x, **_: [times, times / 10][: len(nets)])
    metric = Latency(batches=[1, 3], warmup=0, repeats=5)
    with undisturbed(parts.run):
        return parts, metric.measure(parts.run, parts.method)


def test_medians_quartiles_sizes_and_the_measured_speed_up(monkeypatch):
    parts, row = measured(monkeypatch, "sparsity=filter", "sparsity.granularity=neuron")
    for size in (1, 3):
        assert row[f"masked_milliseconds_{size}"] == 3
        assert row[f"masked_milliseconds_iqr_{size}"] == 2
        assert row[f"shrunk_milliseconds_{size}"] == pytest.approx(0.3)
        assert row[f"measured_speedup_{size}"] == pytest.approx(10)
    small = parts.method.compact(parts.run)
    assert small.widths == {"fc1": 150, "fc2": 50}
    pixels = 8 * 8 * parts.run.data.shape[0]
    macs = {"masked": pixels * 300 + 300 * 100 + 100 * 10, "shrunk": pixels * 150 + 150 * 50 + 50 * 10}
    biases = {"masked": 300 + 100 + 10, "shrunk": 150 + 50 + 10}
    for name, count in macs.items():
        assert row[f"{name}_macs"] == count
        assert row[f"{name}_params"] == count + biases[name]
        assert row[f"{name}_bytes"] == 4 * (count + biases[name])
    assert row["threads"] == torch.get_num_threads() and row["device"]


def test_single_weights_leave_no_smaller_network(monkeypatch):
    _, row = measured(monkeypatch)
    assert not [key for key in row if key.startswith(("shrunk", "measured_speedup"))]
    assert row["masked_milliseconds_1"] == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batches": []}, "batches=.*must be one or more different batch sizes"),
        ({"batches": [2, 2]}, "batches=.*different"),
        ({"batches": [0]}, "batches=0: must be at least 1"),
        ({"warmup": -1}, "warmup=-1: must be at least 0"),
        ({"repeats": 1}, "repeats=1: must be at least 2"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Latency(**options)
