"""Where the system refuses threads or memory, and at the end of a process: no crash, no hang, and
the bits of the reference."""

import sys
from importlib.util import find_spec

import pytest

from conftest import FULL, TOOLS
from processes import run_python

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="forks, limits and LD_PRELOAD")

CHILDREN = 1000 if FULL else 20


def run(script, *arguments, threads=5, **environment):
    script = TOOLS / script
    timeout = 600 if FULL else 60
    done = run_python(
        script, *arguments, timeout=timeout, THALWEG_NUM_THREADS=str(threads), **environment
    )
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr
    assert done.stderr == ""
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("threads", [2, 8, 15] if FULL else [8])
def test_each_thread_refused(interposer, threads):
    run("failing.py", "threads_one_by_one", threads=threads, LD_PRELOAD=interposer)


@pytest.mark.parametrize("scenario", ["threads_while_many_step", "threads_with_warnings_as_errors"])
def test_threads_refused(scenario, interposer):
    run("failing.py", scenario, LD_PRELOAD=interposer)


def test_threads_beyond_the_users_limit():
    if said := run("failing.py", "threads_beyond_the_limit"):
        pytest.skip(said)


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS binds on Linux")
@pytest.mark.parametrize("scenario", ["memory_for_the_state", "memory_for_a_step"])
def test_memory_beyond_the_limit(scenario):
    run("failing.py", scenario)


LAYOUTS = ["as_list", "as_dict", "as_groups"]
CASES = ["refuse", "judge", "freeze", "grow", "function", "addgroup", "rows", "table", "few"]
CASES += [f"step_{layout}" for layout in LAYOUTS]
CASES += [
    f"{case}_{layout}" for case in ("construct", "bind") for layout in LAYOUTS[:: 1 if FULL else 2]
]


@pytest.mark.parametrize("case", CASES)
def test_each_allocation_fails(case, interposer):
    assert "allocations" in run("allocating.py", "of_cpp", case, LD_PRELOAD=interposer)


# Prints the references that Python alone has taken away where it has no memory for a list.
LOST = """
import os, sys, _testcapi
def listed(a, b):
    return [a, {"y": b}]
def lost(nth):
    a, b = object(), object()
    listed(a, b)
    before = sys.getrefcount(a) + sys.getrefcount(b)
    _testcapi.set_nomemory(nth - 1, nth)
    try:
        listed(a, b)
    except MemoryError:
        pass
    _testcapi.remove_mem_hooks()
    return before - sys.getrefcount(a) - sys.getrefcount(b)
print(max(lost(nth) for nth in range(1, 8)), flush=True)
os._exit(0)  # what is gone too early is not looked at
"""


@pytest.fixture(scope="module")
def careful_python():
    if find_spec("_testcapi") is None:
        pytest.skip("CPython is built without its test API")
    if int(run_python("-c", LOST).stdout) > 0:  # 3.13 without the GIL
        pytest.skip("this CPython takes references away that it does not have, for want of memory")


@pytest.mark.parametrize(
    "case", ["step_as_dict", "refuse", "freeze", "grow", "rows"]
)  # native alone
def test_each_allocation_of_pythons_fails(case, careful_python, interposer):
    run("allocating.py", "of_python", case, LD_PRELOAD=interposer)


# What each prints, if it prints something.
ENDINGS = {
    "while_workers_are_idle": None,
    "while_daemons_step": None,
    "while_a_thread_steps": {"ended after 30"},
    "by_sys_exit_in_a_schedule": {"ended after 3"},
    "by_sys_exit_in_a_threads_schedule": {"ended after 3"},
    "by_os_exit_in_a_schedule": None,
    "with_a_step_at_exit": {"ended after 3", "ended after 4"},
    "with_a_step_in_a_finalizer": {"deleted after 3"},
    "after_a_fork": None,
}


@pytest.mark.slow
@pytest.mark.parametrize("ending", ENDINGS)
def test_the_process_ends(ending):
    lines = run("ending.py", ending, CHILDREN, threads=4).splitlines()
    if says := ENDINGS[ending]:
        assert len(lines) == CHILDREN + 1
        assert set(lines) <= says
