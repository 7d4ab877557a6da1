"""Every method sees the same images, and scoring leaves no trace."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from prunebench.core.units import model_units
from tests.conformance import kit

CRITERIA_FILES = Path(__file__).parents[2] / "conf" / "criterion"
CRITERIA = sorted(p.stem for p in CRITERIA_FILES.glob("*.yaml"))


@pytest.mark.parametrize("network", ["wrn", "lenet300"])
def test_the_batches_of_a_run_are_those_of_its_seed_whatever_the_method(traced, case, network):
    whole = traced(case, network)
    data = kit.assemble(whole.overrides).run.data
    seed = whole.parts.run.seed
    assert [b[0] for b in whole.seen.batches] == [(seed, step) for step in range(whole.seen.steps)]
    for (_, images, labels), step in zip(whole.seen.batches, range(whole.seen.steps)):
        x, y = data.batch(seed, step)
        assert torch.equal(images, x)
        assert torch.equal(labels, y)


def everything(run):
    """All that a criterion could leave changed, as plain values."""
    return {
        "state": {k: v.clone() for k, v in run.model.state_dict().items()},
        "modes": {n: m.training for n, m in run.model.named_modules()},
        "gradients": {n: None if p.grad is None else p.grad.clone() for n, p in run.model.named_parameters()},
        "requires_grad": {n: p.requires_grad for n, p in run.model.named_parameters()},
        "hooks": {
            n: (len(m._forward_hooks), len(m._forward_pre_hooks)) for n, m in run.model.named_modules()
        },
        "masks": dict(run.masks),
        "snapshots": kit.clone(run.snapshots),
        "clock": vars(run.clock).copy(),
        "torch": torch.get_rng_state(),
        "python": random.getstate(),
        "numpy": np.random.get_state()[1].tolist(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "tf32": torch.backends.cudnn.allow_tf32,
        "attention": torch.backends.cuda.flash_sdp_enabled(),
        "gradients on": torch.is_grad_enabled(),
    }


def look_back(run, score):
    """Take the snapshots that the criterion reads, as training would have done, and train on from there."""
    for name, _ in getattr(score.func, "snapshots", ()):
        run.snapshot(name)
        with torch.no_grad():
            for p in run.model.parameters():
                p.mul_(0.9)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("criterion", CRITERIA)
def test_scoring_leaves_mode_gradients_statistics_and_randomness_as_they_were(criterion, training):
    case = next(c for c in kit.cases() if c.method == "one_shot")
    of_channels = "${sparsity.granularity}" in (CRITERIA_FILES / f"{criterion}.yaml").read_text()
    grain = ("sparsity=filter",) if of_channels else ()
    configuration = kit.tiny(case, "wrn", f"criterion={criterion}", *grain)
    if criterion == "none":
        with pytest.raises(ValueError, match="criterion=none"):
            kit.assemble(configuration)
        return
    parts = kit.assemble(configuration)
    run, score = parts.run, parts.method.criterion
    x, y = run.data.batch(0, 0)
    run.loss_fn(run.model.train()(x), y).backward()  # statistics and gradients of an earlier step
    run.model.train(training)
    next(run.model.children()).eval()  # a part that somebody froze
    look_back(run, score)
    torch.backends.cudnn.allow_tf32 = True  # as in a fresh process, whatever ran in this one
    before = everything(run)
    scores = score(run)
    assert kit.differences(before, everything(run)) == []
    shapes = {n: m.shape for n, m in run.masks.items()}
    if of_channels:
        shapes = {u.name: (u.size,) for u in model_units(run.model, "filter", run.masks)}
    assert set(scores) == set(shapes)
    assert all(scores[n].shape == s and bool(scores[n].isfinite().all()) for n, s in shapes.items())
    assert kit.differences(scores, score(run)) == []
