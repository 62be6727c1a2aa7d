"""Where the elements lie changes no bit of them, and no byte between them is touched."""

import itertools

import numpy as np
import pytest

import thalweg as tw
from bits import DTYPES, GRAD_DTYPES, assert_same_bits, random_bits, sample, sample_state
from layouts import LAYOUTS, assert_nothing_around_it_changed, lay
from rules import RULES
from thalweg import _core

each_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.__name__)

# Small, longer than a tile in either direction, larger than one, and axes that merge in part.
SHAPES = [(7, 5), (3, 1500), (1500, 3), (70, 90), (6, 1, 7, 5)]
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


@pytest.mark.parametrize(
    "name", ["sgd", "heavy_ball_nesterov", "adagrad_inside", "adagrad_row_inside"]
)
@pytest.mark.parametrize("options", [{}, {"weight_decay": 0.1, "decoupled": True}], ids=str)
@each_shape
@each_dtype
def test_layouts_of_param_gradient_and_state(name, options, shape, dtype):
    rule, rng = RULES[name], np.random.default_rng(2)
    param, grad = sample(rng, shape, dtype), sample(rng, shape, dtype)
    state = sample_state(rng, rule.state(param).shape, dtype, rule.slot)
    expected, expected_state = param.copy(), state.copy()
    rule.twin(expected, grad, expected_state, 1, **options)
    states = itertools.cycle([*LAYOUTS, "C"])
    for of_param, of_grad in itertools.product(LAYOUTS, repeat=2):
        g, of_state = lay(of_grad, grad)[1], next(states)
        for level in _core.isa_supported:
            context = f"param {of_param}, gradient {of_grad}, state {of_state}, {level}"
            base, w = lay(of_param, param)
            state_base, s = lay(of_state, state)
            rule.apply([w], [g], [s], level, **options)
            assert_same_bits(w, expected, f"param; {context}")
            assert_same_bits(s, expected_state, f"state; {context}")
            assert_nothing_around_it_changed(of_param, base, w)
            assert_nothing_around_it_changed(of_state, state_base, s)


@pytest.mark.parametrize("name", ["sgd", "classic", "adagrad_outside", "adagrad_row_outside"])
@each_shape
@each_dtype
def test_an_optimizer_takes_a_gradient_of_another_layout_each_step(name, shape, dtype, level):
    rule, rng = RULES[name], np.random.default_rng(3)
    start = sample(rng, shape, dtype)
    kinds = list(itertools.product(GRAD_DTYPES, LAYOUTS))
    grads = [sample(rng, shape, grad_dtype) for grad_dtype, _ in kinds]
    expected, state = start.copy(), rule.state(start)
    for t, grad in enumerate(grads):
        rule.twin(expected, grad, state, t)
    for of_param in LAYOUTS:
        base, w = lay(of_param, start)
        opt = rule.make({"w": w}, level)
        for (_, of_grad), grad in zip(kinds, grads, strict=True):
            opt.step({"w": lay(of_grad, grad)[1]})
        assert_same_bits(w, expected, f"param {of_param}")
        if rule.slot:
            assert_same_bits(opt.state["w"][rule.slot], state, f"state of {of_param}")
        assert_nothing_around_it_changed(of_param, base, w)


@each_shape
@each_dtype
def test_gradients_whose_elements_overlap(shape, dtype, level):
    rule, rng = RULES["heavy_ball"], np.random.default_rng(4)
    start, whole = sample(rng, shape, dtype), sample(rng, shape, dtype)
    run = sample(rng, sum(shape), dtype)
    for grad in (
        np.broadcast_to(whole[(0,) * len(shape)], shape),
        np.broadcast_to(whole[:1], shape),
        np.broadcast_to(whole[..., :1], shape),
        np.lib.stride_tricks.as_strided(run, shape, [run.itemsize] * len(shape), writeable=False),
    ):
        expected, velocity = start.copy(), np.zeros_like(start)
        rule.twin(expected, grad, velocity, 0)
        for of_param in LAYOUTS:
            w = lay(of_param, start)[1]
            rule.make(w, level).step(grad)
            assert_same_bits(w, expected, f"param {of_param}, gradient strides {grad.strides}")


def test_param_gradient_and_state_interleaved_in_one_buffer(level):
    rule, rng = RULES["heavy_ball"], np.random.default_rng(5)
    buffer = sample(rng, 3 * 2000, np.float32)
    expected = buffer.copy()
    rule.twin(expected[0::3], expected[1::3], expected[2::3], 1)
    rule.apply([buffer[0::3]], [buffer[1::3]], [buffer[2::3]], level)
    assert_same_bits(buffer, expected, "buffer")


