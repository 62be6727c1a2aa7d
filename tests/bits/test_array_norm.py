"""max_array_norm: every array clipped by its own norm, to the twin's bits."""

import numpy as np
import pytest

import thalweg as tw
from refusing import refused
from rules import RULES
from twin import Twin

SHAPES = {"a": (300, 70), "b": (5,), "c": (), "empty": (0, 3), "quiet": (4,)}


def grads(dtype, seed, sparse=False):
    r = np.random.default_rng(seed)
    made = {name: r.standard_normal(shape).astype(dtype) for name, shape in SHAPES.items()}
    made["quiet"] = made["quiet"] * dtype(1e-3)  # below the limit: not clipped
    if sparse:
        rows = r.integers(0, 300, 40)
        made["a"] = tw.RowGrad(rows, r.standard_normal((40, 70)).astype(dtype))
    return made


@pytest.mark.parametrize("threads", [1, 2, 7])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kernel", RULES)
def test_bits(kernel, dtype, threads, level):
    rule = RULES[kernel]
    before = tw.get_num_threads()
    tw.set_num_threads(threads)
    try:
        params = {name: np.ones(shape, dtype) for name, shape in SHAPES.items()}
        limits = {"max_array_norm": 0.5, "max_value": 2.0}
        twin = Twin(rule, params, {key: {} for key in params}, **limits)
        opt = rule.make(params, level, **limits)
        for i in range(4):
            g = grads(dtype, i, sparse=i % 2 == 1)
            assert opt.step(g, scale=0.5) is twin.step(g, scale=0.5)
            twin.assert_equals(opt, params, f"step {i}")
        assert opt.grad_norm is None
    finally:
        tw.set_num_threads(before)


def test_threads_take_part():
    params = {"w": np.ones((2000, 500), np.float32)}
    rule = RULES["adagrad_inside"]
    twin = Twin(rule, params, {"w": {}}, max_array_norm=1.0)
    opt = rule.make(params, tw._core.isa, max_array_norm=1.0)
    g = {"w": np.random.default_rng(0).standard_normal((2000, 500), np.float32)}
    opt.step(g)
    twin.step(g)
    twin.assert_equals(opt, params)


def test_it_is_set_and_let_go_between_steps():
    params = {"w": np.ones(3), "b": np.ones(2)}
    rule = RULES["heavy_ball"]
    twin = Twin(rule, params, {"w": {}, "b": {}})
    opt = rule.make(params, tw._core.isa)
    g = {"w": np.full(3, 5.0), "b": np.full(2, 7.0)}
    for limit in (None, 1.0, None, 2.0):
        opt.max_array_norm = twin.max_array_norm = limit
        opt.step(g)
        twin.step(g)
        twin.assert_equals(opt, params, str(limit))


def test_not_beside_max_norm():
    w = np.ones(2)
    for made in (tw.SGD, tw.Adagrad):
        with refused(ValueError, "max_array_norm", "max_norm", keeps=(w,)):
            made(w, max_norm=1.0, max_array_norm=1.0)
        opt = made(w, max_array_norm=1.0)
        with refused(ValueError, "max_array_norm", "max_norm", keeps=(w, opt)):
            opt.max_norm = 1.0
        opt.max_array_norm = None
        opt.max_norm = 1.0
        with refused(ValueError, "max_array_norm", "max_norm", keeps=(w, opt)):
            opt.max_array_norm = 1.0


@pytest.mark.parametrize("value", [0, -1, float("nan"), 1e-60])
def test_range(value):
    w = np.ones(2, np.float32)
    with refused(ValueError, "max_array_norm", keeps=(w,)):
        tw.SGD(w, max_array_norm=value)


def test_a_norm_that_overflows_is_judged():
    w = {"a": np.ones(2), "b": np.ones(2)}
    g = {"a": np.full(2, 1e200), "b": np.ones(2)}
    opt = tw.SGD(w, max_array_norm=1.0, on_nonfinite="skip")
    assert opt.step(g) is False
    assert opt.skipped_steps == 1
    assert all((x == 1).all() for x in w.values())
    opt.on_nonfinite = "raise"
    with refused(FloatingPointError, "norm", keeps=(w, opt)):
        opt.step(g)


def test_keras_words():
    w = np.ones(2)
    for made in (tw.SGD, tw.Adagrad):
        assert made.like("keras", w, clipnorm=1.0).max_array_norm == 1.0
        assert made.like("keras", w, global_clipnorm=2.0).max_norm == 2.0
        assert made.like("keras", w, clipvalue=3.0).max_value == 3.0
        assert made.like("keras", w, clipvalue=None).max_value is None
        with refused(ValueError, "clipnorm", "global_clipnorm", keeps=(w,)):
            made.like("keras", w, clipnorm=1.0, global_clipnorm=1.0)
        with refused(ValueError, "clipnorm", "max_norm", keeps=(w,)):
            made.like("keras", w, clipnorm=1.0, max_norm=1.0)
        with pytest.raises(TypeError, match="clipnorm"):
            made.like("optax", w, lr=0.1, clipnorm=1.0)


def test_a_state_dict_keeps_it():
    w = np.ones(2)
    one = tw.SGD(w, max_array_norm=0.5)
    other = tw.SGD(np.ones(2), max_norm=0.5)
    other.load_state_dict(one.state_dict(), options="file")
    assert (other.max_norm, other.max_array_norm) == (None, 0.5)
    one.load_state_dict(tw.SGD(w, max_norm=2.0).state_dict(), options="file")
    assert (one.max_norm, one.max_array_norm) == (2.0, None)
    assert "max_array_norm=0.5" in repr(other)
