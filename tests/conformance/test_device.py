"""The same masks on CUDA as on the CPU, and no step that makes the host wait. Needs a CUDA device."""

import pytest
import torch

from prunebench.core.loop import Sink, enter, train_step
from tests.conformance import kit

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")


@pytest.mark.parametrize("network", ["wrn", "lenet300"])
def test_masks_are_the_same_on_cuda_from_the_same_weights(case, network):
    overrides = kit.tiny(case, network)
    if network == "wrn":
        overrides = (*overrides, "model.dropout=0")  # every device draws its own, also for scores
    here, there = kit.assemble(overrides), kit.assemble(overrides, device="cuda")
    there.run.model.load_state_dict(here.run.model.state_dict())
    drawn = images_drawn(here.run)
    for phase in here.plan:
        if phase.sparsity is None:
            continue
        for parts in (here, there):
            enter(phase, parts.run, parts.method, parts.make_optimizer, Sink())
        if here.method.hard_masks:
            there.run.model.load_state_dict(here.run.model.state_dict())
        differing = sum(int((m != there.run.masks[n].cpu()).sum()) for n, m in here.run.masks.items())
        # What comes out of a network is rounded otherwise there: weights next to the threshold may swap.
        assert differing <= (here.run.masks.total // 1000 if drawn else 0)
        assert here.run.masks.kept == there.run.masks.kept


def images_drawn(run):
    """A list that gets an entry whenever scores are taken with images."""
    drawn, scoring = [], run.data.scoring
    run.data.scoring = lambda *args, **keywords: drawn.append(keywords) or scoring(*args, **keywords)
    return drawn


def test_twenty_steps_make_the_host_wait_for_nothing(case):
    parts = kit.assemble(kit.tiny(case, "wrn", "trainer.precision=auto"), device="cuda")
    run, phase = parts.run, parts.plan[0]
    enter(phase, run, parts.method, parts.make_optimizer, Sink())
    for _ in range(3):  # cuDNN and the memory pool warm up
        train_step(phase, run, parts.method)
        run.clock.tick()
    run.data.batch(run.seed, 0)
    torch.cuda.synchronize()
    try:
        for _ in range(20):
            torch.cuda.set_sync_debug_mode("default" if parts.method.waits(run) else "error")
            train_step(phase, run, parts.method)
            run.clock.step = (run.clock.step + 1) % run.clock.steps
            run.clock.total += 1
    finally:
        torch.cuda.set_sync_debug_mode("default")
