"""Movement pruning by hand and by a loop: what is gathered, when, and what goes."""

import pytest
import torch
from torch import nn

from prunebench.core.loop import Sink, fit
from prunebench.core.masks import Masks
from prunebench.core.phase import Phase
from prunebench.methods.movement import Movement
from tests.unit.toy_nets import Images, run_of

torch.set_num_threads(1)


def linear_run(weights):
    model = nn.Sequential(nn.Linear(len(weights), 1, bias=False).double())
    model[0].weight.data = torch.tensor([weights], dtype=torch.float64)
    return run_of(model, Images(torch.zeros(4, len(weights)), torch.zeros(4, dtype=torch.int64), 4))


def step(run, method, gradient, lr=0.5):
    """One step with this dense gradient and learning rate."""
    if run.optimizer is None:
        run.optimizer = torch.optim.SGD(run.model.parameters(), lr=lr)
    run.optimizer.param_groups[0]["lr"] = lr
    run.model[0].weight.grad = torch.tensor([gradient], dtype=torch.float64)
    method.step(run)


def attached(run):
    method = Movement()
    method.attach(run)
    return method


def test_scores_grow_by_minus_learning_rate_times_gradient_times_weight():
    run = linear_run([2.0, -1.0, 0.5])
    method = attached(run)
    step(run, method, [1.0, 2.0, -4.0])
    # -0.5 * (1*2, 2*-1, -4*0.5); then the weights are 1.5, -2, 2.5
    assert method.scores["0.weight"].tolist() == [[-1.0, 1.0, 1.0]]
    assert run.model[0].weight.tolist() == [[1.5, -2.0, 2.5]]
    step(run, method, [2.0, 0.0, 1.0], lr=0.1)
    # -0.1 * (2*1.5, 0, 1*2.5)
    assert method.scores["0.weight"].tolist() == [[-1.3, 1.0, 0.75]]


def test_what_moved_away_from_0_stays_though_it_is_the_smallest():
    run = linear_run([2.0, -1.0, 0.1])
    method = attached(run)
    step(run, method, [1.0, -0.5, -1.0])  # the first two shrink, the third grows
    method.prune(run, 2 / 3)
    assert run.masks["0.weight"].tolist() == [[False, False, True]]


def test_the_gradient_is_gathered_before_the_masks_zero_it_and_pruned_weights_stand_still():
    run = linear_run([2.0, -1.0, 3.0])
    method = attached(run)
    step(run, method, [1.0, 2.0, 1.0])
    before = method.scores["0.weight"].clone()
    run.set_masks(Masks({"0.weight": torch.tensor([[True, False, True]])}))
    step(run, method, [1.0, 5.0, 1.0])
    moved = method.scores["0.weight"] - before
    assert moved.tolist() == [[-0.5 * 1.5, 0.0, -0.5 * 2.5]]
    assert run.model[0].weight[0, 1] == 0


class Small(nn.Module):
    """Two linear layers on a 2-pixel image, float32."""

    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(2, 6), nn.Linear(6, 2)

    def forward(self, x):
        return self.fc2(torch.relu(self.fc1(x)))


class Batches(Images):
    """The same images in every step."""

    steps_per_epoch = 2

    def batch(self, seed, step, *, rank=0, world=1):
        return self.x + step / 10, self.y


def fitted(plan, method):
    with torch.random.fork_rng():
        torch.manual_seed(3)
        x = torch.randn(8, 2)
        run = run_of(Small(), Batches(x, (x[:, 0] > 0).long(), 8))
    method.attach(run)

    def optimizer(run, method):
        made = torch.optim.SGD(run.model.parameters(), lr=0.2, momentum=0.9)
        made.param_groups[0]["initial_lr"] = 0.2
        return made

    start = {n: p.detach().clone() for n, p in run.model.named_parameters()}
    fit(plan, run, method, optimizer, Sink())
    return run, start


def falling(progress):
    return 1.0 - progress.step / progress.steps


PLAN = [Phase("dense", "5it", falling), Phase("round-01", "4it", falling, sparsity=0.5)]


def reference_movement(run, start):
    """Train on a plain copy, keeping every gradient and weight, and add up -lr * g * w at the end."""
    with torch.no_grad():
        model = Small()
        model.load_state_dict(start)
    masks, history, total = None, [], 0
    names = ["fc1.weight", "fc2.weight"]
    for steps in (5, 4):
        if history:
            scores = {n: -sum(lr * g[n] * w[n] for lr, g, w in history) for n in names}
            masks = {}
            for n in names:  # half of every layer, lowest scores first
                order = scores[n].flatten().argsort(descending=True)[: scores[n].numel() // 2]
                masks[n] = torch.zeros(scores[n].numel(), dtype=torch.bool)
                masks[n][order] = True
                masks[n] = masks[n].view(scores[n].shape)
        buffers = {n: torch.zeros_like(p) for n, p in model.named_parameters()}
        for i in range(steps):
            lr = 0.2 * (1 - i / steps)
            params = dict(model.named_parameters())
            with torch.no_grad():
                for n in masks or ():
                    params[n] *= masks[n]
            x, y = run.data.batch(0, total)
            model.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            grads = {n: p.grad.clone() for n, p in params.items()}
            history.append((lr, grads, {n: p.detach().clone() for n, p in params.items()}))
            with torch.no_grad():
                for n, p in params.items():
                    buffers[n] = 0.9 * buffers[n] + (
                        grads[n] * masks[n] if masks and n in masks else grads[n]
                    )
                    p -= lr * buffers[n]
            total += 1
    return masks, {n: -sum(lr * g[n] * w[n] for lr, g, w in history) for n in names}


def test_a_whole_run_gathers_and_prunes_as_a_loop_that_keeps_all_gradients():
    method = Movement(allocation="uniform")
    run, start = fitted(PLAN, method)
    masks, scores = reference_movement(run, start)
    assert all(torch.equal(run.masks[n], m) for n, m in masks.items())
    for n, s in scores.items():
        torch.testing.assert_close(method.scores[n], s, rtol=1e-4, atol=1e-6)  # float32, other order of sums


def test_scores_are_loaded_in_place_as_they_were_saved():
    run = linear_run([2.0, -1.0, 0.5])
    method, other = attached(run), attached(run)
    step(run, method, [1.0, 2.0, -4.0])
    target = other.scores["0.weight"]
    other.load_state_dict(method.state_dict())
    assert other.scores["0.weight"] is target
    assert torch.equal(target, method.scores["0.weight"])


def test_a_plan_that_prunes_before_training_is_refused():
    with pytest.raises(ValueError, match=r"method=movement: .*choose protocol=iterative or one_shot"):
        Movement().plan([Phase("train", "5it", falling, sparsity=0.5)])
