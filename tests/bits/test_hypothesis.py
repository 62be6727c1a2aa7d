"""Random trees of arrays of any shape, layout and dtype: a step is the twin's for each array."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bits import DTYPES, GRAD_DTYPES, assert_same_bits, sample
from conftest import FULL
from rules import RULES
from thalweg import _core

checked = settings(
    max_examples=3000 if FULL else 150, deadline=None, derandomize=not FULL, database=None
)

KEYS = st.sampled_from(["W", "b", "layer 1", "ü", 0, 7])
seeds = st.integers(0, 2**32 - 1)
levels = st.sampled_from(_core.isa_supported)
rules = st.sampled_from(list(RULES.values()))
shapes = st.one_of(
    st.lists(st.integers(0, 6), max_size=4),
    st.lists(st.integers(1, 60), min_size=1, max_size=2),
    st.integers(1000, 20_000).map(lambda n: [n]),
).map(tuple)


@st.composite
def arrays(draw, shape, dtypes):
    """Any order and direction of axes, any gaps, any alignment."""
    dtype = np.dtype(draw(st.sampled_from(dtypes)))
    ndim = len(shape)
    steps = draw(st.lists(st.sampled_from([1, 2, 3, -1, -2]), min_size=ndim, max_size=ndim))
    order = draw(st.permutations(range(ndim)))
    offset = draw(st.integers(0, 15))
    whole = [shape[axis] * abs(steps[axis]) for axis in order]
    buffer = np.zeros(int(np.prod(whole)) * dtype.itemsize + offset, np.uint8)
    array = buffer[offset:].view(dtype).reshape(whole)
    array = array[..., *(slice(None, None, steps[axis]) for axis in order)]
    array = array.transpose(np.argsort(order).astype(int))
    array[...] = sample(np.random.default_rng(draw(seeds)), shape, dtype)
    return array


params = shapes.flatmap(lambda shape: arrays(shape, DTYPES))
trees = st.recursive(
    params,
    lambda below: st.one_of(
        st.lists(below, max_size=4),
        st.lists(below, max_size=4).map(tuple),
        st.dictionaries(KEYS, below, max_size=4),
    ),
    max_leaves=8,
)


def paths(tree, path=""):
    """The arrays by name."""
    if isinstance(tree, np.ndarray):
        return {path: tree}
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    return {
        name: array
        for key, child in items
        for name, array in paths(child, f"{path}.{key}" if path else str(key)).items()
    }


@st.composite
def gradients(draw, tree, partial, path=""):
    """A tree of the same structure, and the gradients that are in it by name."""
    if isinstance(tree, np.ndarray):
        if draw(st.integers(0, 4)) == 0:
            return None, {}
        grad = draw(arrays(tree.shape, GRAD_DTYPES))
        return grad, {path: grad}
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    given_items, found = {}, {}
    for key, child in items:
        if partial and isinstance(tree, dict) and draw(st.booleans()):
            continue
        below = draw(gradients(child, partial, f"{path}.{key}" if path else str(key)))
        given_items[key], named = below
        found |= named
    if isinstance(tree, dict):
        return given_items, found
    return draw(st.sampled_from([list, tuple]))(given_items.values()), found


@st.composite
def options(draw, rule):
    chosen = {
        "lr": draw(st.sampled_from([0.0, 1e-3, 0.1, 1.0, 7.5])),
        "weight_decay": draw(st.sampled_from([0.0, 0.0, 1e-4, 0.5])),
        "decoupled": draw(st.booleans()),
        "maximize": draw(st.booleans()),
    }
    if rule.slot == "velocity":
        chosen["momentum"] = draw(st.sampled_from([0.3, 0.9, 0.99999]))
    if rule.kernel == "heavy_ball":
        chosen["dampening"] = draw(st.sampled_from([0.0, 0.1, 1.0]))
    if rule.slot == "accumulator":
        chosen["eps"] = draw(st.sampled_from([1e-10, 1e-7, 0.1]))
        chosen["lr_decay"] = draw(st.sampled_from([0.0, 0.1, 3.0]))
    return chosen


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
