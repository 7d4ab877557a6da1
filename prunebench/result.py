"""What result.json says: one row per phase, the layers, the cost, and the identity of the run."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from prunebench.core.checkpoint import write_atomically
from prunebench.core.method import Method
from prunebench.core.phase import Phase
from prunebench.core.run import Run
from prunebench.metrics.cost import ATTENTION, cost, count_macs
from prunebench.metrics.metric import undisturbed

VERSION = 1


def round_row(
    run: Run,
    method: Method,
    phase: Phase,
    macs: Mapping[str, int],
    *,
    test: Mapping[str, float],
    valid: Mapping[str, float] | None,
    pruned: Mapping[str, float] | None,
    dense: Mapping[str, float] | None,
    seconds: float,
) -> dict[str, Any]:
    """One row of the table of rounds: what was asked, reached and kept, and what accuracy it gave.

    Counts follow ShrinkBench's definitions (arXiv 2003.03033): compression over all parameters, sparsity over
    the prunable ones, MACs of one image by real output sizes, speed-up theoretical.

    Args:
      test, valid, pruned: {"top1", "top5", "loss"} after training (test, valid) and right after pruning
        (test).
      dense: the dense control's test metrics.
      seconds: wall time of the phase, evaluation included.
    """
    size = cost(run.model, run.masks, macs, tied=run.masks.tied)
    control = test if run.clock.cycle == 0 else dense
    row = {
        "phase": phase.name,
        "cycle": run.clock.cycle,
        "asked": phase.asked if phase.asked is not None else 0.0 if run.clock.cycle == 0 else None,
        "sparsity": run.masks.sparsity,
        "kept": run.masks.kept,
        "total": run.masks.total,
        "params": size["params"],
        "params_total": size["params_total"],
        "compression": size["compression"],
        "macs": size["macs"],
        "macs_dense": size["macs_dense"],
        "speedup": size["speedup"],
        "pruned": None if pruned is None else dict(pruned),
        "test": dict(test),
        "valid": None if valid is None else dict(valid),
        "delta": test["top1"] - control["top1"] if control is not None else None,
        "max_lr": run.clock.max_lr,
        "epochs": run.clock.step / run.data.steps_per_epoch,
        "steps": run.clock.step,
        "seconds": seconds,
    }
    if method.stands_for is not None:
        row |= relative(run, method.stands_for[0], row)
    # the dense row may be another method's, from the shared store
    if run.clock.cycle and (counted := method.channels(run)) is not None:
        row["channels"], row["channels_total"] = counted
    return row


def kept_weights(run: Run) -> dict[str, Any]:
    """What a phase's row in metrics.jsonl says of the prunable layers, in the order of the masks.

    `kept_per_layer` is the weights kept of each; the row of the plan's first phase has their names and sizes
    too, once for all: `layer_sizes`, name -> weights.
    """
    names = {} if run.clock.phase else {"layer_sizes": {n: m.numel() for n, m in run.masks.items()}}
    return names | {"kept_per_layer": list(run.masks.kept_per_layer.values())}


def pruned_lines(run: Run, method: Method, top1: float) -> list[str]:
    """What is shown of a pruning event, before anything is restored or trained."""
    kept = f"{run.masks.kept:,} of {run.masks.total:,} weights kept"
    return [f"pruned to {run.masks.sparsity:.2%}, {kept}, top-1 {top1:.2%}", *method.remarks(run)]


def relative(run: Run, whole: nn.Module, row: Mapping[str, Any]) -> dict[str, Any]:
    """The sizes in a row against those of the network that the trained, smaller one stands for.

    Args:
      whole: that network, on the meta device, with the same parameter names.
    """
    params = dict(whole.named_parameters())
    total, dense = sum(params[n].numel() for n in run.masks), count_macs(whole, run.data.shape)
    everything, macs = sum(p.numel() for p in params.values()), sum(dense.values()) - dense[ATTENTION]
    return {
        "sparsity": 1 - row["kept"] / total,
        "total": total,
        "params_total": everything,
        "compression": everything / row["params"],
        "macs_dense": macs,
        "speedup": macs / row["macs"],
    }


def dense_test(rounds: Sequence[Mapping[str, Any]]) -> dict[str, float] | None:
    """Test metrics of the dense control: the end of the last phase before the first pruning event."""
    dense = [r for r in rounds if r["cycle"] == 0]
    return dense[-1]["test"] if dense else None


def assemble(run: Run, recorder: Any) -> dict[str, Any]:
    """The content of result.json."""
    keys = recorder.store.keys
    aside = recorder.ledger.cost(run.clock.total - run.clock.place, aside=True)
    rounds, size = recorder.rounds, cost(run.model, run.masks, recorder.macs, tied=run.masks.tied)
    return {
        "version": VERSION,
        **recorder.identity,
        "dense": dense_test(rounds),
        "rounds": rounds,
        **({"controls": recorder.controls} if recorder.controls else {}),
        "final": rounds[-1],
        "layers": size["layers"],
        "cost": recorder.ledger.cost(run.clock.place),
        **({"cost_of_controls": aside} if recorder.controls else {}),
        "labels_flipped": run.data.flipped,  # share of the training labels that noise has made wrong
        "metrics": sorted(recorder.metrics),
        **({"measured": last_measured(recorder.rows.content())} if recorder.metrics else {}),
        "shared": recorder.shared,
        "stored": {recorder.plan[i].name: key for i, key in keys.items()},  # where phases' end states lie
        "time": {"seconds": recorder.ledger.seconds},
    }


def last_measured(rows: bytes) -> dict[str, dict[str, Any]]:
    """Metric -> what it measured last: numbers and words of its last row, and the phase; lists are left out.

    Args:
      rows: the content of metrics.jsonl.
    """
    place = ("kind", "metric", "when", "cycle", "step", "total", "epoch", "sparsity", "zeros_hold")
    found = {}
    for line in rows.splitlines():
        if b'"metric"' in line and (row := json.loads(line))["kind"] == "metric":
            found[row["metric"]] = {
                k: v for k, v in row.items() if k not in place and not isinstance(v, list | dict)
            }
    return found


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file, whole or not at all."""
    text = json.dumps(content, indent=1, allow_nan=False) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))


