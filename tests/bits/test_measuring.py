"""max_norm=math.inf: the norm is measured, and nothing is ever clipped."""

import math
import pickle

import numpy as np
import pytest

import thalweg as tw
from bits import assert_same_bits
from rules import RULES
from twin import Twin

INF = [math.inf, np.inf, np.float32(np.inf)]


@pytest.mark.parametrize("kernel", RULES)
@pytest.mark.parametrize("max_norm", INF, ids=["math", "float", "float32"])
def test_the_norm_is_measured_and_the_bits_stay(kernel, max_norm, level):
    rng = np.random.default_rng(0)
    start = {"a": rng.standard_normal((3, 5)), "b": rng.standard_normal(7).astype(np.float32)}
    params, plain = ({k: w.copy() for k, w in start.items()} for _ in range(2))
    rule = RULES[kernel]
    twin = Twin(rule, start, {"a": {}, "b": {}}, max_norm=max_norm)
    opt, without = rule.make(params, level, max_norm=max_norm), rule.make(plain, level)
    for _ in range(3):
        grads = {k: 1e6 * rng.standard_normal(w.shape) for k, w in start.items()}
        assert opt.step(grads) is without.step(grads) is twin.step(grads) is True
        twin.assert_equals(opt, params, kernel)
    for name in start:
        assert_same_bits(params[name], plain[name])
    assert opt.grad_norm > 1e6
    assert opt.max_norm == math.inf


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e200])
def test_a_norm_that_is_no_number_clips_nothing(bad):
    w, plain, g = np.ones(3), np.ones(3), np.array([bad, 1.0, 1.0])
    opt = tw.SGD(w, 0.5, max_norm=math.inf)
    assert opt.step(g)
    assert tw.SGD(plain, 0.5).step(g)
    assert_same_bits(w, plain)
    assert not math.isfinite(opt.grad_norm)


def test_it_can_be_set_copied_and_saved(tmp_path):
    def made(**limits):
        return tw.SGD({"w": np.ones(2)}, 0.5, **limits)

    opt = made()
    opt.max_norm = math.inf
    opt.step({"w": np.array([3.0, 4.0])})
    assert opt.grad_norm == 5
    assert pickle.loads(pickle.dumps(opt)).max_norm == math.inf
    assert "max_norm=inf" in repr(opt)
    tw.save_checkpoint(tmp_path / "a.npz", opt)
    other, third = made(), made(max_norm=1.0)
    tw.load_checkpoint(tmp_path / "a.npz", other, options="file")
    third.load_state_dict(opt.state_dict(), options="file")
    assert other.max_norm == third.max_norm == math.inf
    opt.max_norm = None
    assert opt.step({"w": np.ones(2)})
    assert opt.grad_norm == 5


@pytest.mark.parametrize("value", [-math.inf, math.nan, 0.0])
def test_what_is_no_norm(value):
    with pytest.raises(ValueError, match="max_norm: expected a number > 0, or None, received"):
        tw.SGD(np.ones(2), max_norm=value)
    with pytest.raises(ValueError, match="max_value: expected a finite number > 0, or None"):
        tw.SGD(np.ones(2), max_value=math.inf)


def test_the_functions_take_it():
    w, norm = np.ones(2), np.zeros(1)
    assert tw.sgd_(w, np.array([3.0, 4.0]), lr=1.0, max_norm=math.inf, norm=norm)
    assert norm == 5
    assert (w == [-2, -3]).all()
