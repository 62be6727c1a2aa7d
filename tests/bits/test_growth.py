"""A table that grows ends with the bits of one that had all its rows from the start."""

import numpy as np
import pytest

import thalweg as tw
from bits import assert_same_bits
from rules import RULES

FIRST, COLUMNS, STEPS, EVERY = 3, 5, 200, 2
LAST = FIRST + STEPS // EVERY


def final(dtype):
    return np.random.default_rng(0).standard_normal((LAST, COLUMNS)).astype(dtype)


def rows_of(t, height, dtype):
    """Some of the rows that there are at this step, the newest among them."""
    rng = np.random.default_rng(t)
    rows = np.append(rng.integers(0, height, 4), height - 1)
    return tw.RowGrad(rows, rng.standard_normal((5, COLUMNS)).astype(dtype))


def options_of(rule):
    if rule.slot == "accumulator":
        return {"initial_accumulator_value": 0.1, "lr_decay": 0.01}
    return {"weight_decay": 0.01} if rule.kernel == "sgd" else {"weight_decay": 0.01, "lr": 0.05}


@pytest.mark.parametrize("together", [False, True], ids=["alone", "joint"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kernel", RULES)
def test_a_hundred_growths(kernel, dtype, together, level):
    rule, options = RULES[kernel], options_of(RULES[kernel])
    whole, grown = final(dtype), final(dtype)[:FIRST].copy()
    opts = [rule.make({"t": w, "b": np.ones(3)}, level, **options) for w in (whole, grown)]
    params = {"t": grown}
    joints = [tw.Joint(one=opt, max_norm=1.0) for opt in opts] if together else []
    for t in range(STEPS):
        if t % EVERY == 0 and t:
            params["t"] = np.concatenate([params["t"], final(dtype)[len(params["t"])][None]])
            opts[1].replace("t", params["t"])
        grads = {"t": rows_of(t, len(params["t"]), dtype), "b": np.full(3, 0.5)}
        for i, opt in enumerate(opts):
            assert joints[i].step({"one": grads}) if together else opt.step(grads)
    params["t"] = np.concatenate([params["t"], final(dtype)[len(params["t"]) :]])
    opts[1].replace("t", params["t"])
    assert len(params["t"]) == LAST
    assert opts[1].state["t"]["step"] == STEPS
    assert_same_bits(params["t"], whole)
    assert_same_bits(opts[1].params["b"], opts[0].params["b"])
    if rule.slot:
        assert_same_bits(opts[1].state["t"][rule.slot], opts[0].state["t"][rule.slot])


@pytest.mark.parametrize("kernel", ["adagrad_inside", "adagrad_row_inside", "classic", "sgd"])
def test_dense_steps_between(kernel, level):
    """Rows that both have go on as before; a shorter table and a longer one."""
    rule = RULES[kernel]
    rng = np.random.default_rng(3)
    w = rng.standard_normal((6, 4))
    opt = rule.make({"t": w}, level)
    kept = w[:4].copy()
    other = rule.make({"t": kept}, level)
    for height in (6, 4, 9):
        w = np.concatenate([w[:4], np.ones((max(height - 4, 0), 4))])
        opt.replace("t", w)
        for _ in range(3):
            g = rng.standard_normal((height, 4))
            opt.step({"t": g})
            other.step({"t": g[:4].copy()})
        assert_same_bits(w[:4], kept)
        if rule.slot:
            assert_same_bits(opt.state["t"][rule.slot][:4], other.state["t"][rule.slot])


@pytest.mark.parametrize("order", ["C", "F"])
def test_layouts(order, level):
    """Another order, a view: the new array's own layout."""
    rule = RULES["adagrad_inside"]
    w = np.random.default_rng(0).standard_normal((5, 4))
    plain, other = w.copy(), np.array(w, order="F")
    opts = [rule.make(x, level) for x in (plain, other)]
    for opt in opts:
        opt.step(w)
    longer = np.concatenate([plain, np.ones((2, 4))])
    kinds = {"C": np.ascontiguousarray(longer), "F": np.zeros((7, 8))[:, ::2]}
    kinds["F"][...] = longer
    opts[0].replace("", longer)
    opts[1].replace("", kinds[order])
    for opt in opts:
        opt.step(np.ones((7, 4)))
    assert_same_bits(np.array(kinds[order]), longer)
    assert_same_bits(np.array(opts[1].state[""]["accumulator"]), opts[0].state[""]["accumulator"])


@pytest.mark.parametrize("threads", [1, 2, 7])
def test_a_table_that_becomes_large(threads, level):
    """More pieces and more blocks of the norm than it had when it was made."""
    before = tw.get_num_threads()
    tw.set_num_threads(threads)
    try:
        rng = np.random.default_rng(0)
        small, large = rng.standard_normal((3, 64)), rng.standard_normal((3000, 64))
        opt = RULES["heavy_ball"].make(small, level, max_norm=1.0)
        opt.replace("", large)
        other = large.copy()
        fresh = RULES["heavy_ball"].make(other, level, max_norm=1.0)
        for _ in range(2):
            grad = rng.standard_normal((3000, 64))
            assert opt.step(grad)
            assert fresh.step(grad)
        assert opt.grad_norm == fresh.grad_norm
        assert_same_bits(large, other)
    finally:
        tw.set_num_threads(before)
