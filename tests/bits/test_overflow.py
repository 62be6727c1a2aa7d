"""Adagrad's squares, their row means and the norm beyond the dtype's range: judged, not kept."""

import itertools
import re

import numpy as np
import pytest

import reference
import thalweg as tw
from bits import assert_same_bits
from refusing import everything
from rules import RULES
from twin import Twin

ADAGRADS = [name for name, rule in RULES.items() if rule.slot == "accumulator"]
ELEMENT = [name for name in ADAGRADS if "row" not in name]
ROW = [name for name in ADAGRADS if "row" in name]


def edge(dtype):
    """The largest number whose square is finite, and the next one, whose square is not."""
    x = np.sqrt(np.finfo(dtype).max).astype(dtype)
    with np.errstate(over="ignore"):
        while np.isfinite(x * x):
            x = np.nextafter(x, dtype(np.inf))
        while not np.isfinite(x * x):
            x = np.nextafter(x, dtype(0))
    return x, np.nextafter(x, dtype(np.inf))


def is_left_out(rule, level, param, grad, scale=1.0, **limits):
    """One step; whatever happens must be what the twin says, and a step left out has no trace."""
    name, w = "", np.array(param)
    twin = Twin(rule, {name: w}, {name: {}}, on_nonfinite="skip", **limits)
    opt = rule.make(w, level, on_nonfinite="skip", **limits)
    before = everything(opt)
    applied = opt.step(grad, scale=scale)
    assert applied == twin.step({name: grad}, scale=scale)
    twin.assert_equals(opt, {name: w}, f"{rule.kernel} {limits}")
    assert applied or everything(opt) == before
    return not applied


@pytest.mark.parametrize("kernel", ELEMENT)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_edge_to_the_last_bit(kernel, dtype, level):
    below, above = edge(dtype)
    for size, at in [(1, 0), (7, 6), (2049, 2048), (40_000, 16_384)]:
        w, g = np.ones(size, dtype), np.ones(size, dtype)
        for sign in (1, -1):
            g[at] = sign * below
            assert not is_left_out(RULES[kernel], level, w, g)
            g[at] = sign * above
            assert is_left_out(RULES[kernel], level, w, g)


@pytest.mark.parametrize("kernel", ELEMENT)
def test_judged_after_scale_and_both_clips(kernel, level):
    def left_out(g, **how):
        return is_left_out(RULES[kernel], level, np.ones(2, np.float32), np.array(g, "f4"), **how)

    assert left_out([3e19, 1])
    assert left_out([3e18, 1], scale=10.0)
    assert not left_out([3e19, 1], scale=0.1)
    assert not left_out([3e19, 1], max_value=1e19)
    assert left_out([3e19, 1], max_value=2e19)
    assert not left_out([3e19, 1], max_norm=1.0)
    assert not left_out([3e19, 1], max_norm=1e19)
    assert left_out([3e19, 1], max_norm=2e19)
    assert left_out([3e19, 1], max_norm=np.inf)
    assert left_out([3e38, 3e38], max_value=2e19, max_norm=1e30)
    assert not left_out([3e38, 3e38], max_value=1e19, max_norm=1e30)
    assert left_out([3e38, 1], scale=1e-19)
    assert not left_out([1e19] * 2)  # the sum of the squares is out of range, neither square is


@pytest.mark.parametrize("kernel", ROW)
def test_by_row_the_mean_is_judged(kernel, level):
    rule = RULES[kernel]
    for shape in [(3, 4), (2, 5000), (5, 2, 3), (4,), ()]:
        w, g = np.ones(shape, np.float32), np.ones(shape, np.float32)
        size = int(np.prod(shape[1:]))
        g[(0,) * len(shape)] = 1.8e19 * np.sqrt(size)  # its own square is not finite
        assert not is_left_out(rule, level, w, g)
        g[(-1,) * len(shape)] = 1.9e19 * np.sqrt(size)
        assert is_left_out(rule, level, w, g)
        assert not is_left_out(rule, level, w, g, max_norm=1.0)


def row_grad(rows, values):
    return tw.RowGrad(np.array(rows, np.int64), values)


@pytest.mark.parametrize("kernel", ADAGRADS)
def test_rows_are_judged_once_summed(kernel, level):
    rule, w = RULES[kernel], np.ones((6, 3), np.float32)
    half = np.full((2, 3), 1e19, np.float32)
    assert not is_left_out(rule, level, w, row_grad([4, 1], half))
    assert is_left_out(rule, level, w, row_grad([4, 4], half))
    assert not is_left_out(rule, level, w, row_grad([4, 4], half), scale=0.5)
    assert not is_left_out(rule, level, w, row_grad([], half[:0]))


