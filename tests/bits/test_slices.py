"""What ranks hand each other: slices added in order, and the norm's sums of blocks."""

import numpy as np
import pytest

import reference
from bits import DTYPES, assert_same_bits
from thalweg import _core

SIZES = [0, 1, 31, 1023, 1024, 16_384, 16_385, 50_001]


def values(dtype, size, seed):
    rng = np.random.default_rng([seed, size])
    made = rng.standard_normal(size) * 10.0 ** rng.integers(-30, 30, size)
    with np.errstate(all="ignore"):
        made = made.astype(dtype)
    made[::97] = -0.0
    made[5::301] = np.inf * (-1) ** seed
    return made


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("size", SIZES)
def test_slices_are_added_in_order(level, dtype, count, size):
    slices = [values(dtype, size, seed) for seed in range(count)]
    expected = reference.rank_sum(slices, dtype)
    out = np.empty(size, dtype)
    _core.add_in_order(out, slices, level)
    assert_same_bits(out, expected)
    _core.add_in_order(slices[-1], slices, level)  # into one of them
    assert_same_bits(slices[-1], expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_sums_of_blocks(level, dtype, size):
    each = np.random.default_rng(size).standard_normal(size).astype(dtype)
    found = _core.block_sums(each, level)
    blocks = [each[at : at + reference.BLOCK] for at in range(0, size, reference.BLOCK)]
    assert_same_bits(found, np.array([reference.sum_of_squares(b) for b in blocks], np.float64))


ONE, TWO = np.ones(8), np.ones(9)


@pytest.mark.parametrize(
    ("out", "slices", "words"),
    [
        (ONE, [], "at least one"),
        (ONE, [TWO], "dtype and size of out"),
        (ONE, [ONE.astype("f4")], "dtype and size of out"),
        (ONE, [[1.0]], "dense, aligned"),
        (ONE, [np.ones(16)[::2]], "dense, aligned"),
        (np.ones(8, np.int64), [ONE], "dense, aligned"),
        (np.ones(8, np.float16), [ONE], "dense, aligned"),
        (np.broadcast_to(1.0, 8), [ONE], "dense, aligned"),
        (np.frombuffer(bytes(64)), [ONE], "read-only"),
        (TWO[1:], [TWO[:-1]], "overlaps it in part"),
        (None, [ONE], "dense, aligned"),
    ],
)
def test_what_is_refused(out, slices, words):
    with pytest.raises((TypeError, ValueError), match=words):
        _core.add_in_order(out, slices)
    with pytest.raises(TypeError, match="dense, aligned"):
        _core.block_sums([1.0])
