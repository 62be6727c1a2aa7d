"""After a fork, at whatever moment, the child has whole steps only and can go on stepping."""

import multiprocessing
import sys

import pytest

from conftest import FULL, TOOLS
from processes import run_python

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no fork")

CHILDREN = 1000 if FULL else 50
TIMEOUT = 600 if FULL else 240


def run_scenario(*arguments, **environment):
    script = TOOLS / "forking.py"
    done = run_python(script, *arguments, timeout=TIMEOUT, THALWEG_NUM_THREADS="4", **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    print(*arguments, done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize(
    "scenario",
    [
        "after_a_step",
        "from_another_thread",
        "during_a_step_of_the_same",
        "during_a_step_of_another",
        "by_two_threads_at_once",
        "within_a_schedule",
        "within_another_threads_schedule",
        "of_a_child",
    ],
)
def test_children_step(scenario):
    run_scenario(scenario, CHILDREN)


@pytest.mark.slow
def test_children_step_where_a_lock_was_held(interposer):
    run_scenario("within_a_schedule_that_another_waits_for", CHILDREN, LD_PRELOAD=interposer)


@pytest.mark.slow
@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
def test_processes_step(method):
    run_scenario("through_multiprocessing", method, CHILDREN // 5)  # each imports NumPy