@each_rule
@each_dtype
def test_every_float16_gradient(rule, dtype, level):
    grad = np.arange(2**16, dtype=np.uint16).view(np.float16)
    rng = np.random.default_rng(6)
    for start in (np.zeros(grad.shape, dtype), sample(rng, grad.shape, dtype)):
        for scale in (1.0, 2.0**-20):
            w, s = start.copy(), np.zeros_like(start)
            expected, state = w.copy(), s.copy()
            rule.twin(expected, grad, state, 1, scale=scale)
            rule.apply([w], [grad], [s], level, scale=scale)
            assert_same_bits(w, expected, f"param, scale {scale}")
            assert_same_bits(s, state, f"state, scale {scale}")


@each_rule
def test_float64_gradients_between_two_float32_numbers(rule, level):
    rng = np.random.default_rng(7)
    with np.errstate(invalid="ignore", over="ignore"):
        below = random_bits(rng, 20_000, np.float32)
        above = np.nextafter(below, np.float32(np.inf))
        middle = below.astype(np.float64) / 2 + above.astype(np.float64) / 2
    grad = np.concatenate([middle, np.nextafter(middle, 0), np.nextafter(middle, np.inf)])
    grad = np.concatenate([grad, random_bits(rng, 20_000, np.float64)])
    w, s = np.zeros((2, grad.size), np.float32)
    expected, state = w.copy(), s.copy()
    rule.twin(expected, grad, state, 1)
    rule.apply([w], [grad], [s], level)
    assert_same_bits(w, expected, "param")
    assert_same_bits(s, state, "state")


class Plain(np.ndarray):
    """A subclass that changes nothing."""


@each_rule
@each_dtype
def test_subclasses_and_memmaps(rule, dtype, level, tmp_path):
    rng = np.random.default_rng(8)
    start, grad = sample(rng, (40, 30), dtype), sample(rng, (40, 30), dtype)
    mapped = np.memmap(tmp_path / "param", dtype, "w+", shape=start.shape)
    mapped[...] = start
    mapped.flush()
    mapped = np.memmap(tmp_path / "param", dtype, "r+", shape=start.shape)
    grad.tofile(tmp_path / "grad")
    mapped_grad = np.memmap(tmp_path / "grad", dtype, "r", shape=start.shape)
    expected, state = start.copy(), rule.state(start)
    rule.twin(expected, grad, state, 0)
    for w, g in ((mapped, mapped_grad), (start.copy().view(Plain), grad.view(Plain))):
        opt = rule.make(w, level)
        opt.step(g)
        assert_same_bits(np.asarray(w), expected, f"param of {type(w).__name__}")
        assert type(opt.state[""].get(rule.slot, state)) is np.ndarray
    mapped.flush()
    assert_same_bits(np.fromfile(tmp_path / "param", dtype).reshape(start.shape), expected, "file")


@each_rule
@each_dtype
def test_arrays_without_dimensions(rule, dtype, level):
    numbers = [0.3, np.float16(0.3), np.float32(0.3), np.float64(0.3), -0.0, np.inf, 1e300]
    for number in (*numbers, *map(np.array, numbers), np.broadcast_to(0.3, ())):
        w, expected, state = np.array(2.0, dtype), np.array(2.0, dtype), np.zeros((), dtype)
        opt = rule.make(w, level)
        for t in range(2):
            opt.step(number)
            rule.twin(expected, number, state, t)
        assert_same_bits(w, expected, f"param, gradient {number!r}")


@each_rule
@each_dtype
@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 3), (2, 0, 3)], ids=str)
def test_empty_arrays(rule, dtype, shape, level):
    for grad_dtype in GRAD_DTYPES:
        beside = np.ones(3, dtype)
        opt = rule.make([np.empty(shape, dtype), beside], level)
        assert opt.step([np.empty(shape, grad_dtype), np.ones(3, grad_dtype)])
        assert [opt.state[name]["step"] for name in "01"] == [1, 1]
        assert (beside < 1).all()
    empty = np.empty(shape, dtype)
    rule.apply([empty], [empty.copy()], [rule.state(empty)], level)
    rule.make(np.empty(shape, dtype), level).step(np.broadcast_to(dtype(1), shape))


def test_gradients_may_be_read_only_and_may_overlap_each_other(level):
    grad = np.arange(20, dtype=np.float32)
    grad.flags.writeable = False
    params = [np.ones(12, np.float32), np.ones(15, np.float32)]
    opt = tw.SGD(params, lr=0.5)
    opt._use_level(level)
    opt.step([grad[:12], grad[5:]])
    assert_same_bits(params[0], 1 - np.float32(0.5) * grad[:12], "params[0]")
    assert_same_bits(params[1], 1 - np.float32(0.5) * grad[5:], "params[1]")
