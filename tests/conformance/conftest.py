"""The conformance suite: what must hold for every method and companion.

A test with the argument `case` runs for every YAML in conf/method, and for imp under every YAML in
conf/companion; nobody has to list them. `traced(case, network)` trains a case once and keeps what was seen.
"""

import os

import pytest

from tests.conformance.kit import cases
from tests.conformance.watch import Traces


def pytest_generate_tests(metafunc):
    if "case" in metafunc.fixturenames:
        metafunc.parametrize("case", cases(), ids=str)


@pytest.fixture(autouse=True)
def no_fsync(monkeypatch):
    """No power failure happens here, and waiting for the disk would be half of the time."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


@pytest.fixture(scope="session")
def traced(tmp_path_factory) -> Traces:
    """(case, network, *overrides) -> its trace; trained at the first call."""
    return Traces(tmp_path_factory)
