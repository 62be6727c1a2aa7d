"""Many Python threads at once: the bits of a serial run, and nothing let go too early."""

import gc
import pickle
import threading
import weakref
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import cycle, islice

import numpy as np
import pytest

import thalweg as tw
from bits import assert_same_bits
from conftest import FULL
from processes import run_python
from refusing import RULES, frozen

THREADS = 16

# Elements, float32: a step that keeps the GIL, one that lets it go, one that the pool shares. And
# how often each thread steps.
SIZES = {"short": (6, 1000), "long": (20_000, 1000), "pooled": (150_000, 1000 if FULL else 200)}


@pytest.fixture
def four_threads():
    before = tw.get_num_threads()
    tw.set_num_threads(4)
    yield
    tw.set_num_threads(before)


def at_once(*works):
    """Each in a thread of its own, all let go together; what one raises is raised here."""
    barrier = threading.Barrier(len(works))

    def run(work):
        barrier.wait()
        return work()

    with ThreadPoolExecutor(len(works)) as threads:
        return [done.result() for done in [threads.submit(run, work) for work in works]]


def all_bits(opt):
    """What a run leaves behind: params and state, and the counters as arrays."""
    found = {"step_count": np.array(opt.step_count)}
    for name, param in opt._arrays.items():
        found |= {(name, slot): np.array(x) for slot, x in opt.state[name].items()}
        found[name, "param"] = param.copy()
    return found


def assert_same(actual, expected, context=""):
    assert actual.keys() == expected.keys()
    for key, array in expected.items():
        assert_same_bits(actual[key], array, f"{context} {key}")


def buffers(seed, size, count):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(size).astype(np.float32) for _ in range(count)]


