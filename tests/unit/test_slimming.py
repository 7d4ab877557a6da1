"""Network slimming: the penalty, when it is on, and what it refuses."""

import re
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from prunebench.criteria.channels import bn_scale
from prunebench.methods.slimming import Slimming
from tests.conformance import kit
from tests.unit.toy_nets import small_run

torch.set_num_threads(1)

SCORE = partial(bn_scale, granularity="filter")


def gradient_of_scale(method, run):
    logits = run.model(run.data.x)
    return torch.autograd.grad(method.loss(run, logits, run.data.y), run.model.bn.weight)[0]


def test_the_penalty_adds_strength_times_the_sign_to_the_gradient_of_each_scale():
    run, method = small_run(), Slimming(SCORE, strength=0.25)
    run.model.eval().bn.weight.data = torch.tensor([2.0, -0.5, 0.0], dtype=torch.float64)
    plain = torch.autograd.grad(F.cross_entropy(run.model(run.data.x), run.data.y), run.model.bn.weight)[0]
    wanted = torch.tensor([0.25, -0.25, 0.0], dtype=torch.float64)
    torch.testing.assert_close(gradient_of_scale(method, run) - plain, wanted)
    loss = method.loss(run, run.model(run.data.x), run.data.y)
    plain_loss = F.cross_entropy(run.model(run.data.x), run.data.y)
    assert (loss - plain_loss).item() == pytest.approx(0.25 * 2.5)


@pytest.mark.parametrize(("during", "shares"), [("dense", [1, 0, 0]), ("all", [1, 1, 1])])
def test_the_penalty_is_on_before_the_first_pruning_event_or_always(during, shares):
    run, method = small_run(), Slimming(SCORE, strength=0.25, during=during)
    run.model.eval()
    plain = torch.autograd.grad(F.cross_entropy(run.model(run.data.x), run.data.y), run.model.bn.weight)[0]
    seen = []
    for cycle in range(3):
        run.clock.cycle = cycle
        extra = gradient_of_scale(method, run) - plain
        seen.append(float(extra.abs().max()) / 0.25)
    assert seen == pytest.approx(shares)


def test_sparse_training_leaves_smaller_scales():
    def scales(strength):
        options = ("model=resnet20", "model.depth=8", f"method.strength={strength}", "protocol.dense=30it")
        parts = kit.assemble(("method=slimming", *kit.TINY, *options))
        from prunebench.core.loop import Sink, fit

        fit(parts.plan[:1], parts.run, parts.method, parts.make_optimizer, Sink())
        params = dict(parts.run.model.named_parameters())
        return sum(
            float(params[n].detach().abs().sum()) for n in params if "bn" in n and n.endswith("weight")
        )

    assert scales(1e-2) < 0.95 * scales(1e-9)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("model=lenet300", "sparsity=neuron"), "method=slimming: LeNet300 has no BatchNorm whose scales"),
        (("model=conv2",), "method=slimming: Conv has no BatchNorm whose scales could be trained"),
        (
            ("model=vgg11_bn", "model.head_layers=2", "sparsity=neuron"),
            "neurons of classifier.fc1 in VGG have no",
        ),
        (("model=wrn", "method.strength=0.0"), "method.strength=0.0: must be above 0"),
        (("model=wrn", "protocol=at_init"), "method.during=dense: this plan prunes before any training"),
        (("model=wrn", "sparsity=unstructured"), "criterion=bn_scale: scores whole channels"),
        (("model=wrn", "sparsity.target=0.999"), "sparsity.min_kept=1: needs"),
    ],
)
def test_what_cannot_work_is_refused_before_training(overrides, message):
    with pytest.raises(Exception, match=re.escape(message)):
        kit.assemble(("method=slimming", *kit.TINY, *overrides))
