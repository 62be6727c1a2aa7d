"""Rows that a gradient names more than once are summed once where a norm is taken, too."""

import numpy as np
import pytest

import thalweg as tw
from bits import assert_same_bits
from rules import RULES


def batch(t, distinct=False):
    rng = np.random.default_rng(t)
    rows = rng.permutation(40)[:9] if distinct else rng.integers(0, 40, 60)
    return tw.RowGrad(rows, rng.standard_normal((len(rows), 700)))


@pytest.mark.parametrize("kernel", RULES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_steps_of_all_kinds_in_turn(kernel, dtype, level):
    """Measured, not measured, each row once, dense: beside sums made by hand."""
    rule = RULES[kernel]
    w, other = np.ones((40, 700), dtype), np.ones((40, 700), dtype)
    opt, plain = rule.make(w, level), rule.make(other, level)
    for t, limit in enumerate([1e9, None, 1e9, 1e9, None, 1e9, None, 0.5]):
        grad = np.ones((40, 700)) if t == 4 else batch(t, distinct=t == 3)
        opt.max_norm = plain.max_norm = limit
        assert opt.step(grad)
        if isinstance(grad, tw.RowGrad):
            rows = np.unique(grad.rows)
            values = grad.values.astype(dtype)
            sums = []
            for row in rows:
                total = None
                for value in values[grad.rows == row]:
                    total = value.copy() if total is None else total + value
                sums.append(total)
            grad = tw.RowGrad(rows, np.array(sums))
        assert plain.step(grad)
        assert_same_bits(w, other, f"step {t}")
        if limit is not None:
            assert opt.grad_norm == plain.grad_norm
