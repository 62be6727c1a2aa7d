"""Arrays laid in memory in every way, and what lies around them."""

import numpy as np


def layout_of(base_shape, view, base_dtype=lambda dtype: dtype):
    """A buffer for a shape, and the part of it that holds the array."""

    def make(shape, dtype):
        base = np.full(base_shape(shape), 7, base_dtype(dtype))
        return base, view(base, shape, dtype)

    return make


LAYOUTS = {
    "C": layout_of(lambda n: n, lambda b, *_: b),
    "F": layout_of(lambda n: n[::-1], lambda b, *_: b.T),
    "every second": layout_of(lambda n: (*n[:-1], 2 * n[-1]), lambda b, *_: b[..., ::2]),
    "rows apart": layout_of(lambda n: (3 * n[0], *n[1:]), lambda b, *_: b[1::3]),
    "rows backwards": layout_of(lambda n: n, lambda b, *_: b[::-1]),
    "columns backwards": layout_of(lambda n: n, lambda b, *_: b[..., ::-1]),
    "backwards": layout_of(lambda n: n[::-1], lambda b, *_: np.flip(b.T)),
    "axes rolled": layout_of(lambda n: (*n[1:], n[0]), lambda b, *_: np.moveaxis(b, -1, 0)),
    "transposed window": layout_of(
        lambda n: tuple(length + 3 for length in n[::-1]),
        lambda b, n, _: b[tuple(slice(1, length + 1) for length in n[::-1])].T,
    ),
    "misaligned": layout_of(
        lambda n: (*n[:-1], 8 * n[-1] + 5),
        lambda b, n, dtype: np.ndarray(n, dtype, b, 3, (*b.strides[:-1], np.dtype(dtype).itemsize)),
        lambda _: np.uint8,
    ),
    "in records": layout_of(
        lambda n: n,
        lambda b, *_: b["x"],
        lambda dtype: [("before", "u1"), ("x", dtype), ("after", "u2")],
    ),
}


def lay(layout, values):
    base, array = LAYOUTS[layout](values.shape, values.dtype)
    array[...] = values
    return base, array


def assert_nothing_around_it_changed(layout, base, array):
    array[...] = 0
    assert base.tobytes() == lay(layout, np.zeros_like(array))[0].tobytes(), layout


def laid_out(values, layout):
    """The values in this layout; broadcast repeats the first row."""
    if layout == "F":
        return np.asfortranarray(values)
    if layout == "broadcast":
        return np.broadcast_to(values[:1].copy(), values.shape)
    if layout == "strided":
        wide = np.zeros((*values.shape, 3), values.dtype)
        wide[..., 1] = values
        return wide[..., 1]
    if layout == "backwards":
        return values[::-1].copy()[::-1]
    return values
