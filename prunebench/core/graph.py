"""A training step as one CUDA graph: one launch instead of hundreds, for networks with short kernels."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Capture = Callable[[Callable[[], None]], Callable[[], None]]


def capture_on_cuda(work: Callable[[], None]) -> Callable[[], None]:
    """Record the work as a CUDA graph; calling the result replays it on the same tensors."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph.replay


class GraphedStep:
    """Forward, loss, backward and masked update of plain training, captured once and replayed.

    Captured again only when the tensors that it reads are others: at the first pruning event, not at every
    round, since masks change in place (`Masks.inherit_`) and the optimizer is kept over phases with its state
    set to 0 (`reset_optimizer_`); and in every phase that trains a smaller network of its own. The learning
    rate is a tensor. A batch of another size (the last of an epoch) is left to the ordinary step. Nothing of
    the run's state is changed by the capture.

    Args:
      capture: turns work into a replayable function; for tests without CUDA it may return the work itself.
    """

    WARMUP = 3

    def __init__(self, capture: Capture = capture_on_cuda):
        self.capture = capture
        self.captures = 0
        self._key: tuple[int, ...] | None = None
        self._trained: tuple[Any, Any] = (None, None)  # network and optimizer that were captured
        self._replay: Callable[[], None] | None = None
        self._x = self._y = self._loss = torch.empty(0)

    def __call__(self, run: Any, method: Any, x: Tensor, y: Tensor) -> Tensor:
        """One step on a batch; the mean loss, valid until the next call."""
        key, trained = (*x.shape, *run.masks.addresses(run.model)), (run.trained, run.optimizer)
        if key != self._key or any(a is not b for a, b in zip(trained, self._trained)):
            self._prepare(run, method, x, y)
            self._key, self._trained = key, trained
            run.seed_step()  # the warm-up has drawn from the generators
        self._x.copy_(x)
        self._y.copy_(y)
        self._replay()
        return self._loss

    def _prepare(self, run: Any, method: Any, x: Tensor, y: Tensor) -> None:
        self._x, self._y, self._loss = x.clone(), y.clone(), torch.zeros((), device=x.device)

        def work() -> None:
            with run.autocast():
                loss = method.loss(run, method.forward(run, self._x), self._y)
            loss.backward()
            method.step(run)
            self._loss.copy_(loss.detach())

        def warm_up() -> None:
            for _ in range(self.WARMUP):
                run.optimizer.zero_grad(set_to_none=True)
                work()

        kept = _copies(run)
        if x.device.type == "cuda":
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                warm_up()
            torch.cuda.current_stream().wait_stream(stream)
        else:
            warm_up()
        run.optimizer.zero_grad(set_to_none=True)
        replay = self.capture(work)
        self._replay = replay if x.device.type == "cuda" else _with_fresh_gradients(run, replay)
        _put_back(run, kept)
        self.captures += 1


def _with_fresh_gradients(run: Any, work: Callable[[], None]) -> Callable[[], None]:
    """Without a graph gradients would add up: a captured backward pass writes them anew."""

    def step() -> None:
        run.optimizer.zero_grad(set_to_none=True)
        work()

    return step


def _copies(run: Any) -> tuple[list[Tensor], dict[int, dict[str, Tensor]]]:
    """Copies of parameters, buffers and optimizer state."""
    model = [t.detach().clone() for t in (*run.trained.parameters(), *run.trained.buffers())]
    state = {
        id(p): {k: v.clone() for k, v in values.items() if isinstance(v, Tensor)}
        for p, values in run.optimizer.state.items()
    }
    return model, state


@torch.no_grad()
def _put_back(run: Any, kept: tuple[list[Tensor], dict[int, dict[str, Tensor]]]) -> None:
    """Undo the warm-up in place; optimizer state that did not exist before is 0, as a fresh one behaves."""
    model, state = kept
    for tensor, value in zip((*run.trained.parameters(), *run.trained.buffers()), model):
        tensor.copy_(value)
    for p, values in run.optimizer.state.items():
        for name, value in values.items():
            if isinstance(value, Tensor):
                before = state.get(id(p), {}).get(name)
                value.zero_() if before is None else value.copy_(before)


def reset_optimizer_(optimizer: torch.optim.Optimizer) -> None:
    """Set all state to 0 in place: the optimizer behaves like a new one, its tensors stay where they are."""
    for values in optimizer.state.values():
        for value in values.values():
            if isinstance(value, Tensor):
                value.zero_()
