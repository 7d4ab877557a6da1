"""One run from its configuration: assemble the parts, check them, train, and leave a result directory."""

import json
import platform
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from prunebench import __version__
from prunebench.core import parallel
from prunebench.core.checkpoint import write_atomically
from prunebench.core.graph import GraphedStep, reset_optimizer_
from prunebench.core.loop import fit
from prunebench.core.method import Method, leaves_training_alone
from prunebench.core.phase import Phase, parse_length
from prunebench.core.run import Run, seeded
from prunebench.core.units import prunable_names
from prunebench.data.loader import Data
from prunebench.metrics.cost import count_macs
from prunebench.record import Recorder
from prunebench.result import write_final
from prunebench.store import PrefixStore, address

Instantiate = Callable[..., Any]


class Busy(ValueError):
    """Another process is working in the result directory."""


def run_experiment(
    cfg: Mapping[str, Any],
    *,
    directory: Path,
    choices: Mapping[str, Any],
    overrides: Sequence[str],
    instantiate: Instantiate,
    display: Any,
    asked_to_stop: Callable[[], int],
    jobs: int = 1,
    identity: str = "",
) -> str:
    """Run, resume or skip the run of this configuration.

    Args:
      cfg: the resolved configuration, plain containers.
      directory: the run's own, a function of the configuration.
      choices: group -> chosen option.
      overrides: what the user typed.
      instantiate: builds the object of a node with `_target_`, given runtime arguments.
      display: shows the run (`prunebench.display.Display`).
      asked_to_stop: the number of a signal that has come in, or 0.
      jobs: jobs that run side by side on this machine.
      identity: the run's id.

    Returns:
      "done", "already done" or "planned".

    Raises:
      ValueError: for a configuration that cannot work, before any training.
      Interrupted, Diverged, CheckpointError, OSError: see prunebench.record.
    """
    from filelock import FileLock, Timeout

    if not cfg["plan"] and is_done(directory):
        display.event(f"already done: {directory} (delete it to run again)")
        return "already done"
    trainer = cfg["trainer"]
    device = pick_device(trainer["device"])
    rank, world = parallel.start(device)
    display.quiet |= bool(trainer["quiet"]) or rank > 0
    threads = set_threads(trainer["threads"], jobs=jobs, world=world)
    run, method, plan, make_optimizer = assemble(
        cfg, device=device, instantiate=instantiate, rank=rank, world=world
    )
    macs = count_macs(run.model, run.data.shape)
    facts = describe(run, cfg, choices, threads=threads, macs=macs, directory=directory)
    display.plan(f"{title(choices)}, seed {cfg['seed']}", plan_rows(plan, run, macs, choices), facts)
    if cfg["plan"]:
        return "planned"
    if rank == 0:
        make_directory(directory, "out", directory.parent)
        if trainer["share"] != "none" and world == 1:
            make_directory(Path(trainer["store"]), "trainer.store", trainer["store"])
    parallel.wait_for_all(world)
    lock = FileLock(str(directory / "lock"))
    try:
        if rank == 0:
            lock.acquire(timeout=0)
    except Timeout:
        raise Busy(
            f"{directory}: another process is running this configuration; wait for it or stop it"
        ) from None
    try:
        if rank == 0:
            for left in directory.glob(".*.tmp"):  # of a process that was killed while it wrote
                left.unlink()
            write_start(directory, cfg, choices, overrides, identity, device=device, threads=threads)
        recorder = Recorder(
            directory,
            plan=plan,
            identity=identify(cfg, choices, identity),
            macs=macs,
            display=display,
            store=open_store(cfg, plan, run, method, threads, display, asked_to_stop),
            export=partial(_export, directory=directory, cfg=cfg),
            picture=partial(_picture, directory=directory),
            eval_every=trainer["eval_every"],
            checkpoint_every=trainer["checkpoint_every"],
            checkpoint_seconds=trainer["checkpoint_seconds"],
            asked_to_stop=asked_to_stop,
        )
        try:
            recorder.begin(run, method, make_optimizer)
            fit(plan, run, method, make_optimizer, recorder)
        finally:
            recorder.close()
    finally:
        lock.release()
        parallel.stop()
    return "done"


