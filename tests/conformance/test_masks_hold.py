"""What every method must do with its masks: exact counts, exact zeros, and no way back."""

from functools import partial

import pytest
import torch
from omegaconf import OmegaConf

from prunebench.core.loop import fit
from prunebench.core.method import Method
from prunebench.core.run import generator
from tests.conformance import kit, watch

STRUCTURED = ("filter", "neuron")


class Restless(torch.optim.Optimizer):
    """Adversary: moves every weight at every step, also where value, gradient and state are 0."""

    def __init__(self, params, lr: float):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    drift = self.state[p].setdefault("drift", torch.zeros_like(p))
                    drift.mul_(0.9).add_(p.grad).add_(0.1)
                    p.sub_(group["lr"] * (drift + 0.01))


OPTIMIZERS = {
    "sgd": partial(torch.optim.SGD, lr=0.05, momentum=0.9, weight_decay=1e-3, nesterov=True),
    "adam": partial(torch.optim.Adam, lr=1e-3, weight_decay=1e-3),
    "adamw": partial(torch.optim.AdamW, lr=1e-3, weight_decay=0.1),
    "restless": partial(Restless, lr=1e-3),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_pruned_weights_and_their_optimizer_state_are_0_after_every_step(case, optimizer):
    parts = kit.assemble(kit.tiny(case, "lenet300"), optimizer=OPTIMIZERS[optimizer])
    seen = watch.MaskWatch()
    fit(parts.plan, parts.run, parts.method, parts.make_optimizer, seen)
    assert seen.steps > 20
    assert seen.not_applied == []
    if parts.method.hard_masks:
        assert parts.run.zeros_hold
        assert seen.not_zero == []
        asks = any(p.sparsity is not None for p in parts.plan) or type(parts.method).step is not Method.step
        assert seen.most_pruned > 0.5 or not asks


def test_the_adversarial_optimizer_revives_weights_that_nobody_masks():
    case = next(c for c in kit.cases() if c.method == "imp")
    parts = kit.assemble(kit.tiny(case, "lenet300"), optimizer=OPTIMIZERS["restless"])
    parts.method.step = lambda run: (run.masks.zero_gradients_(run.model), run.optimizer.step())
    seen = watch.MaskWatch()
    fit(parts.plan, parts.run, parts.method, parts.make_optimizer, seen)
    assert any("value" in found for found in seen.not_zero)
    assert any("drift" in found for found in seen.not_zero)


def test_weights_that_leave_0_under_masks_that_are_said_to_hold_are_noticed():
    case = next(c for c in kit.cases() if c.method == "dpf")
    parts = kit.assemble(kit.tiny(case, "lenet300"), optimizer=OPTIMIZERS["sgd"])
    step = parts.method.step

    def careless(run):
        step(run)
        with torch.no_grad():
            next(run.model.parameters()).add_(1e-3)

    parts.method.step = careless
    seen = watch.MaskWatch()
    fit(parts.plan, parts.run, parts.method, parts.make_optimizer, seen)
    assert seen.not_applied


@pytest.mark.parametrize("network", ["wrn", "lenet300"])
def test_every_pruning_event_keeps_exactly_what_was_asked(traced, case, network):
    whole = traced(case, network)
    asked = [p.sparsity for p in whole.parts.plan if p.sparsity is not None]
    assert [e.phase.sparsity for e in whole.seen.events] == asked
    assert [e.kept for e in whole.seen.events] == [
        round((1 - s) * e.total) for s, e in zip(asked, whole.seen.events)
    ]


@pytest.mark.parametrize("network", ["wrn", "lenet300"])
def test_a_phase_that_prunes_while_it_trains_ends_with_exactly_what_was_asked(traced, case, network):
    whole = traced(case, network)
    for phase in whole.parts.plan:
        if phase.within and phase.reach is not None and not phase.nearly:
            masks = whole.seen.ends[phase.name]
            kept = sum(int(m.sum()) for m in masks.values())
            assert kept == round((1 - phase.reach) * sum(m.numel() for m in masks.values()))


@pytest.mark.parametrize("network", ["wrn", "lenet300"])
def test_masks_only_shrink_unless_the_method_says_that_weights_revive(traced, case, network):
    whole = traced(case, network)
    if not whole.parts.method.revives:
        assert whole.seen.revived == 0
    elif any(p.within and p.reach is None for p in whole.parts.plan):
        # the masks are an outcome: nobody brings weights back, in one of the networks they come by themselves
        assert sum(traced(case, n).seen.revived for n in ("wrn", "lenet300")) > 0
    else:
        assert whole.seen.revived > 0


@pytest.mark.parametrize("network", ["wrn", "lenet300"])
def test_the_final_weights_are_0_exactly_where_the_final_mask_prunes(traced, case, network):
    run = traced(case, network).parts.run
    params = dict(run.model.named_parameters())
    assert all(bool((params[n][~m] == 0).all()) for n, m in run.masks.items())


@pytest.mark.parametrize("granularity", STRUCTURED)
def test_the_compact_network_computes_what_the_masked_one_does(traced, case, granularity):
    if not reads_granularity(case):
        whole = traced(case, "wrn")
    else:
        short = ("protocol.dense=4it", "protocol.retrain=4it", "protocol.budget=null")
        known = kit.plain_of(kit.tiny(case, "wrn"))["protocol"]
        kept = (s for s in short if s.split(".")[1].split("=")[0] in known)
        asked = ("sparsity=filter", f"sparsity.granularity={granularity}", *kept)
        if case.companion and (refusal := refused(case, asked)):
            assert f"sparsity.granularity={granularity}" in refusal
            return
        whole = traced(case, "wrn", *asked)
        assert [e.kept for e in whole.seen.events] == [
            round((1 - e.phase.sparsity) * e.total) for e in whole.seen.events
        ]
    run, method = whole.parts.run, whole.parts.method
    small = method.compact(run)
    if small is run.model:
        assert not reads_granularity(case)
        return
    images = next(run.data.evaluation("test"))[0]
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in run.model.parameters())
    with torch.no_grad():
        run.model.eval(), small.eval()
        torch.testing.assert_close(small(images), run.model(images), rtol=1e-5, atol=1e-5)


