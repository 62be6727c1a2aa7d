"""What test_fork.py runs in a process of its own: ``forking.py SCENARIO COUNT`` forks COUNT times,
and every child must step, within LIMIT seconds and with the right bits."""

import ctypes
import multiprocessing
import os
import random
import signal
import sys
import threading
import time
import traceback
import warnings
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np

import reference
import thalweg as tw
from bits import assert_same_bits, sample

LIMIT = 30.0  # seconds for all that one child does; 5.3 were seen on a busy machine
LIMIT_SPAWNED = 60.0  # these import NumPy first

# One that many threads share, one around a block, small ones; together above the size from which
# threads take part.
SIZES = (200_003, 16_385, 5, *[16] * 20)
LR, MOMENTUM = 0.1, 0.9


class Sequence:
    """64 elements, step by step: what every 64 of a model must be after t steps."""

    def __init__(self):
        rng = np.random.default_rng(0)
        self.start, self.grad = (sample(rng, 64, np.float32) for _ in range(2))
        self.after = [(self.start, np.zeros_like(self.start))]

    def __getitem__(self, t):
        known = len(self.after)
        more = self.after[known - 1 : known]
        for k in range(known - 1, t):
            w, v = (x.copy() for x in more[-1])
            reference.sgd(w, self.grad, v, k, lr=LR, momentum=MOMENTUM)
            more.append((w, v))
        # At its place, and not at the end, where another thread may have put the same; a lock
        # could be held in a child for ever.
        self.after[known : known + len(more) - 1] = more[1:]
        return self.after[t]


SEQUENCE = Sequence()


class Model:
    """Arrays whose whole course is known, so that an array, or a count, left behind would show."""

    def __init__(self, lr=LR):
        self.params = [np.resize(SEQUENCE.start, n) for n in SIZES]
        self.grads = [np.resize(SEQUENCE.grad, n) for n in SIZES]
        self.opt = tw.SGD(self.params, lr, MOMENTUM)

    def __reduce__(self):
        # Together, so that the optimizer's arrays are the model's in another process too.
        return _rebuild, (self.params, self.opt)

    def step(self, times=1):
        """Step, and check the bits; returns the count of steps."""
        before = self.opt.step_count
        for _ in range(times):
            self.opt.step(self.grads)
        assert self.check() == before + times

    def check(self):
        """All arrays and counters are those after t steps; returns t."""
        t = self.opt.step_count
        param, velocity = SEQUENCE[t]
        for w, state in zip(self.params, self.opt.state.values(), strict=True):
            assert state["step"] == t, f"{state['step']} steps of an array, {t} of the optimizer"
            assert_same_bits(w, np.resize(param, w.size), f"param after {t} steps")
            assert_same_bits(state["velocity"], np.resize(velocity, w.size), f"state after {t}")
        return t


def _rebuild(params, opt):
    model = Model()
    model.params, model.opt = params, opt
    return model


slowest = 0.0


@contextmanager
def measured():
    global slowest
    start = time.monotonic()
    yield
    slowest = max(slowest, time.monotonic() - start)


def start_child():
    """os.fork, the child being ended, were it to hang, when its time is over."""
    with warnings.catch_warnings():
        # From Python 3.12 on; to fork with threads is what is tested here.
        warnings.filterwarnings("ignore", ".*use of fork", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        signal.setitimer(signal.ITIMER_REAL, LIMIT)
    return pid


def end_child(work):
    """The child's last: what its exit code says is whether the work went well."""
    code = 1
    try:
        work()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def wait_for(pid):
    """Until the child has ended, and ended well."""
    with measured():
        _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code != -signal.SIGALRM, f"the child did not end within {LIMIT} s"
    assert code == 0, f"the child ended with {code}"


def fork(work):
    """Do the work in a child."""
    pid = start_child()
    if pid == 0:
        end_child(work)
    wait_for(pid)


def in_thread(work):
    """Run it in a new thread, whose error is raised here."""
    errors = []

    def run():
        try:
            work()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]


@contextmanager
def stepping(model):
    """Another thread that steps the model without a pause."""
    stop = threading.Event()

    def loop():
        while not stop.is_set():
            model.opt.step(model.grads)

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    model.check()


def foresee(model):
    """Work out the sequence beyond where the model will be, or every child would have to."""
    SEQUENCE[model.opt.step_count + 500]


def count_threads():
    tasks = Path("/proc/self/task")
    return len(list(tasks.iterdir())) if tasks.exists() else tw.get_num_threads()