def is_done(directory: Path) -> bool:
    """Whether a whole result.json is there; a damaged one is written again from the last checkpoint."""
    try:
        json.loads((directory / "result.json").read_text())
    except (FileNotFoundError, ValueError):
        return False
    return True


# Parts


def pick_device(name: str) -> torch.device:
    """The device of a name; "auto" is CUDA where there is one.

    Raises:
      ValueError: if there is no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"trainer.device={name}: must be auto, cpu, cuda or cuda:<number>") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            f"trainer.device={name}: no CUDA device is available here; use trainer.device=cpu or auto"
        )
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"trainer.device={name}: must be auto, cpu, cuda or cuda:<number>")
    if device.type == "cuda" and parallel.launched_by_torchrun():
        device = torch.device("cuda", parallel.local_rank())
        torch.cuda.set_device(device)
    return device


def set_threads(threads: int | None, *, jobs: int, world: int) -> int:
    """Set the number of CPU threads; by default all cores, shared out among jobs. Returns the number in force.

    Raises:
      ValueError: if it is less than 1.
    """
    if threads is not None and threads < 1:
        raise ValueError(f"trainer.threads={threads}: must be 1 or more, or null for all cores")
    if threads is None and jobs > 1:
        threads = max(1, torch.get_num_threads() // jobs)
    if threads is not None and (world == 1 or threads):
        torch.set_num_threads(threads)
    return torch.get_num_threads()


def precision_of(name: str, device: torch.device) -> torch.dtype | None:
    """Autocast dtype, or None for float32. On a CPU without bf16 units bf16 is 4 to 14 times slower: auto avoids it.

    Raises:
      ValueError: if the name is none of auto, fp32, bf16.
    """
    if name not in ("auto", "fp32", "bf16"):
        raise ValueError(f"trainer.precision={name}: must be one of auto, fp32, bf16")
    if name == "bf16" and device.type == "cpu" and not _cpu_has_bf16():
        print(
            "warning: trainer.precision=bf16: this CPU has no bf16 units, fp32 is faster here",
            file=sys.stderr,
        )
    wanted = name == "bf16" or (name == "auto" and device.type == "cuda" and torch.cuda.is_bf16_supported())
    return torch.bfloat16 if wanted else None


def _cpu_has_bf16() -> bool:
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.machine() == "arm64"
    return "avx512_bf16" in flags or "amx_bf16" in flags or " bf16" in flags


def assemble(
    cfg: Mapping[str, Any], *, device: torch.device, instantiate: Instantiate, rank: int = 0, world: int = 1
) -> tuple[Run, Method, list[Phase], Callable]:
    """The parts of a run, checked against each other: run, method (attached), plan, optimizer factory.

    Raises:
      ValueError: for parts that do not fit together.
    """
    trainer, seed = cfg["trainer"], cfg["seed"]
    if trainer["batch_size"] < 1:
        raise ValueError(f"trainer.batch_size={trainer['batch_size']}: must be 1 or more")
    if device.type == "cuda":
        _set_deterministic(trainer["deterministic"])
    data = instantiate(cfg["dataset"], batch_size=trainer["batch_size"], device=device)
    channels, size = data.shape[0], data.shape[-1]

    def build() -> nn.Module:
        return instantiate(cfg["model"], in_channels=channels, num_classes=data.num_classes, image_size=size)

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
    method = instantiate(cfg["method"])
    for node in cfg["companion"].values():
        method = instantiate(node, base=method)
    schedule, retrain = instantiate(cfg["schedule"]), instantiate(cfg["retrain"])
    plan = instantiate(cfg["protocol"], schedule=schedule, retrain_schedule=retrain)
    plan = [phase.settled(run) for phase in plan]
    make_optimizer = partial(_make_optimizer, instantiate(cfg["optimizer"]), trainer["decay"])
    if trainer["cuda_graph"]:
        check_graph(run, method, trainer)
        run.graphed_step = GraphedStep()
        make_optimizer = keep_optimizer(make_optimizer)
    check(plan, run, method, trainer, make_optimizer)
    method.attach(run)
    return run, method, plan, make_optimizer


def _set_deterministic(deterministic: bool) -> None:
    import os

    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(deterministic)
    torch.utils.deterministic.fill_uninitialized_memory = False
    torch.backends.cudnn.benchmark = not deterministic


def use_channels_last(setting: bool | str, model: nn.Module) -> bool:
    """Whether convolutions run in channels_last: faster by 7 to 30 %, and harmful in one case on a CPU.

    oneDNN corrupts memory in the backward pass of strided 1x1 convolutions with fewer than 8 input channels.

    Raises:
      ValueError: if the setting is none of auto, true, false, or asks for that case.
    """
    from prunebench.models.layers import has_unsafe_strided_1x1

    if setting not in ("auto", True, False):
        raise ValueError(f"trainer.channels_last={setting}: must be one of auto, true, false")
    unsafe = next(model.parameters()).device.type == "cpu" and has_unsafe_strided_1x1(model)
    if setting is True and unsafe:
        raise ValueError(
            "trainer.channels_last=true: this network has strided 1x1 convolutions with fewer than 8 input channels, "
            "which crash in this format on a CPU; use trainer.channels_last=auto"
        )
    has_convolutions = any(isinstance(m, nn.Conv2d) for m in model.modules())
    return bool(setting) and has_convolutions and not unsafe


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
            f"trainer.batch_size={run.data.batch_size}: leaves a last batch of {left_over} images for {run.world} "
            "processes; choose another batch size"
        )
    method.check(run, [p.sparsity for p in plan if p.sparsity is not None])
    for phase in plan:
        if phase.keep == "best" or phase.patience is not None:
            if not run.data.sizes.get("valid"):
                raise ValueError(
                    "protocol.keep=best and protocol.patience need validation images; set dataset.validation=0.1"
                )
        if not callable(phase.length) and (steps := phase.steps(run)):
            run.clock.steps = steps
            phase.schedule(run.progress())
    run.clock.steps = 0
    try:
        make_optimizer(run, method)
    except ValueError as error:  # torch names the option only in its own words
        raise ValueError(f"optimizer: {error}; correct optimizer.* or choose another optimizer") from None


def _make_optimizer(factory: Callable, decay: str, run: Run, method: Method) -> torch.optim.Optimizer:
    """Optimizer over the model's and the method's parameters; fused kernels where they exist (1 to 10 % faster)."""
    params = dict(run.model.named_parameters())
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
    elif not leaves_training_alone(method):
        reason = f"a captured step is always the same, {type(method).__name__} changes it"
    elif not isinstance(run.data, Data):
        reason = "needs data that lie on the device"
    if reason:
        raise ValueError(f"trainer.cuda_graph=true: {reason}; set it to false")


def keep_optimizer(make: Callable) -> Callable:
    """An optimizer factory that builds once and then gives the same object with its state set to 0."""
    built: list[torch.optim.Optimizer] = []

    def again(run: Run, method: Method) -> torch.optim.Optimizer:
        if not built:
            optimizer = make(run, method)
            for group in optimizer.param_groups:
                if group.get("dampening"):
                    raise ValueError("trainer.cuda_graph=true: goes with optimizer.dampening=0 only")
                dtype = torch.float32 if run.device.type == "cuda" else torch.float64
                group["lr"] = torch.tensor(float(group["lr"]), dtype=dtype, device=run.device)
                if "capturable" in group:
                    group["capturable"] = True
            built.append(optimizer)
        reset_optimizer_(built[0])
        return built[0]

    return again


# What is shared with other runs


def open_store(
    cfg: Mapping[str, Any],
    plan: Sequence[Phase],
    run: Run,
    method: Method,
    threads: int,
    display: Any,
    asked_to_stop: Callable[[], int],
) -> PrefixStore | None:
    """The store of shared prefixes, with the addresses of this run's; None when it is not to be used."""
    trainer = cfg["trainer"]
    if trainer["share"] == "none" or run.world > 1:
        return None
    said = set()

    def waiting(key: str) -> None:
        from prunebench.record import Interrupted

        if key not in said:
            said.add(key)
            display.event(f"waiting: another job is training the shared phase {key}")
        if asked_to_stop():
            raise Interrupted(asked_to_stop())

    keys = prefix_keys(cfg, plan, run, method, threads)
    return PrefixStore(Path(trainer["store"]).absolute(), keys, waiting)


