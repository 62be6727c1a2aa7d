"""How tests start the ranks of an MPI job."""

import os
import shutil
import sys
from pathlib import Path

import pytest

from conftest import TOOLS


def find_mpiexec():
    """The one beside this Python, or on the path; without one the test is skipped."""
    beside = Path(sys.executable).with_name("mpiexec")
    found = str(beside) if beside.exists() else shutil.which("mpiexec")
    if not found:
        pytest.skip("no mpiexec: pip install mpich brings one")
    return found


def environment(**more):
    """One thread a rank, the tests' tools, warnings as errors."""
    paths = [str(TOOLS), str(TOOLS.parent), os.environ.get("PYTHONPATH", "")]
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "THALWEG_NUM_THREADS": "1",
        "PYTHONWARNINGS": "error",
        # MPICH's ranks wait by looking; there are more of them than cores.
        "MPIR_CVAR_ENABLE_HEAVY_YIELD": "1",
        "MPIR_CVAR_POLLS_BEFORE_YIELD": "1",
        **more,
    }