@pytest.mark.parametrize("kernel", ELEMENT)
def test_any_layout_and_dtype_of_gradient(kernel, level):
    w = np.ones((33, 70), np.float32)
    g = np.ones(w.shape)
    g[20, 41] = 1e20
    wide = np.ones((66, 70), np.float32)
    wide[::2] = g
    for given in [g.astype("f4"), g, np.asfortranarray(g), wide[::2], g.astype("f4")[::-1][::-1]]:
        assert is_left_out(RULES[kernel], level, w, given)
    assert not is_left_out(RULES[kernel], level, np.ones(w.shape), g)
    assert not is_left_out(RULES[kernel], level, w, np.full(w.shape, 65504, np.float16))


@pytest.mark.parametrize("kernel", RULES)
@pytest.mark.parametrize("max_norm", [1.0, np.inf])
def test_a_norm_that_overflows(kernel, max_norm, level):
    """Under every rule; without a max_norm it is never asked for."""
    rule, w, g = RULES[kernel], np.ones((1, 200)), np.full((1, 200), 9e152)
    assert not is_left_out(rule, level, w, g, max_norm=max_norm)
    g[:] = 1e154  # finite squares; their sum is not
    assert is_left_out(rule, level, w, g, max_norm=max_norm)
    assert not is_left_out(rule, level, w, g, max_norm=max_norm, max_value=1.0)
    assert not is_left_out(rule, level, w, g / 1e10, scale=1e-10, max_norm=max_norm)
    if rule.slot != "accumulator" or "row" not in kernel:
        assert not is_left_out(rule, level, w, g)


def test_sgd_squares_nothing(level):
    for kernel in set(RULES) - set(ADAGRADS):
        assert not is_left_out(RULES[kernel], level, np.ones(2), np.array([1e200, 1.0]))


def test_the_weight_goes_on_moving():
    w = np.ones(2, np.float32)
    opt = tw.Adagrad(w, lr=0.1, on_nonfinite="skip")
    assert not opt.step(np.array([3e19, 1], np.float32))
    for _ in range(3):
        assert opt.step(np.ones(2, np.float32))
    assert (w < 0.8).all()
    assert (opt.step_count, opt.skipped_steps) == (3, 1)


def test_propagate_does_what_numpy_does(level):
    for kernel, max_norm in itertools.product(ADAGRADS, [None, 2e19, np.inf]):
        w, g = np.ones((2, 3), np.float32), np.full((2, 3), 1.0, np.float32)
        g[1, 2] = 1e30
        twin = Twin(RULES[kernel], {"": w}, {"": {}}, max_norm=max_norm)
        opt = RULES[kernel].make(w, level, max_norm=max_norm)
        for _ in range(2):
            assert opt.step(g) is twin.step({"": g}) is True
        twin.assert_equals(opt, {"": w}, kernel)


def test_the_message_of_an_overflow():
    params = {"W": np.ones((3, 5), np.float32), "b": np.ones(4, np.float32), "x": np.ones(2)}
    g = {"W": np.ones((3, 5)), "b": np.ones(4), "x": np.full(2, 1e30)}
    g["W"][1, 2:4], g["b"][3] = 2e19, -2e19
    opt = tw.Adagrad(params, on_nonfinite="raise")
    before = everything(opt)
    with pytest.raises(FloatingPointError) as caught:
        opt.step(g)
    said = str(caught.value)
    assert re.findall(r'grads\["(.)"\]: expected elements whose square is (.*?)(?:;|$)', said) == [
        ("W", "finite in float32, received 2 that overflow, the first at [1, 2]"),
        ("b", "finite in float32, received 1 that overflow, the first at [3]"),
    ]
    assert "max_norm or max_value clips them" in said
    assert "nothing has changed" in said
    assert everything(opt) == before
    opt.max_value = 1e19  # the cure
    assert opt.step(g)


@pytest.mark.parametrize("at", [0, 2047, 2499])
def test_each_is_counted_once(at, level):
    """Of an array of more than one tile, as an array and as one row of a table."""
    g = np.ones((1, 2500), np.float32)
    g[0, at] = 1e30
    for param, grad, place in [(g[0], g[0], f"[{at}]"), (g, row_grad([0], g), f"[0, {at}]")]:
        opt = RULES["adagrad_inside"].make(np.ones_like(param), level, on_nonfinite="raise")
        words = re.escape(f"received 1 that overflow, the first at {place}")
        with pytest.raises(FloatingPointError, match=words):
            opt.step(grad)


