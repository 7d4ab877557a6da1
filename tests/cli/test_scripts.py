"""Every script at its smallest scale: it ends with a table, and typed again it trains nothing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"
NAMES = sorted(p.name for p in SCRIPTS.glob("*.sh") if p.name != "scale.sh")


def script(name, *arguments, **environment):
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return subprocess.run(
        [SCRIPTS / name, *arguments],
        capture_output=True,
        text=True,
        env=os.environ | {"PATH": path, "COLUMNS": "100"} | environment,
        timeout=900,
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_smoke_scale_ends_with_a_table_and_is_done_when_typed_again(name):
    first = script(name, "smoke", "trainer.quiet=true")
    assert first.returncode == 0, first.stderr[-2000:]
    assert "remaining" in first.stdout
    results = {p: p.stat().st_mtime_ns for p in Path("runs").glob("**/result.json")}
    assert results
    again = script(name, "smoke", "trainer.quiet=true")
    assert again.returncode == 0
    assert {p: p.stat().st_mtime_ns for p in Path("runs").glob("**/result.json")} == results


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_or_wrong_scale_is_answered_with_the_usage(name):
    for arguments in ((), ("huge",)):
        answer = script(name, *arguments)
        assert answer.returncode == 2
        assert f"usage: scripts/{name} smoke|small|paper" in answer.stderr
    assert not Path("runs").exists()
