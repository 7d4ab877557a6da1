"""P12 to P14, P27: pruning filters against Torch-Pruning, and what training the shrunk network gains."""

import copy
from collections.abc import Callable, Iterator

import torch
from torch import nn

from benchmarks import peers
from benchmarks.children import child
from benchmarks.parts import CIFAR, Parts, plain_step, sgd, synthetic
from benchmarks.timing import Row, alternate, at_least, at_most, clocked, control, report
from prunebench.core.compact import compact
from prunebench.core.loop import Sink, enter, train_step
from prunebench.core.masks import Masks
from prunebench.core.phase import Phase
from prunebench.core.units import model_units, select_units
from prunebench.criteria.magnitude import magnitude
from prunebench.machine import keep_freed_memory
from prunebench.metrics.cost import count_macs

FILTERS = ("method=one_shot", "sparsity=filter")
# share of filters removed -> real over ideal speed-up: bar, ambitious
MARKS = {0.5: (0.9, 0.95), 0.75: (0.7, 0.8), 0.9: (0.3, 0.42)}


def measure(rounds: Callable[[int], int]) -> Iterator[Row]:
    """Rows of the group."""
    yield from _against_torch_pruning("resnet18", rounds(10))
    yield from _against_torch_pruning("vgg16_bn", rounds(10))
    for model in ("resnet18", "vgg16_bn"):
        for share, marks in MARKS.items():
            yield from _speed_up(model, share, marks, rounds(8))
    wrong = int(child("narrow"))
    yield at_most("P27", "widths 1 to 7 with wrong gradients, strided 1x1, channels_last", wrong, 0, unit="")


def _against_torch_pruning(model: str, rounds: int) -> Iterator[Row]:
    """One step of L1 filter pruning to 50 % down to the smaller network, by both, on equal weights.

    Filters that write into a residual stream are left out: there the two add up scores differently.
    """
    streams = "conv1,*.conv2,*.downsample.0" if model == "resnet18" else ""
    options = (*FILTERS, f"sparsity.exclude=[{streams}]", "trainer.channels_last=false")
    p = synthetic(model, *CIFAR, *options, images=32, batch_size=32)
    dense, run, x = copy.deepcopy(p.run.model), p.run, torch.randn(4, 3, 32, 32)
    made: dict[str, nn.Module] = {}
    names = [n for u in p.run.model.units() for n, _ in u.made_by if n in p.run.masks]

    def fresh() -> None:
        keep_freed_memory()  # as `prune-run` has it
        run.model.load_state_dict(dense.state_dict())
        run.masks = Masks.ones(run.model, list(run.masks))

    def ours(_: None) -> None:
        units = model_units(run.model, "filter", run.masks)
        made["ours"] = compact(run.model, select_units(magnitude(run), 0.5, units=units))

    def event(_: None) -> None:
        p.method.prune(run, 0.5)
        p.method.compact(run)

    def copied() -> nn.Module:
        peers.usual_memory()
        return copy.deepcopy(dense)

    cases = {
        "ours": clocked(ours, fresh),
        "theirs": clocked(lambda net: made.update(theirs=peers.torch_pruning_step(net, x, names)), copied),
        "event": clocked(event, fresh),
    }
    seconds = alternate(cases, rounds)
    with torch.no_grad():
        found, expected = (made[name].eval()(x) for name in ("ours", "theirs"))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))
    for name, weight in made["theirs"].named_parameters():
        assert torch.equal(weight, made["ours"].get_parameter(name)), f"{name}: other filters were kept"
    what = f"Torch-Pruning / ours, one L1 filter step, {model}, same filters"
    yield at_least("P12", what, seconds["theirs"] / seconds["ours"], 3.0, 6.0)
    what = f"Torch-Pruning / our whole event with masks, {model}"
    yield report("", what, seconds["theirs"] / seconds["event"])


def _speed_up(model: str, share: float, marks: tuple[float, float], rounds: int) -> Iterator[Row]:
    """A step of our loop on the dense and on the shrunk network, and on a network built narrow by hand."""
    options = (*CIFAR, *FILTERS, "sparsity.round_to=8", "trainer.shrink=true")
    dense, small = (synthetic(model, *options, images=32, batch_size=32) for _ in range(2))
    steps = {name: filter_step(dense, None) for name in ("dense", "again")}
    steps["shrunk"] = filter_step(small, share)
    shrunk, batch = small.run.trained, small.run.data.batch(0, 0)
    by_hand = dense.run.model.with_widths(shrunk.widths).to(memory_format=torch.channels_last)
    real = compact(small.run.model, small.method.alive(small.run))
    for name, network in (("by hand", by_hand), ("real", real)):
        steps[name] = plain_step(network, sgd(network, fused=True), batch)
    seconds = alternate({name: clocked(step) for name, step in steps.items()}, rounds)
    macs = [sum(count_macs(net, small.run.data.shape).values()) for net in (dense.run.model, shrunk)]
    ideal = macs[0] / macs[1]
    real_speed_up = seconds["dense"] / seconds["shrunk"]
    yield control(f"step, {model}", seconds, "dense", "again")
    what = f"real / ideal speed-up of {ideal:.1f}, {model}, {share:.0%} of filters removed"
    yield at_least("P13", what, real_speed_up / ideal, *marks)
    what = f"step of the shrunk / a hand-built network, {model}, {share:.0%} removed"
    yield at_most("P14", what, seconds["real"] / seconds["by hand"], 1.05, 1.02)


def filter_step(p: Parts, share: float | None) -> Callable[[], object]:
    """A function that does one step of the real loop in a phase that begins with this pruning event."""
    phase = Phase("bench", "1000ep", p.plan[0].schedule, sparsity=share)
    enter(phase, p.run, p.method, p.make_optimizer, Sink())
    return lambda: train_step(phase, p.run, p.method)


def unsafe_widths() -> int:
    """How many widths below 8 give other gradients in channels_last than in float64."""
    from prunebench.models.resnet import resnet

    wrong = 0
    for width in range(1, 8):
        torch.manual_seed(0)
        widths = {"layer1": width, "layer2": width, "layer3": width}
        net = resnet(18, "cifar", widths, in_channels=3, num_classes=10, image_size=32)
        for block in (m for m in net.modules() if isinstance(getattr(m, "relu1", None), nn.ReLU)):
            block.relu1, block.relu2 = nn.SiLU(), nn.SiLU()  # a rounding that crosses a kink is no mistake
        net.relu = nn.SiLU()
        exact = copy.deepcopy(net).double()
        x = torch.randn(4, 3, 32, 32)
        exact(x.double()).square().mean().backward()
        net = net.to(memory_format=torch.channels_last)
        net(x.to(memory_format=torch.channels_last)).square().mean().backward()
        for p, reference in zip(net.parameters(), exact.parameters()):
            scale = float(reference.grad.abs().max())
            if not float((p.grad - reference.grad).abs().max()) <= 1e-3 * scale + 1e-6:
                wrong += 1
                break
    return wrong
