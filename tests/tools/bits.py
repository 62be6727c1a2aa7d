"""Arrays of every kind of float, put anywhere in memory, and compared as integers."""

import numpy as np

DTYPES = [np.float32, np.float64]
GRAD_DTYPES = [np.float16, np.float32, np.float64]


def as_integers(array):
    """A dense copy of the array's bits."""
    dense = np.array(array, order="C", subok=False)
    return dense.view(f"u{dense.itemsize}")


def assert_same_bits(actual, expected, context=""):
    """Every bit equal; a NaN equals any other NaN."""
    assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape), context
    a, b = as_integers(actual), as_integers(expected)
    differs = a != b
    if not differs.any():
        return
    differs &= ~(np.isnan(actual) & np.isnan(expected))
    count = np.count_nonzero(differs)
    if count:
        first = tuple(np.argwhere(differs)[0])
        raise AssertionError(
            f"{context}: {count} of {a.size} elements differ; at {tuple(map(int, first))} "
            f"{actual[first]!r} ({a[first]:#x}), expected {expected[first]!r} ({b[first]:#x})"
        )


def random_bits(rng, shape, dtype):
    """Any bit pattern: NaN, infinities, subnormals and both zeros among them."""
    dtype = np.dtype(dtype)
    return np.frombuffer(rng.bytes(int(np.prod(shape)) * dtype.itemsize), dtype).reshape(shape)


def sample(rng, shape, dtype):
    """Half of it around 1, where every rounding counts; the rest over the whole range."""
    dtype = np.dtype(dtype)
    usual = rng.standard_normal(shape)
    wide = np.ldexp(usual, rng.integers(-20, 20, shape)) if dtype != np.float16 else usual
    kind = rng.integers(0, 8, shape)
    values = np.where(kind < 4, usual, wide).astype(dtype)
    return np.where(kind == 7, random_bits(rng, shape, dtype), values)


def sample_state(rng, shape, dtype, slot):
    """A state as training makes it: accumulators are sums of squares."""
    values = sample(rng, shape, dtype)
    return np.abs(values) if slot == "accumulator" else values


def place(values, offset):
    """A copy of ``values`` that starts ``offset`` bytes after a cache line."""
    buffer = np.empty(values.nbytes + 64 + offset, np.uint8)
    start = -buffer.ctypes.data % 64 + offset
    placed = buffer[start : start + values.nbytes].view(values.dtype).reshape(values.shape)
    placed[...] = values
    return placed