def refused(case, asked) -> str:
    """Why a companion does not go with these options; empty if it does."""
    try:
        kit.assemble(kit.tiny(case, "wrn", *asked))
    except ValueError as error:
        return str(error)
    return ""


def reads_granularity(case) -> bool:
    raw = OmegaConf.to_container(kit.composed(kit.tiny(case, "wrn")), resolve=False)
    return "${sparsity.granularity}" in str([raw["method"], raw["companion"]])


# Families of networks; the widest ones are narrowed, the shapes are what counts.
FAMILIES = {
    "lenet300": (("model=lenet300",), ("neuron",)),
    "conv4": (("model=conv4",), STRUCTURED),
    "dropnet_a": (("model=dropnet_a",), ("neuron",)),
    "dropnet_c": (("model=dropnet_c", "dataset.size=32"), STRUCTURED),
    "dropnet_vgg19": (("model=dropnet_vgg19",), STRUCTURED),
    "dropnet_resnet18": (("model=dropnet_resnet18",), STRUCTURED),
    "vgg11_bn": (("model=vgg11_bn", "dataset.size=32"), STRUCTURED),
    "resnet8-A": (("model=resnet20", "model.depth=8"), STRUCTURED),
    "resnet8-B": (("model=resnet20", "model.depth=8", "model.option=B"), STRUCTURED),
    "resnet18": (("model=resnet18",), STRUCTURED),
    "wrn10": (("model=wrn", "model.depth=10", "model.width=2"), STRUCTURED),
    "vit": (("model=vit_tiny", "model.dim=48", "model.depth=2", "model.patch=2"), ("neuron",)),
}


@pytest.mark.parametrize(("family", "granularity"), [(f, g) for f, (_, gs) in FAMILIES.items() for g in gs])
def test_compact_equals_masked_in_every_family_of_networks(family, granularity):
    model, _ = FAMILIES[family]
    sparsity = ("sparsity=filter", f"sparsity.granularity={granularity}")
    parts = kit.assemble(("method=one_shot", *kit.TINY, *model, *sparsity))
    run, images = parts.run, next(parts.run.data.evaluation("test"))[0][:16]
    with torch.no_grad():
        for p in run.model.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=generator("parameters")))
        for _ in range(2):
            run.model.train()(images)  # BatchNorm statistics of its own
    parts.method.prune(run, 0.5)
    small = parts.method.compact(run).eval()
    kept, total = parts.method.channels(run)
    assert kept == round(0.5 * total)
    assert sum(p.numel() for p in small.parameters()) < 0.6 * sum(p.numel() for p in run.model.parameters())
    with torch.no_grad():
        masked = run.model.eval()(images)
        torch.testing.assert_close(small(images), masked, rtol=1e-5, atol=1e-5)
    assert masked.std() > 1e-3


CONTROLS = ("reinit", "random_layerwise", "random_global", "random_even")


@pytest.mark.parametrize("control", CONTROLS)
def test_a_control_changes_the_last_round_and_nothing_before_it(traced, control):
    case = next(c for c in kit.cases() if c.method == "imp")
    plain = traced(case, "lenet300")
    other = traced(case, "lenet300", f"protocol.control={control}")
    *before, last = zip(plain.seen.events, other.seen.events)
    assert all(kit.differences(a.masks, b.masks) == [] for a, b in before)
    changed = kit.differences(last[0].masks, last[1].masks)
    assert (changed == []) == (control == "reinit")
    assert last[0].kept == last[1].kept
    assert kit.differences(plain.parts.run.model.state_dict(), other.parts.run.model.state_dict())


def test_random_scores_choose_another_mask_than_magnitude(traced):
    case = next(c for c in kit.cases() if c.method == "imp")
    plain, other = traced(case, "lenet300"), traced(case, "lenet300", "criterion=random")
    for a, b in zip(plain.seen.events, other.seen.events):
        assert a.kept == b.kept
        assert set(kit.differences(a.masks, b.masks)) == {f".{n}" for n in a.masks}
    assert other.seen.revived == 0  # though pruned weights get scores like all others
