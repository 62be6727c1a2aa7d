"""What test_failures.py runs in a process of its own: ``ending.py SCENARIO COUNT`` ends in this
way, and so do COUNT children of it first, each within LIMIT seconds, with exit code 0."""

import atexit
import os
import random
import signal
import sys
import threading
import time
import warnings

from forking import LR, Model

LIMIT = 20.0


def while_workers_are_idle():
    Model().step()
    time.sleep(random.choice([0, 1e-5, 1e-3]))  # at the end of a step, looking for one, asleep


def while_daemons_step():
    """Two on one optimizer, one of which waits, and one on another."""
    one, other = Model(), Model()
    started = [threading.Event() for _ in range(3)]

    def loop(model, event):
        while model.opt.step(model.grads):
            event.set()

    for model, event in zip([one, one, other], started, strict=True):
        threading.Thread(target=loop, args=(model, event), daemon=True).start()
    for event in started:
        event.wait()
    time.sleep(random.uniform(0, 1e-3))


def while_a_thread_steps():
    """Its steps are waited for."""
    model = Model()
    atexit.register(lambda: print("ended after", model.check()))

    def loop():
        for _ in range(30):
            model.opt.step(model.grads)

    threading.Thread(target=loop).start()


def by_sys_exit_in_a_schedule():
    def lr(t):
        if t == 3:
            sys.exit()
        return LR

    model = Model(lr)
    try:
        while True:
            model.opt.step(model.grads)
    finally:
        print("ended after", model.check())


def by_sys_exit_in_a_threads_schedule():
    """Only that thread ends."""
    thread = threading.Thread(target=by_sys_exit_in_a_schedule)
    thread.start()
    thread.join()
    Model().step()


def by_os_exit_in_a_schedule():
    def lr(t):
        if t == 3:
            os._exit(0)
        return LR

    while_daemons_step()
    model = Model(lr)
    while True:
        model.opt.step(model.grads)


def with_a_step_at_exit():
    """The first one, which makes the threads, or a later one."""
    model = Model()
    if random.random() < 0.5:
        model.step()

    def last():
        model.step(3)
        print("ended after", model.check())

    atexit.register(last)


class Last:
    def __init__(self):
        self.model = Model()
        self.itself = self

    def __del__(self, write=os.write):
        model = self.model
        steps = [model.opt.step(model.grads) for _ in range(3)]
        write(1, f"deleted after {len(steps)}\n".encode())


def with_a_step_in_a_finalizer():
    global last
    last = Last()
    last.model.opt.step(last.model.grads)


def after_a_fork():
    """Parent and child end with workers of their own."""
    model = Model()
    model.step()
    pid = start_child()
    model.step()
    if pid:
        wait_for(pid)


def start_child():
    sys.stdout.flush()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*use of fork", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        signal.setitimer(signal.ITIMER_REAL, LIMIT)
        random.seed()
    return pid


def wait_for(pid):
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code != -signal.SIGALRM, f"the child did not end within {LIMIT} s"
    assert code == 0, f"the child ended with {code}"


def main(scenario, count):
    for _ in range(count):
        pid = start_child()
        if pid == 0:
            break
        wait_for(pid)
    signal.setitimer(signal.ITIMER_REAL, LIMIT)
    globals()[scenario]()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
