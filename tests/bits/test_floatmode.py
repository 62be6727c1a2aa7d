"""The formulas hold whatever the thread's floating-point mode, and the mode is left as it was."""

import subprocess
import sys

import numpy as np
import pytest

import floatmode
import thalweg as tw
from bits import DTYPES, as_integers, assert_same_bits
from floatmode import each_mode, operands
from rules import RULES

processor, in_mode = floatmode.processor, floatmode.in_mode

OPTIONS = [{}, {"weight_decay": 0.1, "maximize": True}, {"weight_decay": 0.1, "decoupled": True}]


@each_mode
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.__name__)
def test_no_bit_of_a_step_changes(mode, rule, dtype, level, in_mode):
    for options in OPTIONS:
        for size, grad_dtype, scale in ((1000, dtype, 1.0), (20_000, np.float64, 0.3)):
            w, g, s = operands(dtype, grad_dtype, size)
            context = f"{options}, {size} elements, scale {scale}"

            expected, state = w.copy(), s.copy()
            rule.twin(expected, g, state, 1, **options, scale=scale)
            applied, applied_state = w.copy(), s.copy()
            with in_mode(mode):
                rule.apply([applied], [g], [applied_state], level, **options, scale=scale)
            assert_same_bits(applied, expected, f"param, {context}")
            assert_same_bits(applied_state, state if rule.slot else s, f"state, {context}")

            expected, state = w.copy(), np.zeros_like(w)
            rule.twin(expected, g, state, 0, **options, scale=scale)
            rule.twin(expected, g, state, 1, **options, scale=scale)
            opt = rule.make(w, level, **options)
            with in_mode(mode):
                opt.step(g, scale=scale)
                opt.step(g, scale=scale)
            assert_same_bits(w, expected, f"param, two steps, {context}")


@each_mode
def test_the_mode_would_change_the_bits(mode, in_mode):
    """The twin itself does change: the operands above tell the modes apart."""
    for dtype in DTYPES:
        w, g, v = operands(dtype, dtype, 1000)
        usual, other = (w.copy(), v.copy()), (w.copy(), v.copy())
        RULES["heavy_ball"].twin(usual[0], g, usual[1], 1)
        with in_mode(mode):
            RULES["heavy_ball"].twin(other[0], g, other[1], 1)
        assert (as_integers(usual[0]) != as_integers(other[0])).any()


@each_mode
@pytest.mark.parametrize("initial", [0.1, 0.7, 1e-40])
def test_an_optimizer_made_in_another_mode(mode, initial, in_mode):
    with in_mode(mode):
        opt = tw.Adagrad(np.ones(3, np.float32), initial_accumulator_value=initial)
    assert_same_bits(opt.state[""]["accumulator"], np.full(3, np.float32(initial)), "accumulator")


@each_mode
def test_the_ranges_of_options_are_the_same(mode, in_mode):
    param = np.ones(3, np.float32)
    with in_mode(mode):
        tw.Adagrad(param, eps=1e-40)
        tw.SGD(param.astype(np.float64)).step(np.ones(3), scale=1e-310)
        with pytest.raises(ValueError, match="momentum"):
            tw.SGD(param, momentum=1 + 1e-12)


def test_importing_changes_nothing_global():
    """In a fresh process: subnormals in two threads, rounding, NumPy's errors, warning filters."""
    code = """
import threading, warnings
import numpy as np

def look():
    small, third = np.full(16, 1e-40, np.float32), np.float32(1) / np.float32(3)
    here = [(small * np.float32(1)).tolist(), float(third), 5e-324 * float(small.size) != 0]
    there = []
    thread = threading.Thread(target=lambda: there.append((small + small).tolist()))
    thread.start()
    thread.join()
    return here, there, np.geterr(), list(warnings.filters)

before = look()
import thalweg
thalweg.SGD(np.ones(16, np.float32)).step(np.ones(16, np.float32))
assert look() == before, (before, look())
assert before[0][0][0] != 0
"""
    subprocess.run([sys.executable, "-c", code], check=True)
