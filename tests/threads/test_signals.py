"""Ctrl-C at random moments of long steps: all arrays and counts from before a step, or all from
after it. Each scenario runs in a process of its own: ``test_signals.py SCENARIO COUNT``."""

import os
import random
import signal
import sys
import threading
import time
from collections.abc import Mapping

import numpy as np
import pytest

import reference
import thalweg as tw
from conftest import FULL
from processes import run_python

LR, MOMENTUM = 0.1, 0.9


class Model:
    """Arrays all of whose elements go the same way, so that one left behind would show."""

    def __init__(self, **options):
        self.params = [
            np.ones((3, 5)),
            np.ones(1 << 19, np.float32),
            np.ones((300, 500), np.float32).T,
            np.ones(1 << 19),
            np.ones(16, np.float32),
        ]
        self.grads = [np.ones(w.shape, np.float32) for w in self.params]
        self.state = [np.zeros_like(w) for w in self.params]
        self.opt = tw.SGD(self.params, **{"lr": LR, "momentum": MOMENTUM} | options)
        self.course = {np.dtype(t): [self.start(t)] for t in (np.float32, np.float64)}

    @staticmethod
    def start(dtype):
        return np.ones(1, dtype), np.zeros(1, dtype)

    def after(self, dtype, t):
        """Param and velocity of one element after t steps."""
        course = self.course[dtype]
        while len(course) <= t:
            w, v = (x.copy() for x in course[-1])
            reference.sgd(w, np.ones(1, dtype), v, len(course) - 1, lr=LR, momentum=MOMENTUM)
            course.append((w, v))
        return course[t]

    def check(self, t, velocities):
        """All arrays are those after t steps."""
        for w, v in zip(self.params, velocities, strict=True):
            param, velocity = self.after(w.dtype, t)
            assert (w == param).all(), f"a param of shape {w.shape} is not that after {t} steps"
            assert (v == velocity).all(), f"a velocity of shape {v.shape}, {t} steps"

    def check_optimizer(self):
        states, t = list(self.opt.state.values()), self.opt.step_count
        assert [state["step"] for state in states] == [t] * len(states)
        self.check(t, [state["velocity"] for state in states])
        return t


def interrupt(step):
    """Step until a SIGINT that comes at a random moment has been raised."""
    stepping = False

    def send():
        while not stepping:  # Python's own locks do not survive one, those of start() for instance
            time.sleep(0.0001)
        time.sleep(random.uniform(0.0, 0.004))
        os.kill(os.getpid(), signal.SIGINT)

    sender = threading.Thread(target=send, daemon=True)
    sender.start()
    try:
        stepping = True
        while True:
            step()
    except KeyboardInterrupt:
        sender.join()


def interrupt_and_check(model, step, count):
    before = 0
    for _ in range(count):
        interrupt(step)
        t = model.check_optimizer()
        assert t >= before
        before = t
    assert before > 0, "no step ended"


def on_one_thread(count):
    tw.set_num_threads(1)
    model = Model()
    interrupt_and_check(model, lambda: model.opt.step(model.grads), count)


def on_three_threads(count):
    tw.set_num_threads(3)
    model = Model()
    interrupt_and_check(model, lambda: model.opt.step(model.grads), count)


def in_code_of_the_callers(count):
    """The step runs Python, too: a schedule, and a mapping that is not a dict."""

    class Slow(Mapping):
        def __getitem__(self, key):
            for _ in range(2000):  # long enough to be hit
                pass
            return self.grads[key]

        def __iter__(self):
            return iter(self.grads)

        def __len__(self):
            return len(self.grads)

    model, grads = Model(), Slow()
    named = {str(i): w for i, w in enumerate(model.params)}
    grads.grads = dict(zip(named, model.grads, strict=True))
    model.opt = tw.SGD(named, lambda t: sum([LR] * 2000) and LR, MOMENTUM)
    interrupt_and_check(model, lambda: model.opt.step(grads), count)


def while_another_thread_steps(count):
    """The one that is interrupted may be waiting for its turn."""
    model = Model()
    go, paused, stop = threading.Event(), threading.Event(), False

    def other():
        while not stop:
            if not go.is_set():
                paused.set()
                go.wait()
            model.opt.step(model.grads)

    thread = threading.Thread(target=other, daemon=True)  # or a failure would not end the process
    thread.start()
    for _ in range(count):
        paused.clear()
        go.set()
        interrupt(lambda: model.opt.step(model.grads))
        go.clear()
        paused.wait()
        model.check_optimizer()
    stop = True
    go.set()
    thread.join()


