"""`python -m benchmarks [NAME or GOAL ...] [--rounds N]`: measure, and print a line for every goal."""

import argparse
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

GROUPS = {
    "steps": ("P1", "P2", "P15"),
    "epochs": ("P3", "P4"),
    "data": ("P5", "P6"),
    "pruning": ("P7", "P8", "P9", "P10"),
    "updates": ("P11",),
    "structured": ("P12", "P13", "P14", "P27"),
    "within": ("P30",),
    "checkpoints": ("P20", "P21"),
    "memory": ("P25", "P26"),
    "startup": ("P17", "P18"),
    "sweeps": ("P16", "P19"),
    "default": ("P22", "P23"),
    "reports": ("P28", "P29"),
    "cuda": ("G1", "G2", "G3", "G4", "G5", "G6", "G7", "G8", "G9", "G10", "G11"),
}


def main() -> int:
    """Run the chosen groups; 1 if a bar is missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", help="groups or goals; all if none: " + _groups())
    parser.add_argument(
        "--rounds", type=int, help="at most this many rounds; default: as many as each case wants"
    )
    parser.add_argument("--json", type=Path, help="write every round of every row to this file")
    arguments = parser.parse_args()
    if arguments.rounds is not None and arguments.rounds < 1:
        parser.error(f"--rounds={arguments.rounds}: must be 1 or more")
    chosen = [g for g, goals in GROUPS.items() if {g, *goals} & set(arguments.names) or not arguments.names]
    known = {*GROUPS, *(goal for goals in GROUPS.values() for goal in goals)}
    if unknown := [n for n in arguments.names if n not in known]:
        parser.error(f"{unknown[0]}: no such group or goal; there are {_groups()}")

    # One thread, and before torch is imported, so that children have it too unless they ask for more.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    import torch

    from benchmarks.timing import HEAD, line

    torch.set_num_threads(1)
    print(HEAD, "-" * len(HEAD), sep="\n", flush=True)
    rows = []
    for group in chosen:
        module = importlib.import_module(f"benchmarks.{group}")
        try:
            for row in module.measure(lambda wanted: min(wanted, arguments.rounds or wanted)):
                rows.append(row)
                print(line(row), flush=True)
        except subprocess.CalledProcessError as error:
            rows.append(None)
            last = (error.stderr or error.stdout or "").strip().splitlines()[-1:]
            print(f"      {group}: a child process failed, {' '.join(last)}", flush=True)
    if arguments.json:
        kept = [{"goal": r.goal, "what": r.what, "values": r.values.tolist()} for r in rows if r is not None]
        arguments.json.write_text(json.dumps(kept, indent=1) + "\n")
    return int(any(row is None or row.verdict == "short" for row in rows))


def _groups() -> str:
    return "; ".join(f"{group} ({', '.join(goals)})" for group, goals in GROUPS.items())


if __name__ == "__main__":
    sys.exit(main())
