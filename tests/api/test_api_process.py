"""What needs an interpreter of its own: the level chosen at import, and the end of a process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import thalweg as tw
from thalweg import _core

STEP = """
import numpy as np, thalweg as tw
w = np.ones(100, np.float32)
opt = tw.SGD(w, 0.1, 0.9)
for k in range(10):
    opt.step(np.arange(100) / 8.0)
print(tw._core.isa, w.tobytes().hex())
"""


def run(code, **environment):
    keep = {key: value for key, value in os.environ.items() if key != "THALWEG_ISA"}
    keep["PYTHONPATH"] = os.pathsep.join([str(Path(tw.__file__).parents[1]), *sys.path])
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env=keep | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture(scope="module")
def expected():
    done = run(STEP)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.parametrize("level", _core.isa_supported)
def test_each_level_can_be_forced(level, expected):
    done = run(STEP, THALWEG_ISA=level)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [level, expected[1]]


def test_the_highest_level_is_the_default(expected):
    assert expected[0] == _core.isa_supported[-1]
    assert run(STEP, THALWEG_ISA="").stdout.split() == expected


@pytest.mark.parametrize("level", ["avx3", "AVX2", "baseline ", "avx2,avx512", "0"])
def test_an_unknown_level_is_an_import_error(level):
    done = run("import thalweg", THALWEG_ISA=level)
    assert done.returncode == 1
    said = f"ImportError: THALWEG_ISA: unknown ISA level '{level}'; this CPU runs: baseline"
    assert said in done.stderr


def test_a_level_that_the_cpu_does_not_run_is_an_import_error():
    missing = set(_core.isa_compiled) - set(_core.isa_supported)
    if not missing:
        pytest.skip(f"this CPU runs all of {', '.join(_core.isa_compiled)}")
    done = run("import thalweg", THALWEG_ISA=missing.pop())
    assert done.returncode == 1
    assert "ImportError: THALWEG_ISA: this CPU does not run the ISA level" in done.stderr


def test_daemon_threads_that_step_at_the_end_of_the_process():
    done = run("""
import sys, threading
sys.setswitchinterval(1e-4)
import numpy as np, thalweg as tw
g = np.ones(40_000)
one, others = tw.SGD(np.zeros(40_000)), [tw.SGD(np.zeros(40_000)) for _ in range(2)]
started = [threading.Event() for _ in range(4)]
def loop(opt, event):
    while opt.step(g):
        event.set()
for opt, event in zip([one, one, *others], started):
    threading.Thread(target=loop, args=(opt, event), daemon=True).start()
for event in started:
    event.wait()
""")
    assert (done.returncode, done.stderr) == (0, "")


def test_an_optimizer_that_outlives_the_module():
    done = run("""
import atexit
import numpy as np, thalweg as tw
class Last:
    def __init__(self):
        self.opt = tw.SGD([np.ones(3)], lambda t: 0.5)
        self.opt._last = self
    def __del__(self):
        print("del", self.opt.step([None]))
last = Last()
atexit.register(lambda: print("atexit", last.opt.step([np.ones(3)])))
""")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == ["atexit True", "del True"]
