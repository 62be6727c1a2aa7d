"""The example over ranks: the bits that it says."""

import subprocess
import sys
from pathlib import Path

import pytest

from launching import environment, find_mpiexec

pytest.importorskip("mpi4py", reason="mpi4py is not installed: pip install '.[test]'")

EXAMPLE = Path(__file__).parents[2] / "examples" / "mpi_evolution.py"


def test_evolution():
    command = [find_mpiexec(), "-n", "3", sys.executable, "-m", "mpi4py", str(EXAMPLE)]
    done = subprocess.run(
        [*command, "--check", "--generations", "30"],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "the same bits" in done.stdout
    first = float(done.stdout.split("ranks: ")[1].split()[0])
    last = float(done.stdout.split("then ")[1].split()[0])
    assert last > 2 * first
