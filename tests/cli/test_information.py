import subprocess
import sys

import pytest

WITHOUT_IMPORTS = """
import sys
sys.argv[1:] = {arguments!r}
from prunebench import cli
try:
    cli.main()
except SystemExit as end:
    code = end.code
print(sorted({{"torch", "hydra", "omegaconf", "numpy"}} & set(sys.modules)), code, file=sys.stderr)
"""


def ask(*arguments):
    """What the command prints, and on stderr the heavy modules it has imported, and its exit code."""
    code = WITHOUT_IMPORTS.format(arguments=list(arguments))
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    "arguments", [["--help"], ["-h"], ["list"], ["list", "models"], ["--version"]], ids=" ".join
)
def test_information_comes_without_torch_and_hydra(arguments):
    done = ask(*arguments)
    assert done.stderr == "[] 0\n"
    assert done.stdout


def test_help_is_readable_and_shows_what_there_is():
    text = ask("--help").stdout
    assert max(map(len, text.splitlines())) <= 80
    for word in ("imp", "lth", "lenet300", "resnet18", "digits", "cosine", "slr", "prune-report"):
        assert word in text
    assert text.count("\n  prune-run ") >= 5, "five examples"


def test_list_has_a_line_on_every_option():
    text = ask("list").stdout
    for group in ("method", "model", "dataset", "schedule", "criterion"):
        assert f"{group}:\n" in text
    bare = [line for line in text.splitlines() if line.startswith("  ") and len(line.split()) < 2]
    assert bare == []
    assert ask("list", "methods").stdout == ask("list", "method").stdout


def test_list_of_an_unknown_group_suggests_one(prune_process):
    outcome = prune_process("list", "modell", tiny=False)
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.line == "prune-run list modell: no such group; did you mean 'model'?"


def test_version_is_that_of_the_package():
    from prunebench import __version__

    assert ask("--version").stdout == f"prunebench {__version__}\n"


def test_plan_prints_the_phases_and_leaves_nothing(prune, tmp_path):
    outcome = prune("plan=true", "trainer.quiet=false")
    assert (outcome.code, outcome.err) == (0, "")
    rows = [line.split()[:4] for line in outcome.out.splitlines() if line.startswith(("dense", "round-"))]
    assert rows == [
        ["dense", "1.5", "6", "-"],
        ["round-01", "0.75", "3", "68.38"],
        ["round-02", "0.75", "3", "90.00"],
    ]
    assert list(tmp_path.iterdir()) == []


def test_the_configuration_can_be_printed_without_running(prune, tmp_path):
    import yaml

    outcome = prune("--cfg", "job", "--resolve")
    assert (outcome.code, outcome.err) == (0, "")
    printed = yaml.safe_load(outcome.out)
    assert printed["protocol"]["dense"] == "6it" and printed["seed"] == 0
    assert list(tmp_path.iterdir()) == []


def test_quiet_prints_nothing(prune):
    outcome = prune("trainer.quiet=true")
    assert outcome == type(outcome)(0, "", "")


def test_a_run_shows_its_plan_its_rounds_and_where_its_results_are(prune, runs):
    out = prune("trainer.quiet=false").out
    plan, table = out.index("cost"), out.rindex("round-02")
    assert plan < table < out.index(f"results: {runs()[0]}")
    assert max(map(len, out.splitlines())) <= 120
