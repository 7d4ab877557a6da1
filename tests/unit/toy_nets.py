"""Small networks with worked numbers, and runs of them, for the tests of criteria."""

from copy import deepcopy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunebench.core.run import Run, seeded
from prunebench.core.units import PrunableModel, Unit, prunable_names

W1, W2 = [[0.5, -1.0], [1.5, 0.25], [-0.75, 2.0]], [[1.0, -0.5, 0.2], [-0.3, 0.8, -1.2]]
X, Y = [[1.0, 2.0], [2.0, -1.0], [-1.0, 0.5], [0.5, 1.0]], [0, 1, 1, 0]


class Toy(PrunableModel):
    """y = W2 relu(W1 x) of baselines-scoring, section 7."""

    head = "fc2"

    def __init__(self):
        super().__init__()
        self.fc1, self.relu, self.fc2 = nn.Linear(2, 3, bias=False), nn.ReLU(), nn.Linear(3, 2, bias=False)
        self.fc1.weight.data = torch.tensor(W1, dtype=torch.float64)
        self.fc2.weight.data = torch.tensor(W2, dtype=torch.float64)

    def forward(self, x):
        return self.fc2(self.relu(self.fc1(x)))

    def units(self):
        return [Unit("fc1", 3, (("fc1.weight", 0),), (("fc2.weight", 1),))]


class Small(PrunableModel):
    """1x4x4 -> 3 maps (BatchNorm) -> 4 maps -> flattened 2x2 -> dropout -> 2 logits, float64."""

    head = "fc"

    def __init__(self, seed=0):
        super().__init__()
        with seeded("small", seed):
            self.conv1, self.bn = nn.Conv2d(1, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3)
            self.relu1, self.pool = nn.ReLU(), nn.MaxPool2d(2)
            self.conv2, self.relu2 = nn.Conv2d(3, 4, 3, padding=1), nn.ReLU()
            self.flatten, self.drop, self.fc = nn.Flatten(), nn.Dropout(0.3), nn.Linear(16, 2)
            self.double()
            for tensor in (self.bn.weight, self.bn.bias, self.bn.running_mean):
                nn.init.normal_(tensor)
            self.bn.running_mean[0] = -1.0
            nn.init.uniform_(self.bn.running_var, 0.5, 2.0)

    def forward(self, x):
        x = self.pool(self.relu1(self.bn(self.conv1(x))))
        return self.fc(self.drop(self.flatten(self.relu2(self.conv2(x)))))

    def units(self):
        norm = tuple((f"bn.{n}", 0) for n in ("weight", "bias", "running_mean", "running_var"))
        return [
            Unit("conv1", 3, (("conv1.weight", 0), *norm), (("conv2.weight", 1),)),
            Unit("conv2", 4, (("conv2.weight", 0), ("conv2.bias", 0)), (("fc.weight", 1),)),
        ]


class Images:
    """Training images given as tensors; scoring takes consecutive batches of them, as they come."""

    def __init__(self, x: Tensor, y: Tensor, batch_size: int):
        self.x, self.y, self.batch_size, self.num_classes = x, y, batch_size, 2
        self.shape, self.sizes, self.asked = tuple(x.shape[1:]), {"train": len(y)}, []

    class_names = ("a", "b")

    def class_counts(self):
        return torch.bincount(self.y, minlength=2).tolist()

    def scoring(self, generator, *, batches=1, per_class=None):
        self.asked.append({"batches": batches, "per_class": per_class})
        if per_class is None:
            chosen = torch.arange(batches * self.batch_size)
        else:
            chosen = torch.cat([(self.y == c).nonzero()[:per_class, 0] for c in range(2)])
        return [(self.x[i], self.y[i]) for i in chosen.split(self.batch_size)]


def run_of(model: nn.Module, data: Images) -> Run:
    return Run(model=model, data=data, loss_fn=nn.CrossEntropyLoss(), prunable=prunable_names(model), seed=0)


def toy_run(repeat=1) -> Run:
    """The toy net with its four images as one batch, `repeat` batches of the same."""
    x, y = torch.tensor(X, dtype=torch.float64).repeat(repeat, 1), torch.tensor(Y).repeat(repeat)
    return run_of(Toy(), Images(x, y, batch_size=4))


def small_run(images=15, batch_size=5) -> Run:
    rng = torch.Generator().manual_seed(1)
    x = torch.randn(images, 1, 4, 4, generator=rng, dtype=torch.float64)
    return run_of(Small(), Images(x, torch.randint(2, (images,), generator=rng), batch_size))


def flat(scores) -> list[float]:
    """All scores in a row, to the six digits that the card prints."""
    return [round(v, 6) for s in scores.values() for v in s.flatten().tolist()]


def backward(run, images, mode):
    """Name -> gradient of the mean loss of one batch, by loss.backward() on a copy of the network."""
    model = deepcopy(run.model).train(mode == "train")
    with torch.random.fork_rng():
        torch.manual_seed(run.rng("criterion dropout").initial_seed())
        F.cross_entropy(model(images[0]), images[1]).backward()
    return {n: p.grad for n, p in model.named_parameters() if n in run.masks}


def close(scores, wanted):
    """Equal up to the rounding of another order of summation in float64."""
    assert scores.keys() == wanted.keys()
    for name, score in scores.items():
        torch.testing.assert_close(score, wanted[name], rtol=1e-9, atol=1e-12)
