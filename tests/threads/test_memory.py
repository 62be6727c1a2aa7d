"""Memory of our own: how state buffers lie, and that nothing grows in a long run. The soak runs in
a process of its own: ``test_memory.py STEPS``, by each of four threads."""

import gc
import os
import re
import sys
import threading
import weakref
from pathlib import Path

import numpy as np
import pytest

import thalweg as tw
from bits import place
from conftest import FULL
from processes import run_python
from refusing import RULES

MIB = 1 << 20
STATUS, TASKS, DESCRIPTORS = (Path("/proc/self", name) for name in ("statm", "task", "fd"))
needs_proc = pytest.mark.skipif(not STATUS.exists(), reason="no /proc/self to ask")


def state_of(opt, name=""):
    return next(array for slot, array in opt.state[name].items() if slot != "step")


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("offset", [0, 8, 16, 40, 56])
def test_state_starts_on_a_cache_line_and_that_of_a_larger_array_where_the_array_does(
    rule, dtype, offset
):
    """Large state also begins in the first of its huge pages."""
    item = np.dtype(dtype).itemsize

    def starts(size):
        w = place(np.ones(size, dtype), offset)
        return w.ctypes.data, state_of(rule(w)).ctypes.data

    for size in (*range(70), 4096 // item - 1):
        assert starts(size)[1] % 64 == 0
    for least in (4096, 4 * MIB):
        for size in (least // item, least // item + 1, least // item + 1021):
            param, state = starts(size)
            assert state % 64 == param % 64
            assert least < 4 * MIB or state % (2 * MIB) < 64


def test_state_of_other_shapes_is_aligned_too():
    opt = tw.SGD([np.array(1.0), np.ones((3, 0)), np.ones((7, 5)).T, np.ones(40)[::4]], 0.1, 0.9)
    for name in opt.state:
        assert state_of(opt, name).ctypes.data % 64 == 0


def flags_of(address):
    """The kernel's flags of the mapping that holds an address."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if bounds := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            low, high = (int(bound, 16) for bound in bounds.groups())
            inside = low <= address < high
        elif inside and line.startswith("VmFlags:"):
            return line.split()[1:]
    return []


@pytest.mark.parametrize("mib", [4, 4.01, 20])
@pytest.mark.parametrize("initial", [0.0, 0.1])
def test_huge_pages_are_asked_for_large_state_that_will_be_touched(mib, initial):
    """All of it: filled at once, or zeros that a dense gradient comes to."""
    setting = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if not setting.exists() or not Path("/proc/self/smaps").exists():
        pytest.skip("this system has no transparent huge pages, or does not tell")
    params = np.ones((int(mib * MIB) // 64, 8))
    opt = tw.Adagrad(params, initial_accumulator_value=initial)
    state = state_of(opt)
    first, last = state.ctypes.data, state.ctypes.data + state.nbytes - 4096
    flags = flags_of(first)
    if not flags:
        pytest.skip("this kernel does not show the flags of a mapping")
    opt.step(tw.RowGrad(np.array([0]), np.ones((1, 8))))
    assert ("hg" in flags_of(first)) == ("hg" in flags_of(last)) == (initial != 0)
    opt.step(np.broadcast_to(1.0, params.shape))
    assert "hg" in flags_of(first)
    assert "hg" in flags_of(last)


@pytest.mark.parametrize("rule", RULES)
def test_state_goes_with_its_optimizer(rule):
    """At once: the garbage collector counts objects, not their megabytes."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        opt = rule([np.ones(1000), np.array(1.0)])
        opt.lr = lambda t: 0.5
        opt.step([np.ones(1000), 0.5])
        opt.param_groups[0]["weight_decay"] = 0.1
        assert opt.lr(0) == 0.5
        ref = weakref.ref(opt)
        del opt
        assert ref() is None
    finally:
        if enabled:
            gc.enable()


def resident():
    return int(STATUS.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@needs_proc
@pytest.mark.parametrize("order", ["C", "F"])
def test_state_of_an_untouched_table_takes_no_memory(order):
    """Nor do rows of it take more than their own pages."""
    table = np.zeros((1_000_000, 16), np.float32, order)
    before = resident()
    opt = tw.Adagrad(table)
    assert resident() - before < 2 * MIB
    rows = np.arange(0, 1_000_000, 10_000)
    before = resident()
    for _ in range(2):
        opt.step(tw.RowGrad(rows, np.ones((100, 16), np.float32)))
    touched = resident() - before
    state = state_of(opt)
    assert np.array_equal(state[::10_000], np.full((100, 16), 2, np.float32))
    assert not state[1:10_000].any()
    if order == "C":
        state_alone = 100 * 4096
        params_too = 100 * 2 * MIB  # NumPy asks for huge pages
        assert touched < state_alone + min(params_too, table.nbytes) + 4 * MIB
    del state, opt
    assert resident() - before < table.nbytes + 4 * MIB


@needs_proc
def test_a_table_larger_than_the_memory(tmp_path):
    """Its file is of holes; the accumulator has as many bytes."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    row = 1 << 20
    count = total * 3 // 2 // row // 4
    try:
        table = np.memmap(tmp_path / "table", np.float32, "w+", shape=(count, row))
    except OSError as error:
        pytest.skip(f"this file system has no files with holes of this size: {error}")
    before = resident()
    opt = tw.Adagrad({"table": table}, lr=0.5)
    rows = np.array([count - 1, 0])
    opt.step({"table": tw.RowGrad(rows, np.full((2, row), 3, np.float32))})
    expected = np.zeros(1, np.float32) - np.float32(1.5) / np.sqrt(np.float32(9) + np.float32(1e-8))
    for i in rows:
        assert (table[i] == expected).all()
        assert (opt.state["table"]["accumulator"][i] == 9).all()
    assert not opt.state["table"]["accumulator"][1, :10].any()
    assert resident() - before < 64 * MIB


def entries(folder):
    return len(list(folder.iterdir()))


class Worker:
    """One thread's share of the soak: all that a step may take, give back or refuse."""

    def __init__(self, seed, shared):
        self.rng, self.shared, self.refused = np.random.default_rng(seed), shared, 0
        self.params = {"w": np.ones((40, 25), np.float32), "layers": [np.ones(6), np.ones((), "f")]}
        self.opt = tw.SGD(self.params, lambda t: 1e-3 / (1 + t), 0.9)
        # Long enough to let the GIL go, and for the pool.
        self.long = tw.Adagrad([np.ones(20_000, np.float32), np.ones(140_000, np.float32)])
        self.grads = [np.ones(n, np.float32) for n in (20_000, 140_000)]
        self.free = [np.ones(500), np.zeros(500)]

    def step(self, k):
        g = self.rng.standard_normal((40, 25), np.float32)
        b = self.rng.standard_normal(6)
        which = k % 8
        if which < 3:
            self.opt.step({"w": g, "layers": [b, 0.5]}, scale=0.5)
        elif which == 3:
            self.opt.step({"w": g.reshape(25, 40).T.astype("f8"), "layers": (None, b[0])})
        elif which == 4:
            self.opt.step({"w": g[::-1]}, partial=True)
        elif which == 5:
            tw.adagrad_(self.free[:1], [g[:20].ravel()], self.free[1:], lr=0.1)
        elif which == 6:
            self.shared.step([g, b.astype("f")])
            assert self.opt.state["w"]["velocity"].shape == (40, 25)
            self.opt.lr = self.opt.lr
        else:
            self.be_refused(g, b)
            assert tw.Adagrad({"w": g}).step({"w": g.copy()})
        if k % 32 == 0:
            self.long.step([self.grads[0], self.grads[1] if k % 128 == 0 else None])

    def be_refused(self, g, b):
        for wrong in ({"w": g.T, "layers": [b, 1.0]}, {"w": g}, {"w": g, "layers": [b, "1"]}):
            try:
                self.opt.step(wrong)
            except (TypeError, ValueError):
                self.refused += 1


def soak(steps):
    """Prints resident MiB, threads and descriptors after the warm-up and after each tenth."""
    tw.set_num_threads(4)
    shared = tw.SGD([np.ones((40, 25), np.float32), np.ones(6, np.float32)], 1e-3)
    barrier = threading.Barrier(5)
    spans = [max(1000, steps // 10)] + [steps // 10] * 10

    def run(seed):
        try:
            worker = Worker(seed, shared)
            for span in spans:
                for k in range(span):
                    worker.step(k)
                barrier.wait()
                barrier.wait()  # until all is measured
            assert worker.refused >= 3 * sum(span // 8 for span in spans)
        except BaseException:
            barrier.abort()
            raise

    threads = [threading.Thread(target=run, args=(seed,), daemon=True) for seed in range(4)]
    for thread in threads:
        thread.start()
    for _ in spans:
        barrier.wait()
        print(f"{resident() / MIB:.3f} {entries(TASKS)} {entries(DESCRIPTORS)}", flush=True)
        barrier.wait()
    for thread in threads:
        thread.join()


@needs_proc
@pytest.mark.slow
def test_a_long_run_takes_nothing_more():
    done = run_python(__file__, 100_000 if FULL else 5000, timeout=1800)
    assert (done.returncode, done.stderr) == (0, "")
    lines = [line.split() for line in done.stdout.splitlines()]
    assert len(lines) == 11
    megabytes = [float(line[0]) for line in lines]
    assert max(megabytes) - megabytes[0] < 1, done.stdout
    # 5 threads of Python and 3 workers.
    assert {line[1] for line in lines} == {"8"}, done.stdout
    assert len({line[2] for line in lines}) == 1, done.stdout


if __name__ == "__main__":
    soak(int(sys.argv[1]))