def use(*models):
    """What a child does: find all as it must be, step here, in a new thread, and in two at once."""
    for model in models:
        t = model.check()
        model.step()
        # The new thread may have the system's number of one that the fork left behind.
        in_thread(model.step)
        with stepping(model):
            model.opt.step(model.grads)
        assert model.check() > t + 2
    # At least, because a thread that was joined may take its time to be gone.
    assert count_threads() >= tw.get_num_threads(), "the child has no pool of its own"


def after_a_step(count):
    model = Model()
    for _ in range(count):
        model.step(3)
        fork(lambda: use(model))
        model.step()


def from_another_thread(count):
    model = Model()
    for _ in range(count):
        model.step(3)
        in_thread(lambda: fork(lambda: use(model)))
        model.step()


def during_a_step_of_the_same(count):
    model = Model()
    with stepping(model):
        for _ in range(count):
            time.sleep(random.uniform(0, 0.002))
            foresee(model)
            fork(lambda: use(model))


def during_a_step_of_another(count):
    model, other = Model(), Model()
    with stepping(other):
        for _ in range(count):
            model.step()
            foresee(other)
            fork(lambda: use(model, other))


def by_two_threads_at_once(count):
    model = Model()

    def loop():
        for _ in range(count // 2):
            foresee(model)
            fork(lambda: use(model))

    with stepping(model):
        thread = threading.Thread(target=loop)
        thread.start()
        loop()
        thread.join()


def within_a_schedule(count, beside=None):
    """Parent and child both come back into the step that was under way, and end it; ``beside`` is
    entered just around the fork."""
    parent = os.getpid()
    children = []

    def lr(t):
        if t % 2 and os.getpid() == parent:
            with beside(model) if beside else nullcontext():
                children.append(start_child())
        return LR

    model = Model(lr)
    for _ in range(count):
        while not children:
            model.opt.step(model.grads)
        if os.getpid() != parent:
            end_child(lambda: use(model))
        wait_for(children.pop())
    model.check()


@contextmanager
def beginning_to_wait(model):
    """Another thread waits for its turn, and has just locked what it will wait on; in a child
    nobody will unlock it. Needs interpose.c."""
    interposed = ctypes.CDLL(None)
    interposed.hold_wait(1)
    threading.Thread(target=model.opt.step, args=(model.grads,), daemon=True).start()
    deadline = time.monotonic() + LIMIT
    while not interposed.is_holding():
        assert time.monotonic() < deadline, "no thread has come to wait"
        time.sleep(0.001)
    try:
        yield
    finally:
        interposed.hold_wait(0)


def within_a_schedule_that_another_waits_for(count):
    within_a_schedule(count, beginning_to_wait)


def within_another_threads_schedule(count):
    """The thread whose turn it was is not in the child."""
    parent = os.getpid()
    reached, go_on = threading.Event(), threading.Event()

    def lr(t):
        if os.getpid() == parent:
            reached.set()
            go_on.wait()
            go_on.clear()
        return LR

    model = Model(lr)
    for _ in range(count):
        thread = threading.Thread(target=model.opt.step, args=(model.grads,))
        thread.start()
        reached.wait()
        reached.clear()
        try:
            fork(lambda: use(model))
            # Here a new thread comes first, and may well have that one's number.
            fork(lambda: (in_thread(model.step), use(model)))
        finally:
            go_on.set()
            thread.join()
    assert model.check() == count


def of_a_child(count):
    model = Model()

    def child():
        model.step(3)
        fork(lambda: use(model))
        use(model)

    for _ in range(count // 2):
        model.step(3)
        fork(child)


def through_multiprocessing(method, count):
    """Processes of this start method, with a pool of threads here and in the server that forks."""
    model = Model()
    model.step(3)
    context = multiprocessing.get_context(method)
    if method == "forkserver":
        context.set_forkserver_preload(["forking"])
    for _ in range(count):
        process = context.Process(target=use, args=(model,))
        with measured():
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", ".*use of fork", DeprecationWarning)
                process.start()
            process.join(LIMIT_SPAWNED)
        if process.is_alive():
            process.kill()
            raise AssertionError(f"the child did not end within {LIMIT_SPAWNED} s")
        assert process.exitcode == 0, f"the child ended with {process.exitcode}"


if __name__ == "__main__":
    scenario, *given, count = sys.argv[1:]
    globals()[scenario](*given, int(count))
    print(f"{count} children, the slowest took {slowest:.2f} s")
