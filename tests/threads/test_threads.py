"""Steps on many threads have the bits of the reference, and run on as many threads as they say."""

import sys
from contextlib import ExitStack
from functools import lru_cache

import numpy as np
import pytest

import floatmode
import forking
import thalweg as tw
from bits import DTYPES, assert_same_bits, sample
from conftest import FULL
from layouts import laid_out
from processes import run_python
from refusing import frozen
from rules import RULES
from twin import Twin
from workers import pages_by_worker, until_shared, untouched

COUNTS = [1, 2, 3, 7, 16]

# Bytes of params from which the pool is asked, and from which it is woken.
ASKED, WOKEN = 1 << 19, 1 << 23
LINE, TILE, BLOCK = 64, 2048, 16_384

needs_proc = pytest.mark.skipif(sys.platform != "linux", reason="/proc/self/task is Linux's")
chosen = RULES if FULL else ["heavy_ball_nesterov", "adagrad_inside"]
each_rule = pytest.mark.parametrize("rule", [RULES[name] for name in chosen], ids=chosen)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.__name__)
each_mode = floatmode.each_mode
processor, in_mode = floatmode.processor, floatmode.in_mode


class Course:
    """Three steps of a long array; every rule is elementwise, so they hold for any part of it."""

    def __init__(self, rule, dtype):
        rng = np.random.default_rng(1)
        self.size = WOKEN // np.dtype(dtype).itemsize + 3 * BLOCK
        self.start, *grads = (sample(rng, self.size, dtype) for _ in range(3))
        self.grads = [grads[0], grads[1], grads[0]]
        w, state = self.start.copy(), np.zeros_like(self.start)
        self.after = []
        for t, grad in enumerate(self.grads):
            rule.twin(w, grad, state, t)
            self.after.append((w.copy(), state.copy()))


@lru_cache(maxsize=None if FULL else 4)
def course(kernel, dtype):
    return Course(RULES[kernel], dtype)


def states_of(opt, rule):
    return [slots[rule.slot] for slots in opt.state.values()] if rule.slot else []


# On both sides of every width of a vector.
NEAR = [-65, -64, -17, -1, 0, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65]
FAR = NEAR if FULL else [-1, 0, 17]


