"""A small network and a recorded training for the tests of methods that prune while they train."""

import torch
from torch import nn

from prunebench.core.loop import Sink, fit
from prunebench.core.phase import Phase
from prunebench.core.run import seeded
from tests.unit.toy_nets import Images, run_of


class Small(nn.Module):
    """Two linear layers on a 3-pixel image, float64."""

    def __init__(self):
        super().__init__()
        with seeded("within"):
            self.fc1, self.fc2 = nn.Linear(3, 8).double(), nn.Linear(8, 2).double()

    def forward(self, x):
        return self.fc2(torch.tanh(self.fc1(x)))


NAMES = ("fc1.weight", "fc2.weight")


class Batches(Images):
    """Other images in every step."""

    steps_per_epoch = 3

    def batch(self, seed, step, *, rank=0, world=1):
        chosen = torch.randperm(len(self.y), generator=torch.Generator().manual_seed(step))[:4]
        return self.x[chosen], self.y[chosen]


def small_run():
    rng = torch.Generator().manual_seed(4)
    x = torch.randn(12, 3, generator=rng, dtype=torch.float64)
    return run_of(Small(), Batches(x, (x[:, 0] + x[:, 1] ** 2 > 0.5).long(), 4))


def falling(progress):
    return 1.0 - 0.5 * progress.step / progress.steps


def phase(steps=60, reach=0.75):
    return Phase("train", f"{steps}it", falling, within=True, reach=reach)


def sgd(run, method):
    groups = [{"params": list(run.model.parameters())}, *method.param_groups()]
    made = torch.optim.SGD(groups, lr=0.3, momentum=0.8, weight_decay=1e-3)
    for group in made.param_groups:
        group["initial_lr"] = 0.3
    return made


class Look(Sink):
    """What stood after every step: weights, masks, and whether the masks' zeros hold."""

    def __init__(self):
        self.weights, self.masks, self.hold = [], [], []

    def after_step(self, run, method, phase, loss):
        params = dict(run.model.named_parameters())
        self.weights.append({n: params[n].detach().clone() for n in NAMES})
        self.masks.append(dict(run.masks))
        self.hold.append(run.zeros_hold)


def fitted(method, *plan):
    """The run trained by the method, and what was seen."""
    run, look = small_run(), Look()
    plan = method.plan(list(plan or (phase(),)))
    method.check(run, [p.reach for p in plan if p.reach is not None])
    method.attach(run)
    fit(plan, run, method, sgd, look)
    return run, look


class Plain:
    """The same training in plain words: `parameters`, `gradients(step)`, `momentum_step(step)`."""

    def __init__(self, steps=60):
        self.data, self.model, self.steps = small_run().data, Small(), steps
        self.parameters = dict(self.model.named_parameters())
        self.velocity = {n: torch.zeros_like(p) for n, p in self.parameters.items()}

    def gradients(self, step):
        self.model.zero_grad()
        x, y = self.data.batch(0, step)
        nn.functional.cross_entropy(self.model(x), y).backward()
        return {n: p.grad.clone() for n, p in self.parameters.items()}

    def lr(self, step):
        return 0.3 * (1 - 0.5 * step / self.steps)

    def momentum_step(self, step, values, gradients):
        """v <- 0.8 v + g + 1e-3 w; w <- w - lr v, on the tensors given by name."""
        for n, w in values.items():
            self.velocity[n] = 0.8 * self.velocity.get(n, 0.0) + gradients[n] + 1e-3 * w
            w -= self.lr(step) * self.velocity[n]
