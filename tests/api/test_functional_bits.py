"""sgd_, adagrad_ and their forms by rows: the usual arguments do not leave the core, and give the
twin's bits; the others come to the same."""

import numpy as np
import pytest

import reference
import thalweg as tw
from bits import assert_same_bits, sample, sample_state
from calls import call_of, each_dtype, each_rule
from rules import RULES

SIZES = {
    "one": [7],
    "empty": [0],
    "some": [1, 64, 0, 4099, 33],
    "many": [16] * 150,
    "long": [70_001, 5],
    "for threads": [300_003],
}
OPTIONS = {
    "plain": {},
    "decay": {"weight_decay": 0.25, "maximize": True},
    "decoupled": {"weight_decay": 0.25, "decoupled": True, "scale": 0.5},
    "bounded": {"max_value": 0.75, "scale": 1},
}


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
@each_dtype
@each_rule
def test_bits(rule, dtype, sizes, at_level, no_way_out):
    for options in OPTIONS.values():
        check_bits(rule, dtype, sizes, options)


def check_bits(rule, dtype, sizes, options):
    rng = np.random.default_rng(1)
    params = [sample(rng, n, dtype) for n in sizes]
    states = [sample_state(rng, n, dtype, rule.slot) for n in sizes]
    expected = [w.copy() for w in params], [s.copy() for s in states]
    given = tuple(states) if rule.slot else None
    for _ in range(2):
        grads = [sample(rng, n, dtype) for n in sizes]
        if len(sizes) > 1:
            grads[1] = None
        assert call_of(rule)(params, grads, given, **options) is True
        for w, g, s in zip(expected[0], grads, expected[1], strict=True):
            if g is not None:
                rule.twin(w, g, s, 1, **options)
    for i in range(len(sizes)):
        assert_same_bits(params[i], expected[0][i], f"param {i}")
        assert_same_bits(states[i], expected[1][i], f"state {i}")


@each_dtype
@each_rule
def test_bits_of_arrays_in_columns(rule, dtype, no_way_out):
    rng = np.random.default_rng(2)
    w, g, s = (np.asfortranarray(sample(rng, (30, 70), dtype)) for _ in "wgs")
    s = np.abs(s)
    expected, state = w.copy(), s.copy()
    rule.twin(expected, g, state, 1)
    call_of(rule)(w, g, s if rule.slot else None)
    assert_same_bits(w, expected)
    if rule.slot:
        assert_same_bits(s, state)


def columns(rng, count, length, dtype):
    """Columns of one matrix, every other one backwards."""
    base = rng.standard_normal((length, count + 1)).astype(dtype)
    return [base[:: -1 if k % 2 else 1, k] for k in range(count)]


LIMITS_OF_COLUMNS = [{}, {"max_norm": 0.5}, {"on_nonfinite": "raise", "weight_decay": 0.25}]


@pytest.mark.parametrize("length", [2, 50, 9001])
@each_dtype
@each_rule
def test_bits_of_columns_of_one_matrix(rule, dtype, length, at_level, no_way_out):
    rng = np.random.default_rng(7)
    for options in LIMITS_OF_COLUMNS:
        params, grads, states = (columns(rng, 9, length, dtype) for _ in "wgs")
        for state in states:
            state[...] = np.abs(state)
        grads[3] = None
        grads[4] = grads[4].copy()
        states[5] = states[5].copy()
        params[6] = params[6].copy()
        grads[7] = np.broadcast_to(grads[7][:1], length)
        copies = [
            [None if a is None else a.copy() for a in each] for each in (params, grads, states)
        ]
        calls = []
        for arrays in ((params, grads, states), copies):
            given = arrays[2] if rule.slot else None
            norm = np.zeros(1)
            calls.append((call_of(rule)(arrays[0], arrays[1], given, norm=norm, **options), norm))
        assert calls[0][0] is calls[1][0] is True
        assert_same_bits(calls[0][1], calls[1][1])
        for mine, theirs in ((params, copies[0]), (states, copies[2])):
            for k in range(9):
                assert_same_bits(mine[k], theirs[k], f"{k}")


def test_other_strides_between_the_same_ends_are_looked_at_again():
    base = np.zeros(10)
    tw.sgd_(base[0:9:4], base[1:10:4], lr=1.0)
    with pytest.raises(ValueError, match="share memory"):
        tw.sgd_(base[0:9], base[1:10], lr=1.0)
    tw.sgd_(base[0:9:4], base[1:10:4], lr=1.0)
    for _ in range(2):
        with pytest.raises(ValueError, match="share memory"):
            tw.sgd_(base[0:9:4], base[0:9:4], lr=1.0)
    assert not base.any()


@pytest.mark.parametrize("stride", [0, 4])
def test_a_param_that_lies_on_itself_is_refused(stride):
    flat = np.zeros(8)
    w = np.lib.stride_tricks.as_strided(flat.view(np.float32), (3,), (stride,))
    w64 = np.lib.stride_tricks.as_strided(flat, (3,), (stride,))
    bad = w if stride == 0 else w64
    with pytest.raises(ValueError):
        tw.sgd_(bad, np.ones(3, bad.dtype), lr=1.0)
    assert not flat.any()


@pytest.mark.parametrize("wide", [np.int32, np.int64])
@each_dtype
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_bits_by_rows(rule, dtype, wide, at_level, no_way_out):
    rng = np.random.default_rng(3)
    by_row = rule.choices.get("accumulator") == "row"
    table = sample(rng, (50, 3, 5), dtype)
    state = np.abs(sample(rng, (50,) if by_row else (50, 3, 5), dtype))
    expected, kept = table.copy(), state.copy()
    choices = {name: x for name, x in rule.choices.items() if name != "accumulator"}
    function = tw.sgd_rows_ if rule.optimizer is tw.SGD else tw.adagrad_rows_
    for count in (40, 0, 1, 300):
        ids = rng.integers(0, 50, 2 * count).astype(wide)[::2]
        values = sample(rng, (count, 3, 5), dtype)
        options = {"lr": 0.1} | choices | {"scale": 0.5, "max_value": 2.0}
        assert function(table, ids, values, state if rule.slot else None, **options)
        twin_options = {"scale": 0.5, "max_value": 2.0}
        reference.by_rows(
            rule.twin, expected, ids, values, kept if rule.slot else None, 1, **twin_options
        )
    assert_same_bits(table, expected)
    assert_same_bits(state, kept)