def without_an_object(count):
    model, done = Model(), 0

    def step():
        nonlocal done
        tw.sgd_(model.params, model.grads, model.state, lr=LR, momentum=MOMENTUM)
        done += 1

    for _ in range(count):
        interrupt(step)
        # The last step may have ended without being counted here.
        one_more, _ = model.after(np.dtype(np.float64), done + 1)
        done += int(model.params[0][0, 0] == one_more[0])
        model.check(done, model.state)


SCENARIOS = (
    on_one_thread,
    on_three_threads,
    in_code_of_the_callers,
    while_another_thread_steps,
    without_an_object,
)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Ctrl-C is sent otherwise there")
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_ctrl_c_at_random_moments(scenario):
    done = run_python(__file__, scenario.__name__, 1000 if FULL else 100)
    assert (done.returncode, done.stderr) == (0, "")


if __name__ == "__main__":
    {scenario.__name__: scenario for scenario in SCENARIOS}[sys.argv[1]](int(sys.argv[2]))


CROSSED = """
import signal, threading
import numpy as np, thalweg as tw

meet, met = threading.Barrier(2), threading.Event()

def crossing(other):
    def lr(t):
        if not met.is_set():
            meet.wait()
            met.set()
            other().step(np.ones(3))
        return 0.1
    return lr

a = tw.SGD(np.ones(3), crossing(lambda: b))
b = tw.SGD(np.ones(3), crossing(lambda: a))
thread = threading.Thread(target=lambda: b.step(np.ones(3)), daemon=True)
thread.start()
threading.Timer(0.5, signal.raise_signal, [signal.SIGINT]).start()
try:
    a.step(np.ones(3))
except KeyboardInterrupt:
    thread.join()
    print("interrupted", a.step_count, b.step_count)
a.step(np.ones(3))
print("went on", a.step_count)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Ctrl-C is sent otherwise there")
def test_ctrl_c_ends_a_wait_for_another_step():
    """Two schedules that step each other's optimizers wait for each other. What counts is the step
    of `a` within the other thread's schedule, and not the one that was interrupted."""
    done = run_python("-c", CROSSED)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "interrupted 1 1\nwent on 2\n"


WAITING = """
import os, signal, sys, threading, time
import numpy as np, thalweg as tw

forks = "fork" in sys.argv
parent = os.getpid()
entered, release = threading.Event(), threading.Event()

def lr(t):
    if os.getpid() == parent and not release.is_set():
        entered.set()
        release.wait()
    return 0.1

opt = tw.SGD(np.ones(3), lr)

def step():
    opt.step(np.ones(3))

children = []
def handler(*_):
    if not forks:
        raise KeyboardInterrupt
    children.append(os.fork())
    if children[-1]:
        release.set()

signal.signal(signal.SIGINT, handler)
holder = threading.Thread(target=step)
holder.start()
entered.wait()
threading.Timer(0.3, os.kill, [parent, signal.SIGINT]).start()
others = [threading.Thread(target=step) for _ in range(3)]
try:
    [other.start() for other in others[:1]]
    time.sleep(0.05)
    step()
    stepped = 1
except KeyboardInterrupt:
    stepped = 0
if forks and not children[0]:
    assert opt.step_count == 1, opt.step_count
    os._exit(0)
[other.start() for other in others[1:]]
release.set()
for thread in [holder, *others]:
    thread.join()
assert opt.step_count == 4 + stepped == 4 + forks, opt.step_count
if forks:
    assert os.waitstatus_to_exitcode(os.waitpid(children[0], 0)[1]) == 0
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Ctrl-C is sent otherwise there")
@pytest.mark.parametrize("does", ["raise", "fork"])
def test_a_place_in_the_line_that_is_given_up(does):
    """By a handler that raises: those behind move up. In a child of a handler that forks: the line
    is not there, and the step goes on at once."""
    done = run_python("-c", WAITING, does)
    assert (done.returncode, done.stderr) == (0, "")
