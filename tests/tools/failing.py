"""What test_failures.py runs in a process of its own, most of it with interpose.c before the
system's libraries: threads and memory that are refused. ``failing.py SCENARIO``."""

import ctypes
import gc
import os
import resource
import sys
import threading
import warnings
from contextlib import contextmanager
from pathlib import Path

import numpy as np

import thalweg as tw
from forking import LR, MOMENTUM, Model, count_threads, fork, use

EVERY = 10**6
shim = ctypes.CDLL(None)


def contents(opt):
    """All that a step changes."""
    slots = [np.array(x).tobytes() for slot in opt.state.values() for x in slot.values()]
    counters = opt.step_count, opt.skipped_steps, opt.grad_norm
    return [w.tobytes() for w in opt._arrays.values()], slots, counters


@contextmanager
def warned(times):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    said = [(each.category, "refused a thread" in str(each.message)) for each in caught]
    assert said == [(RuntimeWarning, True)] * times, said


# Threads.


def refused_from(first, last):
    model, other = Model(), Model()
    shim.refuse_threads(first, last)
    with warned(1):
        model.step(20)
        other.step(20)
    assert shim.count_threads_asked() == first, "the system was asked again"
    assert count_threads() == first, "these are not the workers that it gave"
    shim.refuse_threads(0, 0)
    with warned(0):
        model.step()
        assert count_threads() == first
        fork(lambda: use(model))  # a child begins anew
        tw.set_num_threads(tw.get_num_threads())
        model.step(20)
        other.step()
    assert count_threads() == tw.get_num_threads()


def threads_one_by_one():
    """For every thread of the pool: it alone is refused, or all from it on."""
    for first in range(1, tw.get_num_threads()):
        for last in (first, EVERY):
            fork(lambda first=first, last=last: refused_from(first, last))


def threads_while_many_step():
    """However many steps find out, one of them warns."""
    models = [Model() for _ in range(4)]
    ready = threading.Barrier(len(models) + 1)

    def loop(model):
        ready.wait()
        for _ in range(50):
            model.opt.step(model.grads)

    threads = [threading.Thread(target=loop, args=(model,)) for model in models]
    for thread in threads:
        thread.start()
    shim.refuse_threads(2, EVERY)
    with warned(1):
        ready.wait()
        for thread in threads:
            thread.join()
    assert [model.check() for model in models] == [50] * len(models)


def threads_with_warnings_as_errors():
    """The step that raises has been taken, whole."""
    model, like = Model(), Model()
    model.opt.max_norm = like.opt.max_norm = 1e30
    shim.refuse_threads(1, EVERY)
    try:
        model.opt.step(model.grads)
        raise AssertionError("no warning")
    except RuntimeWarning:
        pass
    like.opt.step(like.grads)
    assert model.opt.step_count == 1
    assert contents(model.opt) == contents(like.opt)
    assert model.opt.step(model.grads)


def threads_beyond_the_limit():
    """RLIMIT_NPROC, which does not bind root."""
    model = Model()
    if os.getuid() == 0:
        os.setuid(65534)
    resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))
    try:
        threading.Thread(target=gc.collect).start()
    except RuntimeError:
        pass
    else:
        print("not bound by RLIMIT_NPROC")
        return
    with warned(1):
        model.step(50)
    assert count_threads() == 1


# Memory, by the system's limit.


@contextmanager
def memory_limited(spare):
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + spare, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def memory_for_the_state():
    large, small = np.ones(1 << 24, np.float32), np.ones(1000, np.float32)
    grad = np.ones_like(small)
    for make in (lambda params: tw.SGD(params, LR, MOMENTUM), tw.Adagrad):
        before = small.tobytes(), large.sum()
        with memory_limited(large.nbytes // 2):
            try:
                make([small, large])
                raise AssertionError("the limit does not bind")
            except MemoryError:
                pass
            assert (small.tobytes(), large.sum()) == before
            assert make(small).step(grad)
        like = make(small.copy())
        assert like.step(grad)
        opt = make([small, large])
        assert opt.step([grad, None])
        assert contents(opt)[0][0] == contents(like)[0][0]


def memory_for_a_step():
    """A step needs none, whatever its gradients are; threads that get no stack are refused ones."""
    w = np.ones((2000, 2000), np.float32)
    opt, like = (tw.SGD(array, LR, MOMENTUM, max_norm=1.0) for array in (w, w.copy()))
    grads = [np.ones(w.shape, dtype) for dtype in (np.float16, np.float32, np.float64)]
    grads += [g.T for g in grads] + [np.broadcast_to(np.float32(2), w.shape)]
    with memory_limited(1 << 20), warned(1):
        for g in grads:
            opt.step(g)
    assert count_threads() == 1
    with warned(0):
        for g in grads:
            like.step(g)
    assert contents(opt) == contents(like)


if __name__ == "__main__":
    scenario, *given = sys.argv[1:]
    globals()[scenario](*given)
