"""A rank is killed at a random moment: the job ends, and goes on to the same bits."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from bits import assert_same_bits
from conftest import FULL, TOOLS
from launching import environment, find_mpiexec

pytest.importorskip("mpi4py", reason="mpi4py is not installed: pip install '.[test]'")

RANKS, STEPS = 3, 25


def start(folder):
    command = [find_mpiexec(), "-n", str(RANKS), sys.executable, "-m", "mpi4py"]
    return subprocess.Popen(
        [*command, str(TOOLS / "ranks_killed.py"), str(folder), str(STEPS)],
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def killed(folder, rng):
    """Start the job and kill one of its ranks; False if it ended before."""
    for path in folder.glob("rank-*"):
        path.unlink()
    job = start(folder)
    victim = folder / f"rank-{rng.randrange(RANKS)}"
    while not victim.exists() and job.poll() is None:
        time.sleep(0.002)
    time.sleep(rng.random() * 0.15)
    if job.poll() is None:
        with contextlib.suppress(ProcessLookupError):  # the rank has ended, the job almost
            os.kill(int(victim.read_text()), signal.SIGKILL)
    job.wait(60)  # the others do not stay behind
    return job.returncode != 0


@pytest.mark.slow
def test_a_killed_rank_costs_no_bit(tmp_path):
    alone = tmp_path / "alone"
    alone.mkdir()
    assert start(alone).wait(120) == 0
    expected = np.load(alone / "result.npy")
    rng = random.Random(5)
    wanted = 50 if FULL else 3
    done = run = 0
    while done < wanted:
        folder = tmp_path / f"run-{run}"
        folder.mkdir()
        run += 1
        while not (folder / "result.npy").exists() and done < wanted:
            done += killed(folder, rng)
        if not (folder / "result.npy").exists():
            assert start(folder).wait(120) == 0
        assert_same_bits(np.load(folder / "result.npy"), expected)