@pytest.mark.slow
@pytest.mark.parametrize(("size", "steps"), SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("rule", RULES)
def test_threads_on_their_own_optimizers(rule, size, steps, four_threads):
    def run(seed):
        w, *grads = buffers(seed, size + seed, 4)
        opt = rule([w])
        for g in islice(cycle(grads), steps):
            opt.step([g])
        return all_bits(opt)

    actual = at_once(*(partial(run, seed) for seed in range(THREADS)))
    tw.set_num_threads(1)
    for seed in range(THREADS):
        assert_same(actual[seed], run(seed), seed)


@pytest.mark.slow
@pytest.mark.parametrize(("size", "steps"), SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("rule", RULES)
def test_threads_on_one_optimizer(rule, size, steps, four_threads):
    """One gradient, but no two steps alike: the rate follows the count of the steps."""
    w, v, g = buffers(0, size, 3)
    crowd, alone = ({"w": w.copy(), "v": v.copy()} for _ in range(2))
    grads = {"w": g, "v": g}
    opt, serial = (rule(params, grads=grads) for params in (crowd, alone))
    opt.lr = serial.lr = rate
    at_once(*[lambda: [opt.step() for _ in range(steps)]] * THREADS)
    tw.set_num_threads(1)
    for _ in range(THREADS * steps):
        serial.step()
    assert_same(all_bits(opt), all_bits(serial))


def rate(step):
    return 0.1 / (1 + step % 97)


@pytest.mark.slow
@pytest.mark.parametrize(("size", "steps"), SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("rule", RULES)
def test_threads_on_arrays_of_their_own_in_one_optimizer(rule, size, steps, four_threads):
    """Whoever comes first: each array sees its own gradients in its own order."""

    def make():
        return rule({f"w{i}": buffers(i, size, 1)[0] for i in range(THREADS)})

    def run(opt, i):
        _, *grads = buffers(i, size, 4)
        for g in islice(cycle(grads), steps):
            opt.step({f"w{i}": g}, partial=True)

    opt, serial = make(), make()
    at_once(*(partial(run, opt, i) for i in range(THREADS)))
    tw.set_num_threads(1)
    for i in range(THREADS):
        run(serial, i)
    assert_same(all_bits(opt), all_bits(serial))


def test_a_loop_of_steps_lets_others_have_their_turns():
    """Its thread has the GIL again before one that waits has even woken."""
    w, g = np.zeros(20_000, np.float32), np.ones(20_000, np.float32)
    opt, turns, limit = tw.SGD(w), 20, 100_000
    started, done = threading.Event(), threading.Event()

    def loop():
        while not done.is_set() and opt.step_count < limit:
            opt.step(g)
            started.set()

    def take_turns():
        started.wait()
        for _ in range(turns):
            opt.step(g)
        done.set()
        return opt.step_count

    assert at_once(loop, take_turns)[1] < limit


FIRST_USE = """
import sys, threading
from types import MappingProxyType
import numpy as np, thalweg as tw

def number():
    tw.SGD(np.array(1.0)).step(0.5)
def mapping():
    tw.SGD({"w": np.ones(3)}).step(MappingProxyType({"w": np.ones(3, np.float16)}))
def flag():
    tw.SGD(np.ones(3), True)
def masked():
    tw.SGD(np.ma.ones(3))

def use():
    for work in (number, mapping, flag, masked):
        barrier.wait()
        try:
            work()
        except TypeError:
            pass

sys.setswitchinterval(1e-6)
barrier = threading.Barrier(8)
threads = [threading.Thread(target=use, daemon=True) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""


@pytest.mark.parametrize("attempt", range(5))
def test_first_uses_by_many_threads_at_once(attempt):
    """What the core imports on first use may let the GIL go; nothing may be locked then."""
    done = run_python("-c", FIRST_USE, timeout=30)
    assert (done.returncode, done.stderr) == (0, "")


class Watched(np.ndarray):
    """Hands in what it holds when nobody holds it any more, and is useless from then on."""

    def __del__(self):
        self.last.append(np.array(self))
        self.fill(np.nan)


def watched(value, last):
    """A plain array over a watched one."""
    array = Watched(1 << 18, np.float32)
    array.fill(value)
    array.last = last
    return array.view(np.ndarray)


class Announced(Mapping):
    """Gradients that are given away one by one; ``event`` is set with the last."""

    def __init__(self, grads, event):
        self.grads, self.event, self.size = grads, event, len(grads)

    def __getitem__(self, key):
        value = self.grads.pop(key)
        if not self.grads:
            self.event.set()
        return value

    def __iter__(self):
        raise NotImplementedError

    def __len__(self):
        return self.size


class AnnouncedRate:
    """A number that sets ``event`` when it is read."""

    def __init__(self, event):
        self.event = event

    def __float__(self):
        self.event.set()
        return 0.5


@pytest.fixture
def quick_collection():
    """Only what is made from here on is looked at."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def loops():
    return range(1000 if FULL else 60)


def one_step(users):
    if "opt" in users:
        users["opt"].step(users["grads"])
    else:
        tw.sgd_(users["params"], users["grads"], users["state"], lr=users["lr"], momentum=0.5)


def let_go_during_a_step(users, event):
    """Another thread steps; after the event this one drops all it has, and waits."""
    thread = threading.Thread(target=one_step, args=(users,))
    thread.start()
    event.wait()
    for name in ("params", "state"):
        users.pop(name, {}).clear()
    if isinstance(users["grads"], list):
        users["grads"].clear()
    users.clear()
    gc.collect()
    thread.join()
    gc.collect()


@pytest.mark.slow
def test_every_reference_goes_during_a_step(four_threads, quick_collection):
    for _ in loops():
        event, weights, grads = threading.Event(), [], []
        params = {name: watched(3, weights) for name in "ab"}
        opt = tw.SGD(params, 0.5, 0.5)
        ref = weakref.ref(opt)
        given = Announced({name: watched(2, grads) for name in "ab"}, event)
        users = {"opt": opt, "params": params, "grads": given}
        del opt, given, params
        let_go_during_a_step(users, event)
        assert ref() is None
        assert [(x == 2).all() for x in (*weights, *grads)] == [True] * 4


@pytest.mark.slow
def test_every_reference_goes_during_a_step_without_an_object(four_threads, quick_collection):
    for _ in loops():
        event, last = threading.Event(), []
        users = {
            "params": [watched(3, last), watched(3, last)],
            "grads": [watched(2, last), watched(2, last)],
            "state": [watched(0, last), watched(0, last)],
            "lr": AnnouncedRate(event),
        }
        let_go_during_a_step(users, event)
        assert [(x == 2).all() for x in last] == [True] * 6


def test_a_held_array_cannot_be_resized_during_a_step():
    for _ in range(20):
        event, w = threading.Event(), np.full(1 << 18, 3.0, np.float32)
        opt = tw.SGD({"w": w}, 0.5)
        given = Announced({"w": np.full_like(w, 2)}, event)
        thread = threading.Thread(target=opt.step, args=(given,))
        thread.start()
        event.wait()
        with pytest.raises(ValueError, match="resize"):
            w.resize(8)
        thread.join()
        assert (w == 2).all()


def test_a_flag_that_changes_during_a_step_is_seen_by_the_next():
    for _ in range(20):
        event, w = threading.Event(), np.full(1 << 18, 3.0, np.float32)
        opt = tw.SGD({"v": np.zeros(6), "w": w}, 0.5)
        given = Announced({"v": np.ones(6), "w": np.full_like(w, 2)}, event)
        thread = threading.Thread(target=refused_or_done, args=(opt, given))
        thread.start()
        event.wait()
        w.flags.writeable = False
        thread.join()
        assert (w == 3 - opt.step_count).all()
        before = frozen(opt)
        with pytest.raises(RuntimeError, match="received a read-only array"):
            opt.step({"v": np.ones(6), "w": np.ones_like(w)})
        assert frozen(opt) == before


def refused_or_done(opt, grads):
    """The flag may be changed before the step looks at it."""
    try:
        opt.step(grads)
    except RuntimeError:
        assert opt.step_count == 0


def test_others_look_and_set_while_one_steps(four_threads):
    """A rate holds for whole steps; what is only looked at stays as it is."""
    size, count = 1 << 17, 300
    params = {"a": np.zeros(size, np.float32), "b": np.zeros((size, 2), np.float32)}
    grads = {name: np.full_like(w, -1) for name, w in params.items()}
    opt = tw.SGD(params, 1.0, 0.5, grads=grads)
    running = threading.Event()
    running.set()

    def step():
        try:
            for _ in range(count):
                assert opt.step()
        finally:
            running.clear()

    def meanwhile(*works):
        def run():
            while True:
                for work in works:
                    work()
                if not running.is_set():
                    return

        return run

    def set_rate():
        for lr in (1.0, 2.0):
            opt.lr = lr
            assert opt.param_groups[0]["lr"] == lr

    def look():
        taken = opt.state["a"]["step"]
        assert 0 <= taken <= opt.step_count + 1
        assert opt.state["b"]["velocity"].shape == (size, 2)
        assert repr(opt).startswith("SGD(lr=")

    def copy():
        again = pickle.loads(pickle.dumps(opt))
        assert again.param_groups[0]["momentum"] == 0.5
        assert again.step_count <= opt.step_count

    def set_threads():
        for threads in (1, 2, 5):
            tw.set_num_threads(threads)

    at_once(step, meanwhile(set_rate), meanwhile(look, copy), meanwhile(set_threads))
    velocity = np.float32(0)
    for _ in range(count):
        velocity = np.float32(0.5) * velocity + np.float32(-1)
    for name, w in params.items():
        assert (w == params["a"][0]).all()
        assert (opt.state[name]["velocity"] == velocity).all()
        assert opt.state[name]["step"] == opt.step_count == count
    assert count < params["a"][0] < 4 * count
