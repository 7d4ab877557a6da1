"""Who may import whom: the layers of the style guide, read from the source."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import prunebench

PACKAGE = Path(prunebench.__file__).parent
FILES = {p.relative_to(PACKAGE).as_posix(): p for p in sorted(PACKAGE.rglob("*.py"))}
# part of the package -> parts that it may import; a part is a folder or a file
BELOW = {
    "core": set(),
    **{part: {"core"} for part in ("criteria", "ramps", "models", "data", "metrics", "schedules")},
    "retrain": {"core", "schedules"},
    "methods": {"core", "criteria", "ramps"},
    "companions": {"core", "criteria", "ramps", "methods"},
    "lengths": {"core"},
    "rounds": {"core", "lengths", "ramps"},
    "protocols": {"core", "rounds"},
    "report": set(),
    "overview": set(),
    "hints": set(),
    "display": {"report"},
    "journal": {"core"},
    "store": {"core", "journal"},
    "result": {"core", "metrics"},
    "ledger": {"core", "metrics"},
    "during_training": {"core", "lengths", "rounds"},
    "saved": set(),
    "export": {"saved"},
    "trackers": {"core", "report"},
    "record": {"core", "journal", "ledger", "metrics", "result", "store"},
    "machine": {"core", "models"},
    "compression": set(),
    "assembly": {"compression", "core", "data", "machine", "rounds"},
    "describe": {"compression", "core", "machine"},
}
TOP = {"cli", "launch", "config", "experiment", "explain", "oracle", "sweep"}  # may import everything
KNOW_HYDRA = {"config.py", "launch.py", "explain.py", "sweep.py"}
HEAVY = {"torchvision", "timm", "matplotlib", "torch_pruning", "sklearn", "scipy", "pandas"}
HEAVY |= {"tensorboard", "wandb", "mlflow", "onnx", "onnxscript", "onnxruntime"}


def imports(path: Path, *, everywhere: bool) -> set[str]:
    """Modules that a file imports: at module level, or also inside functions."""
    found, pending = set(), list(ast.parse(path.read_text()).body)
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{a.name}" for a in node.names} | {node.module}
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) or everywhere:
            pending += ast.iter_child_nodes(node)
    return found


def part(module: str) -> str:
    """The part of prunebench that a module of it belongs to: "prunebench.core.run" -> "core"."""
    return module.split(".")[1]


def own(path: Path) -> set[str]:
    """Parts of prunebench that the file imports anywhere; its own constants (__version__) are nobody's."""
    names = {m for m in imports(path, everywhere=True) if m.startswith("prunebench.")}
    return {part(m) for m in names} - {"__version__"}


@pytest.mark.parametrize("file", [f for f in FILES if "/" in f or f != "__init__.py"])
def test_a_file_imports_only_what_is_below_its_layer(file):
    here = file.split("/")[0].removesuffix(".py")
    used = own(FILES[file]) - {here}
    if here not in TOP:
        assert here in BELOW, f"{file}: say in BELOW what a new part may import"
        assert used <= BELOW[here]
    else:
        assert "cli" not in used


def test_nothing_below_the_top_imports_the_top():
    for file, path in FILES.items():
        if file.split("/")[0].removesuffix(".py") not in TOP:
            assert not own(path) & TOP, file


def test_only_the_files_of_the_configuration_know_hydra():
    knowing = {
        file
        for file, path in FILES.items()
        if {m.split(".")[0] for m in imports(path, everywhere=True)} & {"hydra", "omegaconf"}
    }
    assert knowing == KNOW_HYDRA


def test_heavy_libraries_are_imported_where_they_are_needed_and_not_at_module_level():
    for file, path in FILES.items():
        assert not {m.split(".")[0] for m in imports(path, everywhere=False)} & HEAVY, file


def test_init_files_say_nothing_but_the_version():
    for file, path in FILES.items():
        if file.endswith("__init__.py"):
            assert path.read_text().strip() == "" or file == "__init__.py", file


def test_only_the_loop_and_criteria_call_backward():
    for file, path in FILES.items():
        if file not in ("core/loop.py", "core/graph.py"):
            calls = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Attribute)]
            assert not any(n.attr == "backward" for n in calls) or file.startswith("criteria/"), file


@pytest.mark.parametrize(
    "module", ["prunebench.cli", "prunebench.overview", "prunebench.report.cli", "prunebench.display"]
)
def test_what_answers_at_once_loads_neither_torch_nor_hydra(module):
    heavy = "{'torch', 'hydra', 'omegaconf', 'matplotlib'}"
    code = f"import sys, {module}; print(sorted({heavy} & set(sys.modules)))"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


def test_reports_read_files_only():
    for file, path in FILES.items():
        if file.startswith("report/"):
            assert "torch" not in {m.split(".")[0] for m in imports(path, everywhere=True)}, file
