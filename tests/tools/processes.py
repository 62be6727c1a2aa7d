"""Processes of our own, for what may end or hang one: none outlives its time, nor its children."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import thalweg as tw

# What would choose the number of threads, or the level, in place of the test.
CHOOSING = {"THALWEG_NUM_THREADS", "OMP_NUM_THREADS", "THALWEG_ISA"}


def python_environment():
    """In which the package and the tests' tools are found, and nothing is chosen."""
    env = {key: value for key, value in os.environ.items() if key not in CHOOSING}
    env["PYTHONPATH"] = os.pathsep.join([str(Path(tw.__file__).parents[1]), *sys.path])
    return env | {"OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def run_python(*arguments, timeout=60, **environment):
    """Run Python on these arguments, warnings being errors; one thread of BLAS, so that others
    can be counted."""
    env = python_environment() | environment
    command = [sys.executable, "-W", "error", *map(str, arguments)]
    with subprocess.Popen(
        command,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            out, error = process.communicate(timeout=timeout)
        except BaseException as stopped:
            _kill_group(process)
            out, error = process.communicate()
            if isinstance(stopped, subprocess.TimeoutExpired):
                raise AssertionError(f"hung for {timeout} s\n{out}\n{error}") from None
            raise
    return subprocess.CompletedProcess(command, process.returncode, out, error)


def _kill_group(process):
    if sys.platform == "win32":
        process.kill()
    else:
        os.killpg(process.pid, signal.SIGKILL)