def prefix_keys(
    cfg: Mapping[str, Any], plan: Sequence[Phase], run: Run, method: Method, threads: int
) -> dict[int, str]:
    """Phase index -> content address of all that can influence the run's state at that phase's end."""
    trainer = {
        k: cfg["trainer"][k]
        for k in (
            *("batch_size", "precision", "channels_last", "compile", "cuda_graph", "deterministic"),
            *("label_smoothing", "decay", "eval_every"),
        )
    }
    device = str(torch.cuda.get_device_name(run.device)) if run.device.type == "cuda" else "cpu"
    content: dict[str, Any] = {
        "versions": [__version__, torch.__version__],
        "device": [device, threads],
        "seed": cfg["seed"],
        "trainer": trainer,
        "exclude": cfg["sparsity"]["exclude"],
        **{k: cfg[k] for k in ("model", "dataset", "optimizer", "schedule")},
        "phases": [],
    }
    alone, keys = leaves_training_alone(method), {}
    for index, phase in enumerate(plan):
        pruned = any(p.sparsity is not None for p in plan[: index + 1])
        if callable(phase.length) or (pruned and cfg["trainer"]["share"] == "dense"):
            break
        content["phases"].append(
            [
                *(phase.name, phase.length, phase.sparsity, phase.weights, phase.shuffle),
                *(list(phase.snapshot), phase.keep, phase.patience),
            ]
        )
        if pruned or not alone:
            content |= {k: cfg[k] for k in ("method", "companion", "criterion", "retrain")}
        keys[index] = address(content)
    return keys