def test_the_message_names_the_row():
    w = np.ones((6, 4, 2), np.float32)
    opt = tw.Adagrad(w, accumulator="row", on_nonfinite="raise")
    values = np.ones((2, 4, 2), np.float32)
    values[0, 3] = 1e20
    words = r"^grads: expected rows whose mean square is finite .* 1 that overflow, the first at "
    with pytest.raises(FloatingPointError, match=words + r"\[5, 0, 0\]"):
        opt.step(row_grad([5, 0], values))
    dense = np.ones_like(w)
    dense[3] = 1e20
    with pytest.raises(FloatingPointError, match=words + r"\[3, 0, 0\]"):
        opt.step(dense)


def test_the_message_of_a_norm():
    w, g = np.ones(2), np.array([1e200, 1e200])
    for opt in (tw.SGD(w, max_norm=1.0, on_nonfinite="raise"), tw.Adagrad(w, max_norm=1.0)):
        opt.on_nonfinite = "raise"
        before = everything(opt)
        with pytest.raises(
            FloatingPointError, match=r"^grads: expected a global norm that float64"
        ):
            opt.step(g)
        assert everything(opt) == before
        opt.max_value = 1e100  # the cure
        assert opt.step(g)


def test_the_functions_judge_likewise():
    w, s, g = np.ones(3, "f4"), np.zeros(3, "f4"), np.array([1, 3e19, 1], "f4")
    how = {"lr": 0.1, "on_nonfinite": "skip"}
    assert tw.adagrad_(w, g, s, **how) is False
    assert tw.adagrad_(w, g[::-1], s, **how) is False
    assert (w.sum(), s.sum()) == (3, 0)
    with pytest.raises(FloatingPointError, match=r"^grad: .* 1 that overflow, the first at \[1\]"):
        tw.adagrad_(w, g, s, lr=0.1, on_nonfinite="raise")
    assert tw.adagrad_(w, g, s, max_value=1e19, **how) is True
    table, values = np.ones((4, 2), "f4"), np.full((2, 2), 1.2e19, "f4")
    for mem in (np.zeros((4, 2), "f4"), np.zeros(4, "f4")):
        assert tw.adagrad_rows_(table, np.array([1, 1]), values, mem, **how) is False
        assert tw.adagrad_rows_(table, np.array([1, 2]), values, mem, **how) is True
    norm = np.zeros(1)
    big = np.full(3, 1e200)
    assert tw.sgd_(np.ones(3), big, norm=norm, **how) is False
    assert norm == 0
    assert tw.sgd_(np.ones(3), big, **how) is True


def test_frozen_arrays_and_none_are_not_judged():
    big, one = np.full(2, 1e200), np.ones(2)
    groups = [{"params": [np.ones(2), np.ones(2)]}, {"params": [np.ones(2)], "frozen": True}]
    opt = tw.Adagrad(groups, on_nonfinite="raise")
    assert opt.step([[one, None], [big]])
    opt.param_groups[1]["frozen"] = False
    with pytest.raises(FloatingPointError, match=r'grads\["1\.0"\]'):
        opt.step([[one, None], [big]])
    with pytest.raises(FloatingPointError, match=r'^grads\["0\.1"\][^;]*; max_norm'):
        opt.step([[one, big], [None]])  # what overflowed in an earlier step is not remembered
    with pytest.raises(
        FloatingPointError, match=r'^grads\["0\.1"\]: expected finite elements[^;]*;'
    ):
        opt.step([[one, big * np.inf], [None]])


@pytest.mark.parametrize("threads", [1, 3])
def test_with_threads(threads):
    before = tw.get_num_threads()
    tw.set_num_threads(threads)
    try:
        w, g = np.ones((40, 10_000), np.float32), np.ones((40, 10_000), np.float32)
        for rule in ({}, {"accumulator": "row"}):
            opt = tw.Adagrad(w, on_nonfinite="skip", **rule)
            g[39] = 1e20
            assert opt.step(g) is False
            g[39] = 1
            assert opt.step(g) is True
    finally:
        tw.set_num_threads(before)


def test_the_twin_finds_what_numpy_finds():
    g = np.array([[3e19, 1], [1e19, 2e19]], np.float32)
    with np.errstate(over="ignore"):
        assert (reference.overflown(g, "f4") == np.isinf(g * g)).all()
    assert reference.overflown(g, "f4", per="row").tolist() == [True, False]
    assert_same_bits(reference.clip_factor(np.inf, np.float64(np.nan)), np.float64(1))
