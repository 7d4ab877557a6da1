"""A small run whose masks change while it trains, and an observer that looks at every change."""

import torch
from torch import nn

from prunebench.core.loop import Sink, fit
from prunebench.core.phase import Phase
from prunebench.core.run import Run


class Images:
    """Random images of ten numbers, four to a batch."""

    steps_per_epoch, batch_size, sizes = 3, 4, {"train": 12}

    def __init__(self):
        rng = torch.Generator().manual_seed(0)
        self.x, self.y = torch.randn(12, 10, generator=rng), torch.arange(12) % 3

    def batch(self, seed, step, *, rank=0, world=1):
        start = step % 3 * 4
        return self.x[start : start + 4], self.y[start : start + 4]


def run_of(*layers, seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(*layers)
    names = [n for n, p in model.named_parameters() if p.ndim > 1]
    return Run(model=model, data=Images(), loss_fn=nn.CrossEntropyLoss(), prunable=names, seed=0)


def sgd(run, method, momentum=0.9, **options):
    optimizer = torch.optim.SGD(
        run.model.parameters(), lr=0.1, momentum=momentum, weight_decay=1e-3, **options
    )
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    return optimizer


def train(method, run, *, length="24it", reach=0.6, observer=None):
    plan = method.plan([Phase("train", length, lambda p: 1.0, within=True, reach=reach)])
    method.check(run, [reach])
    method.attach(run)
    fit(plan, run, method, sgd, observer or Sink())
    return run


class Follow(Sink):
    """Looks at masks before and after every step, and what an update must leave."""

    def __init__(self):
        self.changed, self.counts, self.wrong = [], [], []

    def entered(self, run, method, phase):
        self.before = run.masks

    def after_step(self, run, method, phase, loss):
        self.counts.append(run.masks.kept_per_layer)
        params = dict(run.model.named_parameters())
        if run.masks is not self.before:
            self.changed.append(run.clock.step - 1)
            for name, mask in run.masks.items():
                new = mask & ~self.before[name]
                state = run.optimizer.state.get(params[name], {}).values()
                tensors = [params[name].detach(), *(t for t in state if t is not None and t.ndim)]
                self.wrong += [name for t in tensors if bool((t[new] != 0).any())]
        recounted = {n: int(m.sum()) for n, m in run.masks.items()}
        self.wrong += [n for n, k in recounted.items() if k != run.masks.kept_per_layer[n]]
        self.wrong += [n for n, m in run.masks.items() if bool((params[n][~m] != 0).any())]
        self.before = run.masks


def layers():
    return nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 3)
