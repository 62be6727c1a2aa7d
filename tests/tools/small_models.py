"""Arrays of a model, one of them shared by threads, and what a step of them is tried with."""

import numpy as np

SHAPES = {"big": (333, 501), "W": (40, 27), "b": (33,), "c": (), "empty": (0, 3)}

CASES = [  # threads, and which other things go with them
    (1, np.float32, np.float32),
    (2, np.float32, np.float16),
    (7, np.float64, np.float64),
    (2, np.float64, np.float32),
]


def values(dtype, seed, shapes=SHAPES):
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}
