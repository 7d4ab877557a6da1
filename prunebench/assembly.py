"""The parts of a run, built from its configuration and checked against each other before any training."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from prunebench.compression import target_of, with_target
from prunebench.core.graph import GraphedStep, reset_optimizer_
from prunebench.core.method import Method, leaves_training_alone
from prunebench.core.phase import Phase, cycles, parse_length
from prunebench.core.run import Run, seeded
from prunebench.core.units import prunable_names
from prunebench.data.loader import Data
from prunebench.machine import precision_of, set_deterministic, use_channels_last
from prunebench.rounds import first_phases, with_controls

Instantiate = Callable[..., Any]


def assemble(
    cfg: Mapping[str, Any],
    *,
    device: torch.device,
    instantiate: Instantiate,
    rank: int = 0,
    world: int = 1,
    phases: int | None = None,
) -> tuple[Run, Method, list[Phase], Callable]:
    """The parts of a run, checked against each other: run, method (attached), plan, optimizer factory.

    Args:
      cfg: the resolved configuration, plain containers.
      device: what to compute on.
      instantiate: builds the object of a node with `_target_`, given runtime arguments.
      rank, world: this process and the number of processes.
      phases: how many of the protocol's phases to train; None for all.

    Raises:
      ValueError: for parts that do not fit together.
    """
    trainer, seed = cfg["trainer"], cfg["seed"]
    if trainer["batch_size"] < 1:
        raise ValueError(f"trainer.batch_size={trainer['batch_size']}: must be 1 or more")
    if device.type == "cuda":
        set_deterministic(trainer["deterministic"])
    data = instantiate(cfg["dataset"], batch_size=trainer["batch_size"], device=device)
    channels, size = data.shape[0], data.shape[-1]

    method = instantiate(cfg["method"])
    for node in cfg["companion"].values():
        method = instantiate(node, base=method)
    check_sparsity(cfg, method)

    def build() -> nn.Module:
        options = {"in_channels": channels, "num_classes": data.num_classes, "image_size": size}
        return method.network(instantiate(cfg["model"], **options))

    def fresh_state(*key: object) -> dict[str, torch.Tensor]:
        with seeded(seed, *key):
            return build().state_dict()

    with seeded(seed, "init"):
        model = build().to(device)
    if use_channels_last(trainer["channels_last"], model):
        model = model.to(memory_format=torch.channels_last)
        data.memory_format = torch.channels_last
    run = Run(
        model=model,
        data=data,
        loss_fn=nn.CrossEntropyLoss(label_smoothing=trainer["label_smoothing"]),
        prunable=prunable_names(model, cfg["sparsity"]["exclude"]),
        seed=seed,
        fresh_state=fresh_state,
        precision=precision_of(trainer["precision"], device),
        rank=rank,
        world=world,
    )
    run.network = wrap(run, trainer)
    schedule, retrain = instantiate(cfg["schedule"]), instantiate(cfg["retrain"])
    protocol = with_target(cfg["protocol"], target_of(cfg, run, method.granularity))
    plan = instantiate(protocol, schedule=schedule, retrain_schedule=retrain)
    plan = with_controls([phase.settled(run) for phase in first_phases(method.plan(plan), phases)])
    run.cycles = cycles(plan)
    make_optimizer = partial(_make_optimizer, instantiate(cfg["optimizer"]), trainer["decay"])
    if trainer["cuda_graph"]:
        check_graph(run, method, trainer)
        run.graphed_step = GraphedStep()
        make_optimizer = keep_optimizer(make_optimizer)
    check(plan, run, method, trainer, make_optimizer)
    if trainer["shrink"]:
        check_shrink(plan, run, method, trainer)
        run.shrinks = True
    method.attach(run)
    return run, method, plan, make_optimizer


def check_sparsity(cfg: Mapping[str, Any], method: Method) -> None:
    """Refuse options of sparsity that the method does not follow: the result would state what was not done.

    Raises:
      ValueError: naming the option and the way out.
    """
    for key, value in cfg["sparsity"].items():
        if cfg["method"].get(key, value) != value:
            raise ValueError(
                f"method.{key}={cfg['method'][key]}: results are told apart by sparsity.{key}; set that"
            )
    asked = cfg["sparsity"]["granularity"]
    prunes = method.during_training or type(method).prune is not Method.prune
    if prunes and asked != method.granularity:
        way_out = "unstructured" if method.granularity == "weight" else method.granularity
        raise ValueError(
            f"sparsity.granularity={asked}: {type(method).__name__} prunes every {method.granularity} by "
            f"itself; use sparsity={way_out}"
        )


def wrap(run: Run, trainer: Mapping[str, Any]) -> nn.Module:
    """What the forward pass calls: the model, compiled or under DistributedDataParallel if so wanted."""
    model = run.model
    if run.world > 1:
        if trainer["sync_bn"]:
            if run.device.type != "cuda":
                raise ValueError(
                    "trainer.sync_bn=true: needs CUDA; on CPUs BatchNorm uses each process's own part"
                )
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        devices = [run.device] if run.device.type == "cuda" else None
        model = nn.parallel.DistributedDataParallel(model, device_ids=devices)
    return torch.compile(model) if trainer["compile"] else model


def check(
    plan: Sequence[Phase], run: Run, method: Method, trainer: Mapping[str, Any], make_optimizer: Callable
) -> None:
    """Everything that can be known to fail, before training."""
    names = [p.name for p in plan]
    assert len(set(names)) == len(names), names
    spe = run.data.steps_per_epoch
    for key in ("eval_every", "checkpoint_every"):
        try:
            steps = parse_length(trainer[key], spe)
        except ValueError as error:
            raise ValueError(f"trainer.{key}={trainer[key]}: {str(error).split(': ', 1)[1]}") from None
        if steps < 1:
            raise ValueError(f"trainer.{key}={trainer[key]}: must be at least one step, 1it")
    if not 0 <= trainer["label_smoothing"] <= 1:
        raise ValueError(f"trainer.label_smoothing={trainer['label_smoothing']}: must lie in [0, 1]")
    if trainer["share"] not in ("none", "dense", "all"):
        raise ValueError(f"trainer.share={trainer['share']}: must be one of none, dense, all")
    if trainer["decay"] not in ("all", "weights"):
        raise ValueError(f"trainer.decay={trainer['decay']}: must be one of all, weights")
    left_over = run.data.sizes["train"] % run.data.batch_size
    if run.world > 1 and (0 < left_over < run.world or run.data.batch_size < run.world):
        raise ValueError(
            f"trainer.batch_size={run.data.batch_size}: leaves a last batch of {left_over} images for "
            f"{run.world} processes; choose another batch size"
        )
    within = [p.name for p in plan if p.within]
    if bool(within) != method.during_training:
        rule = "does not prune while it trains" if within else "prunes while it trains"
        way_out = "another protocol" if within else "protocol=during_training"
        raise ValueError(f"protocol: method {type(method).__name__} {rule}; choose {way_out}")
    for phase in plan:
        if phase.within and not phase.steps(run):
            raise ValueError(
                f"protocol.dense, protocol.multiplier: phase {phase.name}, in which the method prunes, has "
                "no step; make it longer"
            )
    if any(phase.aside for phase in plan) and not leaves_training_alone(method):
        raise ValueError(f"protocol.control_at=every: {type(method).__name__} changes the training; use last")
    method.check(run, [p.asked for p in plan if p.asked is not None])
    for phase in plan:
        validated = phase.keep == "best" or phase.patience is not None
        if validated and not run.data.sizes.get("valid"):
            raise ValueError(
                "protocol.keep=best and protocol.patience need validation images; set dataset.validation=0.1"
            )
        late = [name for name, at in phase.snapshot if at != "0it"]
        if phase.patience is not None and late:
            what = "protocol.rewind_to" if "rewind" in late else f"the snapshot that is needed ({late[0]})"
            raise ValueError(
                f"protocol.patience={phase.patience}: may end a training before the point of {what}; use one "
                "of the two"
            )
        if phase.shuffle and method.granularity != "weight":
            raise ValueError(
                f"protocol.control: shuffles single weights, sparsity.granularity={method.granularity} "
                "prunes others; use protocol.control=reinit or sparsity.granularity=weight"
            )
        if not callable(phase.length) and (steps := phase.steps(run)):
            run.clock.steps = steps
            _try_schedule(phase, run, training=phase is plan[0])
    run.clock.steps = 0
    try:
        make_optimizer(run, method)
    except ValueError as error:  # torch names the option only in its own words
        raise ValueError(f"optimizer: {error}; correct optimizer.* or choose another optimizer") from None


def _try_schedule(phase: Phase, run: Run, *, training: bool) -> None:
    """Ask for the phase's first learning rate; a refusal names the option with its group.

    The first phase is trained by the training schedule, later ones by the retraining schedule.
    """
    try:
        phase.schedule(run.progress(phase.peak))
    except ValueError as error:
        if "." in str(error).partition("=")[0]:
            raise
        # retraining after `of`, the training schedule, passes on what that refuses
        training = training or "of" in getattr(phase.schedule, "keywords", ())
        raise ValueError(f"{'schedule' if training else 'retrain'}.{error}") from None


def _make_optimizer(factory: Callable, decay: str, run: Run, method: Method) -> torch.optim.Optimizer:
    """Optimizer over the model's and the method's parameters; fused (1 to 10 % faster) where that exists."""
    params = dict(run.trained.named_parameters())
    if decay == "all":
        groups = [{"params": list(params.values())}]
    else:
        groups = [
            {"params": [p for p in params.values() if p.ndim > 1]},
            {"params": [p for p in params.values() if p.ndim <= 1], "weight_decay": 0.0},
        ]
    groups = [g for g in groups if g["params"]] + method.param_groups()
    try:
        optimizer = factory(groups, fused=True)
    except (TypeError, RuntimeError):
        optimizer = factory(groups)
    for group in optimizer.param_groups:
        group["initial_lr"] = float(group["lr"])
    return optimizer


def check_shrink(plan: Sequence[Phase], run: Run, method: Method, trainer: Mapping[str, Any]) -> None:
    """Refuse to train the shrunk network where there is none, or where it would not be the same training.

    Raises:
      ValueError: naming what stands in the way.
    """
    reason = None
    if method.granularity not in ("filter", "neuron"):
        reason = f"needs whole channels to cut out, sparsity.granularity is {method.granularity}; use filter"
    elif all(phase.sparsity is None for phase in plan):
        reason = "has no effect, this plan prunes nothing; set it to false"
    elif run.world > 1 or trainer["compile"]:
        reason = "goes neither with several processes nor with trainer.compile=true; set it to false"
    elif not leaves_training_alone(method):
        reason = f"{type(method).__name__} changes the training of the original network; set it to false"
    if reason:
        raise ValueError(f"trainer.shrink=true: {reason}")


def check_graph(run: Run, method: Method, trainer: Mapping[str, Any]) -> None:
    """Refuse CUDA graphs where they cannot work.

    Raises:
      ValueError: naming what stands in the way.
    """
    reason = None
    if run.device.type != "cuda":
        reason = f"needs CUDA, the device is {run.device.type}"
    elif run.world > 1 or trainer["compile"]:
        reason = "goes neither with several processes nor with trainer.compile=true"
    elif not leaves_training_alone(method) and type(method).changes_step is Method.changes_step:
        reason = f"a captured step is always the same, {type(method).__name__} changes it"
    elif not isinstance(run.data, Data):
        reason = "needs data that lie on the device"
    if reason:
        raise ValueError(f"trainer.cuda_graph=true: {reason}; set it to false")


def keep_optimizer(make: Callable) -> Callable:
    """An optimizer factory that builds once and then gives the same object with its state set to 0.

    A smaller network that is trained in the place of the whole one has an optimizer of its own.
    """
    built: list[torch.optim.Optimizer] = []

    def again(run: Run, method: Method) -> torch.optim.Optimizer:
        if not built or run.shrunk is not None:
            optimizer = make(run, method)
            for group in optimizer.param_groups:
                if group.get("dampening"):
                    raise ValueError("trainer.cuda_graph=true: goes with optimizer.dampening=0 only")
                dtype = torch.float32 if run.device.type == "cuda" else torch.float64
                group["lr"] = torch.tensor(float(group["lr"]), dtype=dtype, device=run.device)
                if "capturable" in group:
                    group["capturable"] = True
            if run.shrunk is not None:
                return optimizer
            built.append(optimizer)
        reset_optimizer_(built[0])
        return built[0]

    return again