def edges(dtype):
    """Sizes of one array around those where something about the threads changes."""
    asked, woken = (limit // np.dtype(dtype).itemsize for limit in (ASKED, WOKEN))
    sizes = [asked + by for by in NEAR]
    sizes += [asked + base + by for base in (TILE, BLOCK) for by in (-LINE - 1, -LINE, -1, 0, 1)]
    return sizes + [woken + by for by in FAR] + [woken + BLOCK + by for by in FAR]


@each_rule
@each_dtype
def test_one_array_of_every_size(rule, dtype, level, threads):
    """The steps follow each other at once, or the workers would sleep below the larger limit."""
    run = course(rule.kernel, dtype)
    for k, size in enumerate(edges(dtype)):
        grads = [g[:size] for g in run.grads]
        small = size * run.start.itemsize < WOKEN - ASKED
        for count in COUNTS if small or FULL else (COUNTS[k % 2], COUNTS[2 + k % 3]):
            threads(count)
            w = run.start[:size].copy()
            opt = rule.make(w, level)
            for g in grads:
                opt.step(g)
            context = f"{size} elements, {count} threads"
            assert_same_bits(w, run.after[-1][0][:size], f"param, {context}")
            for state in states_of(opt, rule):
                assert_same_bits(state, run.after[-1][1][:size], f"state, {context}")


# A piece holds arrays until their sizes, and 64 for each, reach a block: here on either side.
PIECES = [0, 1, 16319, 16320, 16321, 16383, 16384, 16385, 5, 16256, 0, 16256, 32769, 7]


@each_rule
@each_dtype
def test_ten_thousand_arrays_beside_a_large_one(rule, dtype, level, threads):
    run = course(rule.kernel, dtype)
    others = 10_000 * 16 + sum(PIECES)
    sizes = [*[16] * 5000, *PIECES, run.size - others, *PIECES[::-1], *[16] * 5000]
    ends = np.cumsum(sizes)
    ends = ends[ends <= run.size]

    def arrays(whole):
        return np.split(whole, ends)

    grads = [arrays(g) for g in run.grads]
    for count in COUNTS if FULL else (2, 7):
        threads(count)
        w = run.start.copy()
        opt = rule.make(arrays(w), level)
        for g in grads:
            opt.step(g)
        assert_same_bits(w, run.after[-1][0], f"param, {count} threads")
        state = np.concatenate(states_of(opt, rule) or [run.after[-1][1]])
        assert_same_bits(state, run.after[-1][1], f"state, {count} threads")


# Of params, and of their gradients.
LAYOUTS = {"C": "F", "F": "C", "strided": "backwards", "backwards": "strided"}


@each_rule
@pytest.mark.parametrize("grad_dtype", DTYPES if FULL else [np.float32], ids=lambda d: d.__name__)
@each_dtype
def test_other_layouts_behind_all_limits(rule, dtype, grad_dtype, level, threads):
    limits = {"max_norm": 3.7, "on_nonfinite": "raise"}
    rng = np.random.default_rng(2)
    for size, counts in ((ASKED, COUNTS), (WOKEN, COUNTS if FULL else [7])):
        shape = size // np.dtype(dtype).itemsize // 2000, 509
        start = {layout: rng.standard_normal(shape).astype(dtype) for layout in LAYOUTS}
        values = {layout: rng.standard_normal(shape).astype(grad_dtype) for layout in LAYOUTS}
        grads = {name: laid_out(values[name], layout) for name, layout in LAYOUTS.items()}
        bad = grads | {"strided": grads["strided"].copy()}
        bad["strided"][1, 7], bad["strided"][-1, -2:] = np.inf, np.nan
        twin = Twin(rule, start, {name: {} for name in start}, **limits)
        twin.step(grads, 0.3)
        twin.step(grads, 0.3)
        messages = set()
        for count in counts:
            threads(count)
            w = {layout: laid_out(x.copy(), layout) for layout, x in start.items()}
            opt = rule.make(w, level, **limits)
            assert opt.step(grads, scale=0.3)
            before = frozen((opt, w))
            with pytest.raises(FloatingPointError) as caught:
                opt.step(bad, scale=0.3)
            messages.add(str(caught.value))
            assert frozen((opt, w)) == before
            assert opt.step(grads, scale=0.3)
            twin.assert_equals(opt, w, f"{count} threads")
        (message,) = messages
        assert 'grads["strided"]' in message
        assert "2 NaN and 1 inf, the first at [1, 7]" in message


def halves(array):
    return [array[: array.size // 2 : 2], array[1 : array.size // 2 : 2], array[array.size // 2 :]]


# How an array of the course may be cut into params.
PARTS = {
    "one": lambda array: [array],
    "many": lambda array: np.array_split(array, 2111),
    "strided": halves,
}


@needs_proc
@each_rule
@each_dtype
@pytest.mark.parametrize("parts", PARTS.values(), ids=PARTS)
def test_a_large_step_is_shared(rule, dtype, parts, level, threads):
    """The right bits in a step of which workers are known to have done a part."""
    run = course(rule.kernel, dtype)
    for count in COUNTS[1:] if FULL or parts is PARTS["one"] else (7,):
        threads(count)

        def prepare(count=count):
            w = untouched(run.start)
            opt = rule.make(parts(w), level)

            def check():
                assert_same_bits(w, run.after[0][0], f"{count} threads")
                expected = parts(run.after[0][1])
                for i, state in enumerate(states_of(opt, rule)):
                    assert_same_bits(state, expected[i], f"state {i}, {count} threads")

            return lambda: opt.step(parts(run.grads[0])), check

        until_shared(prepare)


@needs_proc
def test_a_smaller_step_is_shared_if_it_soon_follows_another(level, threads):
    threads(7)
    rule, run, size = RULES["sgd"], course("sgd", np.float32), ASKED // 4 + 17
    start, grad, end = run.start[:size], run.grads[0][:size], run.after[0][0][:size]
    earlier = rule.make(start.copy(), level)

    def prepare():
        w = untouched(start)
        opt = rule.make(w, level)

        def steps():
            earlier.step(grad)
            opt.step(grad)

        return steps, lambda: assert_same_bits(w, end)

    until_shared(prepare)


@needs_proc
def test_no_more_threads_work_than_were_asked_for(threads):
    """Those of a larger number asked for before are still there."""
    start = np.zeros(WOKEN // 4, np.float32)
    grad = np.ones_like(start)
    threads(16)
    tw.SGD(start.copy()).step(grad)
    for count in (1, 2, 3):
        threads(count)
        for _ in range(10):
            opt = tw.SGD(untouched(start), 1.0)
            assert len(pages_by_worker(lambda opt=opt: opt.step(grad))) < count


STEPS_OF_SIZES = """
import numpy as np, thalweg as tw
from forking import count_threads

def step(*sizes, dtype=np.float32, left_out=0):
    params = [np.ones(n, dtype) for n in sizes]
    grads = [None if i < left_out else w.copy() for i, w in enumerate(params)]
    opt = tw.SGD(params, 0.1, 0.9, max_norm=1.0)
    for _ in range(3):
        opt.step(grads)
    tw.adagrad_(params[left_out:], grads[left_out:], [w.copy() for w in params[left_out:]], lr=0.1)
    return count_threads()

assert step(1) == step((1 << 17) - 1) == step((1 << 16) - 1, dtype=np.float64) == 1
assert step(1 << 16, (1 << 16) - 1) == step(*[16] * 8191) == 1
assert step(1 << 16, 1 << 16, left_out=1) == 1
tw.set_num_threads(1)
assert step(1 << 22) == 1
tw.set_num_threads(3)
assert step(1) == 1
assert step(*SIZES, dtype=DTYPE) == 3
tw.set_num_threads(65_536)
assert step(1) == 3
assert step(*SIZES, dtype=DTYPE) == PIECES
tw.set_num_threads(70)
assert step(1 << 22) == 70
tw.set_num_threads(2)
assert step(1 << 22) == 70
"""


@needs_proc
@pytest.mark.parametrize(
    ("sizes", "dtype", "pieces"),
    [
        ("[1 << 17]", "'f4'", 8),
        ("[1 << 16]", "'f8'", 4),
        ("[(1 << 17) + 1]", "'f4'", 9),
        ("[16] * 8192", "'f4'", 40),
        ("[1, 1 << 17, 0]", "'f4'", 10),
    ],
    ids=["float32", "float64", "one more", "many", "three"],
)
def test_threads_are_made_for_the_first_step_that_is_large_enough(sizes, dtype, pieces):
    """At most as many as the step has pieces."""
    code = STEPS_OF_SIZES.replace("*SIZES", f"*{sizes}").replace("DTYPE", dtype)
    done = run_python("-c", code.replace("PIECES", str(pieces)))
    assert (done.returncode, done.stderr) == (0, "")


def mode_operands(dtype):
    return floatmode.operands(dtype, dtype, WOKEN // np.dtype(dtype).itemsize + 17)


@lru_cache(maxsize=None if FULL else 4)
def step_in_the_usual_mode(kernel, dtype):
    start, grad, _ = mode_operands(dtype)
    twin = Twin(RULES[kernel], {"": start}, {"": {}}, max_norm=100.0)
    twin.step({"": grad})
    return start, grad, twin


@needs_proc
@each_mode
@each_rule
@each_dtype
def test_a_shared_step_in_another_mode(mode, rule, dtype, level, in_mode, threads):
    """The caller's blocks and the workers', and the norm of them all."""
    threads(7)
    start, grad, twin = step_in_the_usual_mode(rule.kernel, dtype)

    def prepare():
        w = untouched(start)
        opt = rule.make(w, level, max_norm=100.0)

        def step():
            with in_mode(mode):
                opt.step(grad)

        return step, lambda: twin.assert_equals(opt, {"": w}, mode)

    until_shared(prepare)


BORN_IN_A_MODE = """
import ctypes, sys
import numpy as np, thalweg as tw
from bits import assert_same_bits
from forking import count_threads
from rules import RULES
from test_threads import mode_operands
from workers import until_shared, untouched

processor = ctypes.CDLL(sys.argv[1])
assert count_threads() == 1
tw.set_num_threads(7)
rule = RULES["heavy_ball"]
start, grad, _ = mode_operands(np.float32)
expected = start.copy()
rule.twin(expected, grad, np.zeros_like(start), 0)
opt = tw.SGD(start.copy())
usual = processor.get_mode()
processor.set_mode(usual | int(sys.argv[2]))
opt.step(grad)
processor.set_mode(usual)
assert count_threads() == 7

def prepare():
    w = untouched(start)
    opt = tw.SGD(w, 0.1, 0.9)
    return lambda: opt.step(grad), lambda: assert_same_bits(w, expected)

for _ in range(5):
    until_shared(prepare)
"""


@needs_proc
@each_mode
def test_workers_made_in_another_mode(mode, processor):
    """A thread begins in the mode of the one that makes it."""
    done = run_python("-c", BORN_IN_A_MODE, processor._name, floatmode.MODES[mode])
    assert (done.returncode, done.stderr) == (0, "")


@pytest.fixture(params=[ASKED, WOKEN], ids=["asked", "woken"])
def models(request, monkeypatch):
    """Makes models of this many bytes whose every step is known."""
    monkeypatch.setattr(forking, "SIZES", (request.param // 4 + 3, 16_385, 5, *[16] * 20))
    return forking.Model


def test_the_count_changes_between_steps(models, threads):
    rng = np.random.default_rng(3)
    model = models()
    for count in rng.choice([*COUNTS, 40], 200 if FULL else 40):
        threads(int(count))
        model.step(3)


def test_others_change_the_count_during_steps(models, threads):
    """While two models are stepped at once, of which one has the workers."""
    many = 1000 if FULL else 100
    with ExitStack() as running:
        steppers = [models() for _ in range(2)]
        for model in steppers:
            running.enter_context(forking.stepping(model))
        own = models()
        while own.opt.step_count == 0 or min(each.opt.step_count for each in steppers) < many:
            for count in COUNTS:
                threads(count)
            own.opt.step(own.grads)
        assert own.check() > 0