def write_final(directory: Path, run: Run, method: Method, *, description: Mapping[str, Any]) -> None:
    """Final weights and masks as safetensors, and a JSON that says how to build the network they fit.

    `final.safetensors` holds the state dict (parameters and buffers, pruned weights 0), `masks.safetensors`
    one bool tensor per prunable parameter, True = kept.
    """
    from safetensors.torch import save

    weights = {n: t.detach().cpu().contiguous() for n, t in run.model.state_dict().items()}
    masks = {n: m.cpu().contiguous() for n, m in run.masks.items()}
    write_atomically(directory / "final.safetensors", lambda f: f.write(save(weights)))
    write_atomically(directory / "masks.safetensors", lambda f: f.write(save(masks)))
    write_json(directory / "final.json", description)


def write_shrunk(
    directory: Path, run: Run, method: Method, *, description: Mapping[str, Any]
) -> dict[str, Any] | None:
    """The physically smaller network of a structured run, as safetensors and a JSON of its widths.

    `shrunk.safetensors` holds its state dict; `shrunk.json` what `prunebench.saved.load_network` needs to
    build it: the model with its options, and the widths by unit.

    Returns:
      What is really left: `params`, `macs` and `macs_attention` (of one image, counted in a forward pass),
      `bytes` (of shrunk.safetensors) beside `bytes_masked` (of final.safetensors), and `difference`, the
      largest one between its logits and the masked network's on up to 64 test images, with `logits`, the
      largest magnitude among those. None if the method removes no channels.
    """
    from safetensors.torch import save

    small = method.compact(run)
    if small is run.model:
        return None
    weights = {n: t.detach().cpu().contiguous() for n, t in small.state_dict().items()}
    content = save(weights)
    write_atomically(directory / "shrunk.safetensors", lambda f: f.write(content))
    macs = count_macs(small, run.data.shape)
    images = next(iter(run.data.evaluation("test")))[0][:64]
    with undisturbed(run), torch.no_grad():
        masked, shrunk = run.model(images), small.eval()(images)
    facts = {
        "params": sum(p.numel() for p in small.parameters()),
        "macs": sum(macs.values()) - macs[ATTENTION],
        "macs_attention": macs[ATTENTION],
        "bytes": len(content),
        "bytes_masked": (directory / "final.safetensors").stat().st_size,
        "difference": float((masked - shrunk).abs().max()),
        "logits": float(masked.abs().max()),
    }
    write_json(directory / "shrunk.json", {**description, "widths": small.widths, **facts})
    return facts
