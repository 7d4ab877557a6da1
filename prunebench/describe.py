"""What is shown before a run and written at its start."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from prunebench.compression import told
from prunebench.core.checkpoint import write_atomically
from prunebench.core.phase import Phase, end_of
from prunebench.core.run import Run
from prunebench.machine import environment


def title(cfg: Mapping[str, Any], choices: Mapping[str, Any]) -> str:
    """The run in a few words: method, companions, model and data."""
    companions = "".join(f"+{name}" for name in cfg["companion"])
    return f"{choices['method']}{companions}: {choices['model']} on {choices['dataset']}"


def plan_rows(
    plan: Sequence[Phase], run: Run, macs: Mapping[str, int], choices: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Rows of the plan's table; cost is that of training all weights: 3 x MACs per image x images."""
    rows, spe, asked = [], run.data.steps_per_epoch, None
    for phase in plan:
        pruned = (phase.sparsity is not None or phase.aside) and phase is not plan[0]
        asked = asked if phase.aside else phase.asked
        steps = None if callable(phase.length) else phase.steps(run)
        images = None if steps is None else steps / spe * run.data.sizes["train"]
        rows.append(
            {
                "name": phase.name,
                "epochs": None if steps is None else steps / spe,
                "steps": steps,
                "sparsity": asked,
                "weights": phase.weights if not phase.shuffle else f"{phase.weights}, shuffled",
                "peak": phase.peak,
                "schedule": choices["retrain" if pruned or phase.auxiliary else "schedule"],
                "cost": None if images is None else 3 * images * sum(macs.values()),
                "note": "masks change" if phase.within else "aside" if phase.aside else None,
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
    noise, compression = {}, cfg["sparsity"]["compression"] if "target" in cfg["protocol"] else None
    if cfg["dataset"]["label_noise"]:
        asked = "{noise_kind} {label_noise}".format(**cfg["dataset"])
        noise["label noise"] = f"{asked}: {run.data.flipped:.2%} of the training labels are wrong"
    return {
        "model": f"{choices['model']}, {total:,} parameters, {sum(macs.values()):,} MACs per image",
        "data": f"{choices['dataset']}, {c}x{h}x{w}, {run.data.num_classes} classes: "
        f"{sizes['train']:,} train, {sizes.get('valid', 0):,} valid, {sizes['test']:,} test; "
        f"batches of {run.data.batch_size}",
        **noise,
        "device": f"{device}, {how}{processes}",
        "prunable": f"{run.masks.total:,} weights in {len(run.masks)} layers",
        **({} if compression is None else {"compression": told(compression, run)}),
        "directory": str(directory),
    }


def identify(
    cfg: Mapping[str, Any], choices: Mapping[str, Any], identity: str, plan: Sequence[Phase] = ()
) -> dict[str, Any]:
    """What result.json and identity.json say of the run; the plan knows the target behind a compression."""
    groups = ("method", "model", "dataset", "optimizer", "schedule", "retrain", "criterion", "protocol")
    sparsity = {k: cfg["sparsity"][k] for k in ("target", "rate", "rounds", "allocation", "granularity")}
    if (compression := cfg["sparsity"]["compression"]) is not None and plan:
        sparsity |= {"compression": compression, "target": end_of(plan).sparsity}
    elif "target" in cfg["protocol"]:  # none, where the sparsity is the outcome of a method
        sparsity["target"] = cfg["protocol"]["target"]
    return {
        "id": identity,
        **{g: choices[g] for g in groups},
        "companion": list(cfg["companion"]),
        "seed": cfg["seed"],
        "sparsity": sparsity,
    }


def write_start(
    directory: Path,
    cfg: Mapping[str, Any],
    overrides: Sequence[str],
    identity: Mapping[str, Any],
    *,
    device: torch.device,
    threads: int,
) -> None:
    """config.yaml, overrides.json, identity.json and environment.json, before training."""
    import yaml

    contents = {
        "config.yaml": yaml.safe_dump(dict(cfg), sort_keys=False),
        "overrides.json": json.dumps(list(overrides), indent=1),
        "identity.json": json.dumps(dict(identity), indent=1),
        "environment.json": json.dumps(environment(device, threads), indent=1),
    }
    for name, text in contents.items():
        write_atomically(directory / name, lambda file, text=text: file.write(text.encode()))
