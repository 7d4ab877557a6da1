"""What all tests share."""

import sys

import pytest


@pytest.fixture(autouse=True)
def one_thread():
    """One thread: on a busy machine more of them make small networks ten times slower.

    Tests that need no torch are not made to import it.
    """
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
