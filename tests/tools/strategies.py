"""Random trees of arrays of any shape, layout and dtype, and options for them."""

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st

from bits import DTYPES, GRAD_DTYPES, sample
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
