"""Network slimming: the penalty's subgradient, when it acts, and what goes."""

import pytest
import torch
from torch import nn

from prunebench.core.loop import Sink, fit
from prunebench.core.phase import Phase
from prunebench.core.units import alive_channels, model_units
from prunebench.criteria.channels import bn_scale
from prunebench.methods.slimming import Slimming
from tests.conformance import kit
from tests.unit.toy_nets import small_run, toy_run

torch.set_num_threads(1)


def test_the_penalty_adds_exactly_its_sign_to_the_gradient_of_every_scale():
    run, method = small_run(), Slimming(bn_scale, penalty=0.5)
    run.optimizer = torch.optim.SGD(run.model.parameters(), lr=0.1)
    scale = run.model.bn.weight
    with torch.no_grad():
        scale.copy_(torch.tensor([2.0, -1.0, 0.0]))
    for p in run.model.parameters():
        p.grad = torch.full_like(p, 0.25)
    method.step(run)
    torch.testing.assert_close(scale.grad, torch.tensor([0.75, -0.25, 0.25]).double(), rtol=0, atol=0)
    torch.testing.assert_close(scale.detach(), torch.tensor([1.925, -0.975, -0.025]).double())
    others = [p for n, p in run.model.named_parameters() if n != "bn.weight"]
    assert all(bool((p.grad == 0.25).all()) for p in others)


@pytest.mark.parametrize(("during", "acts"), [("dense", False), ("always", True)])
def test_after_the_first_pruning_the_penalty_acts_only_if_asked(during, acts):
    run, method = small_run(), Slimming(bn_scale, during=during)
    run.optimizer = torch.optim.SGD(run.model.parameters(), lr=0.1)
    run.clock.cycle = 1
    for p in run.model.parameters():
        p.grad = torch.zeros_like(p)
    method.step(run)
    assert bool(run.model.bn.weight.grad.any()) == acts


def test_channels_of_the_smallest_scales_go_with_their_shift_over_all_layers():
    overrides = kit.tiny(kit.Case("slimming"), "wrn")
    parts = kit.assemble(overrides)
    run = parts.run
    units = model_units(run.model, "filter", run.masks)
    with torch.no_grad():
        for m in run.model.modules():
            if isinstance(m, nn.BatchNorm2d):
                m.weight.uniform_(0.1, 1)
    scores = torch.cat(list(bn_scale(run, units).values()))
    parts.method.prune(run, 0.3)
    alive = torch.cat(list(alive_channels(run.masks, units).values()))
    assert int(alive.sum()) == round(0.7 * len(alive))
    assert float(scores[~alive].max()) < float(scores[alive].min())
    assert set(run.masks.tied) >= {"layer1.0.bn2.weight", "layer1.0.bn2.bias"}


def test_training_under_the_penalty_shrinks_the_scales():
    sums = []
    for penalty in (1e-9, 0.5):
        parts = kit.assemble(kit.tiny(kit.Case("slimming"), "wrn", f"method.penalty={penalty}"))
        fit(parts.plan[:1], parts.run, parts.method, parts.make_optimizer, Sink())
        scales = [m.weight for m in parts.run.model.modules() if isinstance(m, nn.BatchNorm2d)]
        sums.append(sum(float(s.detach().abs().sum()) for s in scales))
    assert sums[1] < 0.9 * sums[0]


def test_what_cannot_work_is_refused():
    with pytest.raises(ValueError, match=r"method\.penalty=0: must be above 0"):
        Slimming(bn_scale, penalty=0)
    with pytest.raises(ValueError, match=r"method\.during=never: must be dense or always"):
        Slimming(bn_scale, during="never")
    with pytest.raises(ValueError, match="Toy has no BatchNorm with scales to train; choose a model such as"):
        Slimming(bn_scale).check(toy_run(), [0.5])
    with pytest.raises(ValueError, match="this plan prunes before any training; choose protocol=one_shot"):
        Slimming(bn_scale).plan([Phase("train", "1ep", lambda p: 1.0, sparsity=0.5)])
