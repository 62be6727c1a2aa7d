"""zero_grads: the bits of a step without it, and afterwards not one bit left of its gradients."""

import numpy as np
import pytest

import thalweg as tw
from bits import as_integers
from layouts import LAYOUTS, assert_nothing_around_it_changed, lay
from rules import RULES
from small_models import CASES, SHAPES, values
from twin import Twin


def assert_zeroed(grad, context=""):
    """Zeros of positive sign."""
    assert not as_integers(grad).any(), context


@pytest.mark.parametrize(("count", "dtype", "grad_dtype"), CASES)
@pytest.mark.parametrize("kernel", RULES)
def test_bits_and_zeros(kernel, count, dtype, grad_dtype, threads, level):
    threads(count)
    rule, params = RULES[kernel], values(dtype, 0)
    twin = Twin(rule, params, {name: {} for name in params}, max_norm=3.0, max_value=2.0)
    opt = rule.make(params, level, max_norm=3.0, max_value=2.0, zero_grads=True)
    for t in range(3):
        grads = values(grad_dtype, t + 1)
        kept = {name: g.copy() for name, g in grads.items()}
        if t == 1:
            twin.max_norm = twin.max_value = opt.max_norm = opt.max_value = None
            grads["W"] = kept["W"] = None
        assert opt.step(grads, scale=0.5)
        assert twin.step(kept, scale=0.5)
        twin.assert_equals(opt, params, f"step {t}")
        for name, g in grads.items():
            assert g is None or assert_zeroed(g, name) is None


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout(layout, threads, level):
    """Of the gradient and of the param; what lies around the gradient stays."""
    shape = (300, 450)
    for kernel in ("classic", "adagrad_row_inside"):
        for count, dtype, grad_dtype in CASES[1:3]:
            threads(count)
            rule = RULES[kernel]
            start, g = values(dtype, 1, {"w": shape}), values(grad_dtype, 2, {"w": shape})
            for own in ("C", layout):
                twin = Twin(rule, start, {"w": {}})
                base, grad = lay(layout, g["w"])
                _, w = lay(own, start["w"])
                opt = rule.make({"w": w}, level, zero_grads=True)
                assert opt.step({"w": grad})
                twin.step(g)
                twin.assert_equals(opt, {"w": w}, f"{kernel} {own}")
                assert_zeroed(grad, f"{kernel} {own}")
                assert_nothing_around_it_changed(layout, base, grad)


@pytest.mark.parametrize("limits", [{}, {"max_norm": 1.0}])
@pytest.mark.parametrize("kernel", ["sgd", "ema", "adagrad_inside", "adagrad_row_outside"])
def test_rows(kernel, limits, threads, level):
    """Of a RowGrad its values are zeroed, those of rows named twice too; nothing beside them."""
    rng = np.random.default_rng(4)
    threads(1 if limits else 7)
    table, count = (900, 70), 5000
    rule, params = RULES[kernel], values(np.float32, 3, {"e": table, "b": (5,)})
    twin = Twin(rule, params, {"e": {}, "b": {}}, **limits)
    opt = rule.make(params, level, zero_grads=True, **limits)
    wide = rng.standard_normal((count, 72)).astype(np.float32)
    rows, kept = rng.integers(0, 900, count), wide.copy()
    grads = {"e": tw.RowGrad(rows, wide[:, 1:-1]), "b": np.ones(5, np.float32)}
    assert opt.step(grads)
    twin.step({"e": tw.RowGrad(rows, kept[:, 1:-1]), "b": np.ones(5, np.float32)})
    twin.assert_equals(opt, params)
    assert_zeroed(wide[:, 1:-1])
    assert_zeroed(grads["b"])
    assert (wide[:, [0, -1]] == kept[:, [0, -1]]).all()


@pytest.mark.parametrize("bound", [False, True])
def test_a_loop_that_accumulates(bound, threads):
    """The gradients of three batches are added into one buffer, and a step begins the next."""
    threads(2)
    rule = RULES["heavy_ball"]
    params = values(np.float32, 0)
    buffers = {name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()}
    twin = Twin(rule, params, {name: {} for name in params})
    opt = tw.SGD(params, 0.1, 0.9, zero_grads=True, grads=buffers if bound else None)
    for t in range(3):
        total = {name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()}
        for batch in range(3):
            for name, g in values(np.float32, 10 * t + batch).items():
                buffers[name] += g
                total[name] += g
        assert opt.step() if bound else opt.step(buffers)
        twin.step(total)
        twin.assert_equals(opt, params, f"step {t}")
