"""The ITOP rate: the card's example, and a run whose masks are followed by hand."""

import json

import torch

from prunebench.core.masks import Masks
from prunebench.metrics.exploration import Exploration
from tests.conformance import kit
from tests.conformance.watch import Witness
from tests.unit.fixed import run_of

torch.set_num_threads(1)


def test_the_rate_of_the_cards_masks_is_a_half():
    run, metric = run_of(torch.nn.Sequential(torch.nn.Linear(6, 1)), torch.zeros(1, 6)), Exploration()
    for mask in ("110000", "101000", "011000"):
        run.set_masks(Masks({"0.weight": torch.tensor([[c == "1" for c in mask]])}))
        metric.watch(run)
    assert metric.measure(run, None) == {
        "rate": 0.5,
        "density": 2 / 6,
        "layers": [{"name": "0.weight", "rate": 0.5, "density": 2 / 6}],
    }


def test_every_mask_of_a_run_counts_and_resuming_changes_nothing(tmp_path):
    class Follow(Witness):
        def settled(self, run, method, phase):
            super().settled(run, method, phase)
            self.union = {n: m | getattr(self, "union", {}).get(n, m) for n, m in run.masks.items()}
            if run.clock.total == self.stop_at:
                raise KeyboardInterrupt

    more = ("metrics=[exploration]", "metrics.exploration.every=7it", "trainer.checkpoint_every=4it")
    overrides, ends = kit.tiny(kit.Case("rigl"), "lenet300", *more), []
    for name, stop in (("whole", -1), ("killed", 18), ("killed", -1)):
        parts = kit.recorded(overrides, tmp_path / name, kind=Follow)
        parts.recorder.stop_at = stop
        try:
            parts.fit()
        except KeyboardInterrupt:
            continue
        ends.append(kit.on_disk(tmp_path / name))
        if name == "whole":
            first = parts.recorder.events[0].masks  # before any step
            ever = sum(int((m | first[n]).sum()) for n, m in parts.recorder.union.items())
    rows = [json.loads(r) for r in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    rates = [r["rate"] for r in rows if r["kind"] == "metric"]
    assert kit.differences(*ends) == []
    assert len(rates) == 38 // 7 + 1
    assert rates == sorted(rates)
    assert rates[-1] == ever / parts.run.masks.total
    assert rates[-1] > 0.3 > 1 - parts.run.masks.sparsity