# What is said and written


def title(choices: Mapping[str, Any]) -> str:
    """The run in a few words: method, companions, model and data."""
    companions = "".join(f"+{c}" for c in choices.get("companion") or [])
    return f"{choices['method']}{companions}: {choices['model']} on {choices['dataset']}"


def plan_rows(
    plan: Sequence[Phase], run: Run, macs: Mapping[str, int], choices: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Rows of the plan's table; cost is MACs per image times images, of the dense network."""
    rows, spe = [], run.data.steps_per_epoch
    for phase in plan:
        steps = None if callable(phase.length) else phase.steps(run)
        images = None if steps is None else steps / spe * run.data.sizes["train"]
        rows.append(
            {
                "name": phase.name,
                "epochs": None if steps is None else steps / spe,
                "steps": steps,
                "sparsity": phase.sparsity,
                "weights": phase.weights if not phase.shuffle else f"{phase.weights}, shuffled",
                "schedule": choices["schedule"] if phase.sparsity is None else choices["retrain"],
                "cost": None if images is None else 3 * images * sum(macs.values()),
            }
        )
    return rows


def describe(
    run: Run,
    cfg: Mapping[str, Any],
    choices: Mapping[str, Any],
    *,
    threads: int,
    macs: Mapping[str, int],
    directory: Path,
) -> dict[str, str]:
    """Facts that are shown above the plan."""
    total = sum(p.numel() for p in run.model.parameters())
    sizes, (c, h, w) = run.data.sizes, run.data.shape
    if run.device.type == "cuda":
        device = torch.cuda.get_device_name(run.device)
    else:
        device = f"cpu, {threads} thread{'s' if threads > 1 else ''}"
    how = "bf16" if run.precision else "fp32"
    processes = f", {run.world} processes" if run.world > 1 else ""
    return {
        "model": f"{choices['model']}, {total:,} parameters, {sum(macs.values()):,} MACs per image",
        "data": f"{choices['dataset']}, {c}x{h}x{w}, {run.data.num_classes} classes: {sizes['train']:,} train, "
        f"{sizes.get('valid', 0):,} valid, {sizes['test']:,} test; batches of {run.data.batch_size}",
        "device": f"{device}, {how}{processes}",
        "prunable": f"{run.masks.total:,} weights in {len(run.masks)} layers",
        "directory": str(directory),
    }


def identify(cfg: Mapping[str, Any], choices: Mapping[str, Any], identity: str) -> dict[str, Any]:
    """What result.json and identity.json say of the run."""
    groups = ("method", "model", "dataset", "optimizer", "schedule", "retrain", "criterion", "protocol")
    sparsity = {k: cfg["sparsity"][k] for k in ("target", "rate", "rounds", "allocation", "granularity")}
    return {
        "id": identity,
        **{g: choices[g] for g in groups},
        "companion": list(choices.get("companion") or []),
        "seed": cfg["seed"],
        "sparsity": sparsity,
    }


def make_directory(directory: Path, key: str, value: object) -> None:
    """Create the directory that an option names and see that it can be written.

    Raises:
      ValueError: if it cannot.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        probe = directory / ".probe"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise ValueError(
            f"{key}={value}: cannot be written ({error.strerror}); choose another {key}=..."
        ) from None


def write_start(
    directory: Path,
    cfg: Mapping[str, Any],
    choices: Mapping[str, Any],
    overrides: Sequence[str],
    identity: str,
    *,
    device: torch.device,
    threads: int,
) -> None:
    """config.yaml, overrides.json, identity.json and environment.json, before training."""
    import yaml

    contents = {
        "config.yaml": yaml.safe_dump(dict(cfg), sort_keys=False),
        "overrides.json": json.dumps(list(overrides), indent=1),
        "identity.json": json.dumps(identify(cfg, choices, identity), indent=1),
        "environment.json": json.dumps(environment(device, threads), indent=1),
    }
    for name, text in contents.items():
        write_atomically(directory / name, lambda file, text=text: file.write(text.encode()))


def environment(device: torch.device, threads: int) -> dict[str, Any]:
    """Versions, device and the state of the source checkout, if it is one."""
    from importlib.metadata import version

    packages = ("torch", "torchvision", "timm", "numpy", "hydra-core", "omegaconf")
    return {
        "prunebench": __version__,
        "python": platform.python_version(),
        "packages": {p: version(p) for p in packages} | {"torch": torch.__version__},  # with its CUDA
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "threads": threads,
        "git": _git_state(Path(__file__).parent.parent),
    }


def _git_state(folder: Path) -> dict[str, Any] | None:
    """Commit and whether files differ from it; None outside a checkout."""
    if not (folder / ".git").exists():
        return None
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, check=True
        )
        status = subprocess.run(
            ["git", "status", "--porcelain"], cwd=folder, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return {"commit": commit.stdout.strip(), "changed": bool(status.stdout.strip())}


def _export(run: Run, method: Method, *, directory: Path, cfg: Mapping[str, Any]) -> None:
    c, h, _ = run.data.shape
    description = {
        "model": cfg["model"],
        "in_channels": c,
        "image_size": h,
        "num_classes": run.data.num_classes,
        "class_names": list(run.data.class_names),
        "sparsity": run.masks.sparsity,
    }
    write_final(directory, run, method, description=description)


def _picture(result: Mapping[str, Any], *, directory: Path) -> None:
    from prunebench.report.curve import curve_png

    curve_png(result, directory / "curve.png")
