"""weight_average: the averages of the weights are the twin's, bit for bit."""

import numpy as np
import pytest

import reference
import thalweg as tw
from bits import DTYPES, as_integers, assert_same_bits, random_bits, sample
from conftest import FULL
from layouts import LAYOUTS, lay
from rules import RULES
from small_models import CASES, values
from twin import Twin

BETAS = [0.0, 0.9, 0.999, 1 - 2**-24 * 1.5]


@pytest.mark.parametrize(("count", "dtype", "grad_dtype"), CASES)
@pytest.mark.parametrize("kernel", RULES)
def test_bits(kernel, count, dtype, grad_dtype, threads, level):
    """With what comes before a step, with arrays left out, and zeroing as well."""
    threads(count)
    rule, params = RULES[kernel], values(dtype, 0)
    limits = {"max_norm": 3.0, "weight_average": 0.9}
    options = {"weight_decay": 0.1}
    twin = Twin(rule, params, dict.fromkeys(params, options), **limits)
    opt = rule.make(params, level, **limits, **options)
    twin.assert_equals(opt, params, "before the first step")
    for t in range(4):
        grads = values(grad_dtype, t + 1)
        kept = {name: g.copy() for name, g in grads.items()}
        if t in (0, 2):
            for name in ("W", "c") if t == 0 else ("big",):
                grads[name] = kept[name] = None
        opt.zero_grads = t == 3
        assert opt.step(grads, scale=0.5)
        assert twin.step(kept, scale=0.5)
        twin.assert_equals(opt, params, f"step {t}")
    assert all(not as_integers(g).any() for g in grads.values())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout(layout, threads, level):
    """Of the param, of the gradient, and of a state that the caller gives."""
    shape = (300, 450)
    ways = [(layout, "C", None), ("C", layout, None), ("C", "C", layout)]
    for kernel, (count, dtype, grad_dtype) in (
        ("classic", CASES[1]),
        ("adagrad_inside", CASES[2]),
        ("adagrad_row_inside", CASES[2]),
    ):
        threads(count)
        rule = RULES[kernel]
        start, g = values(dtype, 1, {"w": shape}), values(grad_dtype, 2, {"w": shape})
        for own, of_grad, of_state in ways[: 2 + (kernel == "classic")]:
            given = {}
            if of_state:
                given["state"] = {"w": lay(of_state, np.zeros(shape, dtype))[1]}
            twin = Twin(rule, start, {"w": {}}, weight_average=0.9)
            (_, w), (_, grad) = lay(own, start["w"]), lay(of_grad, g["w"])
            opt = rule.make({"w": w}, level, weight_average=0.9, **given)
            for _ in range(2):
                assert opt.step({"w": grad})
                twin.step(g)
                twin.assert_equals(opt, {"w": w}, f"{kernel} {own} {of_grad} {of_state}")


@pytest.mark.parametrize("dtype", DTYPES)
def test_any_bits(dtype, level):
    """NaNs, infinities, subnormals, zeros of either sign, and any beta; the first step copies."""
    rng = np.random.default_rng(7)
    for count in range(40 if FULL else 8):
        n = int(rng.integers(1, 6000))
        fill = random_bits if count % 2 else sample
        beta = BETAS[count % 4]
        w, average = fill(rng, n, dtype).copy(), np.zeros(n, dtype)
        opt = tw.SGD(w, 0.0, weight_average=beta)
        opt._use_level(level)
        for t in range(3):
            w[...] = fill(rng, n, dtype)
            assert opt.step(np.zeros(n, dtype))
            reference.average(average, w, t, weight_average=beta)
            assert_same_bits(opt.averages[""], average, f"{beta=} step {t}")


@pytest.mark.parametrize("offset", [0, 4, 12, 60])
def test_every_size(offset, level):
    """Around vectors, lines, and what is averaged together."""
    for n in (*range(1, 70), 1023, 1025, 4095, 4096, 4097, 16383, 16385, 40_000):
        buffer = np.zeros(n * 4 + 128, np.uint8)
        at = -buffer.ctypes.data % 64 + offset
        w = buffer[at : at + 4 * n].view(np.float32)
        w[:] = np.random.default_rng(n).standard_normal(n)
        twin = Twin(RULES["sgd"], {"": w}, {"": {}}, weight_average=0.99)
        opt = RULES["sgd"].make(w, level, weight_average=0.99)
        for t in range(2):
            g = np.random.default_rng(n + t).standard_normal(n).astype(np.float32)
            assert opt.step(g)
            twin.step({"": g})
            twin.assert_equals(opt, {"": w}, f"{n} elements")


@pytest.mark.parametrize("skip", [False, True])
def test_in_a_joint(skip, threads, level):
    """Of one of its optimizers; a step that is skipped leaves the averages."""
    threads(2)
    params, rules = [values(np.float32, 0), values(np.float32, 9)], ["ema", "adagrad_outside"]
    twins = [
        Twin(RULES[rule], w, {name: {} for name in w}, weight_average=beta)
        for rule, w, beta in zip(rules, params, (0.95, None), strict=True)
    ]
    opts = [
        RULES[rule].make(w, level, weight_average=beta)
        for rule, w, beta in zip(rules, params, (0.95, None), strict=True)
    ]
    joint = tw.Joint(a=opts[0], b=opts[1], on_nonfinite="skip")
    for t in range(3):
        grads = [values(np.float32, 2 * t), values(np.float32, 2 * t + 1)]
        if skip and t == 1:
            grads[1]["b"][3] = np.nan
            assert not joint.step({"a": grads[0], "b": grads[1]})
        else:
            assert joint.step({"a": grads[0], "b": grads[1]})
            for twin, g in zip(twins, grads, strict=True):
                twin.step(g)
        for twin, opt, w in zip(twins, opts, params, strict=True):
            twin.skipped_steps = opt.skipped_steps
            twin.assert_equals(opt, w, f"step {t}")
