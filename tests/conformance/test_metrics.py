"""What must hold for every YAML in conf/metrics, which nobody has to list: measuring is reading.

Numbers of a metric's options are cut down by their names (CAPS), as the kit does for methods.
"""

import json
from copy import deepcopy

import pytest
import torch

from prunebench.core.loop import Sink, enter, train_step
from prunebench.experiment import check_metric
from prunebench.launch import instantiate
from prunebench.metrics import metric as module
from prunebench.metrics.metric import as_json, undisturbed
from prunebench.overview import options
from tests.conformance import kit
from tests.conformance.test_resume import assert_resumes_to_the_same_end
from tests.conformance.test_same_data import everything

METRICS = sorted(options("metrics"))
NETWORKS = ("wrn", "lenet300")
CAPS = {"iterations": 3, "probes": 2, "points": 3, "repeats": 2, "warmup": 0}
OWN_KEYS = {"kind", "phase", "cycle", "step", "total", "epoch", "sparsity", "metric", "when", "split"}
IMP = kit.Case("imp")


def chosen(*names: str, **more: str) -> tuple[str, ...]:
    """Overrides that measure these metrics with small options."""
    plain = kit.plain_of((f"metrics=[{','.join(names)}]",))["metrics"]
    caps = [f"metrics.{n}.{k}={v}" for n in names for k, v in CAPS.items() if k in plain[n]]
    return (
        f"metrics=[{','.join(names)}]",
        *caps,
        *(f"metrics.{n}.{k}={v}" for n in names for k, v in more.items()),
    )


class Stage:
    """A run in the middle of its second phase, pruned and with gradients, and a metric measured before."""

    def __init__(self, name: str, network: str):
        self.parts = kit.assemble(kit.tiny(IMP, network, *chosen(name)))
        self.run, self.name = self.parts.run, name
        self.metric = instantiate(self.parts.cfg["metrics"][name])
        before = everything(self.run)
        check_metric(name, self.metric, self.run, self.parts.plan)
        assert kit.differences(before, everything(self.run)) == [], "checking changes nothing"
        for phase in self.parts.plan[:2]:
            enter(phase, self.run, self.parts.method, self.parts.make_optimizer, Sink())
            for _ in range(3):
                train_step(phase, self.run, self.parts.method)
                self.run.clock.tick()
            if phase is self.parts.plan[0]:
                self.measure(self.metric)
                self.run.clock.next_phase()

    def measure(self, metric) -> dict:
        with undisturbed(self.run):
            return kit.untimed(as_json(metric.measure(self.run, self.parts.method)))


@pytest.fixture(scope="module", params=[(m, n) for m in METRICS for n in NETWORKS], ids="-".join)
def stage(request) -> Stage:
    torch.set_num_threads(1)
    return Stage(*request.param)


def leaves(node, path=()):
    """(path, value) of everything in nested containers."""
    if isinstance(node, dict | list):
        for key, child in node.items() if isinstance(node, dict) else enumerate(node):
            yield from leaves(child, (*path, key))
    else:
        yield path, node


def test_measuring_twice_gives_the_same_and_leaves_no_trace(stage):
    run, before = stage.run, everything(stage.run)
    optimizer, network = kit.clone(run.optimizer.state_dict()), run.network
    rows = [stage.measure(deepcopy(stage.metric)) for _ in range(2)]
    assert rows[0] == rows[1]
    assert kit.differences(before, everything(run)) == []
    assert kit.differences(optimizer, run.optimizer.state_dict()) == []
    assert run.network is network
    assert run.model.training and all(p.grad is not None for p in run.model.parameters())


def test_the_batch_size_of_the_probe_does_not_matter(stage, monkeypatch):
    """To 1e-5, relative: float32 sums in another order (metrics.md, check 10)."""
    rows = []
    for size in (48, 7):
        monkeypatch.setattr(module, "PROBE_BATCH", size)
        rows.append(dict(leaves(stage.measure(deepcopy(stage.metric)))))
    assert list(rows[0]) == list(rows[1])
    for path, value in rows[0].items():
        if isinstance(value, float):
            assert rows[1][path] == pytest.approx(value, rel=1e-5, abs=1e-7), path
        else:
            assert rows[1][path] == value, path


def test_values_are_json_numbers_under_names_of_their_own(stage):
    row = stage.measure(deepcopy(stage.metric))
    assert json.loads(json.dumps(row, allow_nan=False)) == row
    assert not set(row) & OWN_KEYS
    assert any(isinstance(v, int | float) for v in row.values()), "something to draw"
    assert all("name" in layer for layer in row.get("layers", []))


def test_what_a_metric_remembers_survives_a_checkpoint(stage):
    resumed = instantiate(stage.parts.cfg["metrics"][stage.name])
    resumed.load_state_dict(kit.clone(stage.metric.state_dict()))
    assert stage.measure(resumed) == stage.measure(deepcopy(stage.metric))


def often() -> tuple[str, ...]:
    """All metrics, at phase ends and between."""
    return (*chosen(*METRICS, every="9it"), *(f"metrics.{n}.images=20" for n in METRICS if has_images(n)))


def has_images(name: str) -> bool:
    return "images" in kit.plain_of((f"metrics=[{name}]",))["metrics"][name]


@pytest.mark.parametrize("network", NETWORKS)
def test_a_run_with_all_metrics_is_bit_for_bit_the_run_without(traced, network):
    plain, watched = traced(IMP, network), traced(IMP, network, *often())
    assert kit.differences(kit.state_of(plain.parts), kit.state_of(watched.parts)) == []
    with_metrics, without = kit.on_disk(watched.directory), kit.on_disk(plain.directory)
    assert with_metrics["weights"] == without["weights"]
    rows = [r for r in with_metrics["rows"] if r["kind"] == "metric"]
    assert [r for r in with_metrics["rows"] if r["kind"] != "metric"] == without["rows"]
    # 14 steps, then three times 8: at step 9, and at every end
    assert {n: sum(r["metric"] == n for r in rows) for n in METRICS} == dict.fromkeys(METRICS, 1 + 4)


@pytest.mark.parametrize("network", NETWORKS)
def test_a_crashed_run_with_metrics_resumes_to_the_same_rows(traced, network):
    assert_resumes_to_the_same_end(traced(IMP, network, *often()))
