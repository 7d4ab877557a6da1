"""Taylor importance: what is squared, by worked numbers, gates and plain backward passes."""

from copy import deepcopy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from prunebench.core.units import PrunableModel, Unit, unit_scores
from prunebench.criteria.gradient import taylor
from prunebench.methods.pruner import Pruner
from tests.unit.toy_nets import Images, Toy, backward, close, run_of, small_run, toy_run

torch.set_num_threads(1)


def test_taylor_squares_every_weight_and_averages_over_minibatches():
    run = small_run()
    params = dict(run.model.named_parameters())
    each = [backward(run, (run.data.x[i : i + 5], run.data.y[i : i + 5]), "eval") for i in (0, 5, 10)]
    wanted = {n: sum((params[n].detach() * g[n]) ** 2 for g in each) / 3 for n in run.masks}
    close(taylor(run, batches=3), wanted)


def gates(run, images):
    """Squared gradient of gates of ones behind every layer, in front of its bias: conv1, conv2, fc."""
    m, (x, y) = deepcopy(run.model).eval(), images
    z = [torch.ones(n, dtype=torch.float64, requires_grad=True) for n in (3, 4, 2)]
    x = m.pool(m.relu1(m.bn(m.conv1(x) * z[0].view(-1, 1, 1))))
    x = F.conv2d(x, m.conv2.weight, padding=1) * z[1].view(-1, 1, 1) + m.conv2.bias.view(-1, 1, 1)
    logits = F.linear(m.flatten(m.relu2(x)), m.fc.weight) * z[2] + m.fc.bias
    return [g.square() for g in torch.autograd.grad(F.cross_entropy(logits, y), z)]


def test_the_unit_form_is_the_squared_gradient_of_a_gate_on_the_channel():
    """For a filter, sum of w * dL/dw equals dL/dz: structured-baselines 7.4."""
    run = small_run()
    each = [gates(run, (run.data.x[i : i + 5], run.data.y[i : i + 5])) for i in (0, 5)]
    conv1, conv2, fc = (sum(batch) / 2 for batch in zip(*each))
    scores = taylor(run, batches=2, form="unit")
    close(unit_scores(scores, run.model.units()), {"conv1": conv1, "conv2": conv2})
    close({"fc": scores["fc.weight"].sum(1)}, {"fc": fc})  # in no unit: each output by itself
    assert all(len(s.flatten(1).unique(dim=1)[0]) == 1 for s in scores.values())  # spread evenly


def test_a_unit_made_by_two_layers_has_the_square_of_the_sum_over_both():
    class Stream(Toy):
        def __init__(self):
            super().__init__()
            self.skip = nn.Linear(2, 3, bias=False).double()

        def forward(self, x):
            return self.fc2(self.relu(self.fc1(x) + self.skip(x)))

        def units(self):
            return [Unit("s", 3, (("fc1.weight", 0), ("skip.weight", 0)), (("fc2.weight", 1),))]

    run = run_of(Stream(), toy_run().data)
    g = backward(run, (run.data.x, run.data.y), "eval")
    params = dict(run.model.named_parameters())
    sums = sum((params[n] * g[n]).sum(1) for n in ("fc1.weight", "skip.weight")).detach()
    scores = taylor(run, batches=1, form="unit")
    close(unit_scores(scores, run.model.units()), {"s": sums**2})
    close({"w": scores["fc1.weight"]}, {"w": (sums**2 / 4)[:, None].expand(3, 2)})


class Given(PrunableModel):
    """A loss whose gradient for the weights is -G, whatever the images (labels are 0)."""

    G = torch.tensor(
        [[0.1, 0.2, 0], [-0.3, 0.1, 0.4], [0.05, -0.02, 0.1], [0.2, 0.2, 0.2]], dtype=torch.float64
    )

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 4, bias=False)
        w = [[1.0, 0, 0], [0.9, 0.1, 0], [0, 2, 0], [-1, 0, 0.5]]
        self.fc.weight.data = torch.tensor(w, dtype=torch.float64)

    def forward(self, x):
        t = 2 * (self.fc.weight * self.G).sum()
        return torch.stack([t - t.detach(), torch.zeros_like(t)]).expand(len(x), 2)

    def units(self):
        return [Unit("fc", 4, (("fc.weight", 0),), ())]


@pytest.mark.parametrize(
    ("form", "channels"), [("unit", [0.01, 0.0676, 0.0016, 0.01]), ("weight", [0.01, 0.073, 0.0016, 0.05])]
)
def test_square_of_the_sum_and_sum_of_squares_are_those_of_the_card(form, channels):
    """structured-baselines 7.2: the two forms rank channels differently."""
    run = run_of(Given(), Images(torch.zeros(4, 1), torch.zeros(4, dtype=torch.int64), 4))
    scores = taylor(run, batches=1, form=form)
    close(unit_scores(scores, run.model.units()), {"fc": torch.tensor(channels, dtype=torch.float64)})


class NoUnits(nn.Sequential):
    """A network that declares nothing."""


def test_channels_of_a_model_without_units_are_refused_before_training():
    run = run_of(NoUnits(nn.Flatten(), nn.Linear(16, 2).double()), small_run().data)
    method = Pruner(partial(taylor, batches=1, form="unit", bn_mode="eval"))
    with pytest.raises(ValueError, match=r"criterion\.form=unit: NoUnits declares no channels"):
        method.check(run, [0.5])
    method.check(run, [])  # a plan that never prunes asks for no scores
