"""Runs assembled as `prune-run` assembles them, and the plain training step that they are compared with."""

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prunebench import config
from prunebench.assembly import assemble
from prunebench.core.loop import fit
from prunebench.core.method import Method
from prunebench.core.phase import Phase
from prunebench.core.run import Run
from prunebench.display import Display
from prunebench.launch import instantiate
from prunebench.metrics.cost import count_macs
from prunebench.record import Recorder

MNIST = ("dataset.channels=1", "dataset.size=28")
CIFAR = ("dataset.channels=3", "dataset.size=32", "dataset.pad=4", "dataset.flip=true")


@dataclass
class Parts:
    """What `prunebench.assembly.assemble` returns, with the configuration."""

    cfg: dict[str, Any]
    run: Run
    method: Method
    plan: list[Phase]
    make_optimizer: Callable


def parts(*overrides: str, device: str = "cpu") -> Parts:
    """The parts of the run that `prune-run OVERRIDES` would do."""
    from hydra import compose, initialize_config_dir

    config.register()
    with initialize_config_dir(str(config.conf_directory().resolve()), version_base="1.3"):
        cfg = config.plain(compose("config", overrides=list(overrides)))
    return Parts(cfg, *assemble(cfg, device=torch.device(device), instantiate=instantiate))


def synthetic(model: str, *overrides: str, images: int, batch_size: int = 128, device: str = "cpu") -> Parts:
    """A run on synthetic images, without validation images."""
    return parts(
        *(f"model={model}", "dataset=synthetic", f"dataset.train_images={images}", "dataset.test_images=128"),
        *("dataset.validation=0", f"trainer.batch_size={batch_size}", *overrides),
        device=device,
    )


def prune(p: Parts, sparsity: float) -> None:
    """Prune the run's network to this sparsity by the run's own method."""
    p.method.prune(p.run, sparsity)


def sgd(model: nn.Module, **options: Any) -> torch.optim.SGD:
    """SGD with Nesterov momentum and weight decay; `fused=True` for the fused kernel, else the default."""
    return torch.optim.SGD(
        model.parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=5e-4, **options
    )


def plain_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: tuple[Tensor, Tensor],
    update: Callable[[], object] | None = None,
) -> Callable[[], None]:
    """A function that does one training step on a constant batch: the floor, nothing but arithmetic.

    Args:
      model: in training mode.
      optimizer: over its parameters.
      batch: images in the layout that the model wants, and labels.
      update: called instead of `optimizer.step`.
    """
    x, y = batch
    update, loss_fn = update or optimizer.step, nn.CrossEntropyLoss()
    model.train()

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss_fn(model(x), y).backward()
        update()

    return step


class EpochDone(Exception):
    """An epoch of the real training loop is over."""


class EpochRecorder(Recorder):
    """The real recorder, which leaves the loop at every epoch's end; the next call of `fit` goes on."""

    def settled(self, run: Run, method: Method, phase: Phase) -> None:
        """As always, then stop at an epoch's end."""
        super().settled(run, method, phase)
        if run.clock.step % run.data.steps_per_epoch == 0:
            raise EpochDone


def epochs_of(p: Parts, directory: Path, sparsity: float | None) -> Callable[[], None]:
    """A function that trains one epoch by `prunebench.core.loop.fit`, rows, display, checkpoints as usual.

    Args:
      p: the run; its own plan is not used.
      directory: where rows and checkpoints go.
      sparsity: the phase begins with a pruning event to this sparsity; None trains densely.
    """
    plan = [Phase("bench", "1000ep", p.plan[0].schedule, sparsity=sparsity)]
    trainer = p.cfg["trainer"]
    recorder = EpochRecorder(
        directory,
        plan=plan,
        identity={},
        macs=count_macs(p.run.model, p.run.data.shape),
        display=Display(stream=io.StringIO(), live=False),
        store=None,
        metrics={},
        export=lambda run, method: None,
        eval_every=trainer["eval_every"],
        checkpoint_every=trainer["checkpoint_every"],
        checkpoint_seconds=trainer["checkpoint_seconds"],
        asked_to_stop=lambda: 0,
    )
    recorder.begin(p.run, p.method, p.make_optimizer)

    def epoch() -> None:
        try:
            fit(plan, p.run, p.method, p.make_optimizer, recorder)
        except EpochDone:
            return
        raise AssertionError("the plan is over")

    return epoch
