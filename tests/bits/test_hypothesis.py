"""Random trees of arrays of any shape, layout and dtype: a step is the twin's for each array."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bits import DTYPES, GRAD_DTYPES, assert_same_bits, sample
from strategies import checked, gradients, levels, options, paths, rules, seeds, trees


@pytest.mark.slow
@checked
@given(st.data(), trees.filter(paths), rules, levels)
def test_a_step_is_the_twins_step_of_each_array(data, tree, rule, level):
    chosen = data.draw(options(rule), label="options")
    arrays_by_name = paths(tree)
    expected = {name: array.copy() for name, array in arrays_by_name.items()}
    states = {name: rule.state(array) for name, array in expected.items()}
    steps = dict.fromkeys(expected, 0)
    opt = rule.make(tree, level, **chosen)
    for _ in range(data.draw(st.integers(1, 3), label="steps")):
        partial = data.draw(st.booleans(), label="partial")
        scale = data.draw(st.sampled_from([1.0, 0.1, 2.0**-10]), label="scale")
        grads, named = data.draw(gradients(tree, partial), label="gradients")
        assert opt.step(grads, scale=scale, partial=partial)
        for name, grad in named.items():
            rule.twin(expected[name], grad, states[name], steps[name], **chosen, scale=scale)
            steps[name] += 1
    for name, array in arrays_by_name.items():
        assert_same_bits(array, expected[name], f"param {name!r}")
        assert opt.state[name]["step"] == steps[name]
        if rule.slot:
            assert_same_bits(opt.state[name][rule.slot], states[name], f"state of {name!r}")


@checked
@given(st.data(), rules, levels, st.integers(0, 3000), st.integers(0, 3000), seeds)
def test_a_step_of_two_arrays_joined_is_the_step_of_each(data, rule, level, n, m, seed):
    chosen = data.draw(options(rule), label="options")
    dtype = data.draw(st.sampled_from(DTYPES), label="dtype")
    grad_dtype = data.draw(st.sampled_from(GRAD_DTYPES), label="dtype of the gradients")
    rng = np.random.default_rng(seed)
    joined = sample(rng, n + m, dtype)
    apart = [joined[:n].copy(), joined[n:].copy()]
    one, two = rule.make(joined, level, **chosen), rule.make(apart, level, **chosen)
    for _ in range(2):
        grad = sample(rng, n + m, grad_dtype)
        one.step(grad)
        two.step([grad[:n], grad[n:]])
    assert_same_bits(joined, np.concatenate(apart), "params")
    if rule.slot:
        states = [two.state[name][rule.slot] for name in "01"]
        assert_same_bits(one.state[""][rule.slot], np.concatenate(states), "states")
