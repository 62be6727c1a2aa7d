"""The optimizers and the extra of the golden files. ``golden.py`` writes those of today's version
anew, from those of the first: only while no release can read it yet."""

import random
from pathlib import Path

import numpy as np

import thalweg as tw
from thalweg._checkpoint.file import write

GOLDEN = Path(__file__).parents[1] / "checkpoint" / "golden"
SAVED = 7  # which save of its folder v2-adagrad.npz is


def sgd():
    return tw.SGD(
        [
            {"params": {"W": np.zeros((2, 3)), "b": np.zeros(3, np.float32)}},
            {"params": [np.zeros((3, 2)).T], "momentum": 0.5},
        ],
        lr=9.0,
        momentum=0.1,
        nesterov=True,
        max_norm=9.0,
    )


def adagrad():
    return tw.Adagrad({"table": np.zeros((3, 2), np.float32)}, accumulator="row", eps=1e-6)


def kept():
    """One of each that the second version can keep and the first could not."""
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence(11, spawn_key=(3,))))
    rng.spawn(2)
    rng.standard_normal(7, np.float32)
    return {
        "tuple": (1, [2, (3,)], ()),
        "ix_to_char": {0: "a", 1: "b", (2, "c"): b"d"},
        "bytes": [b"\0\xff", bytearray(b"ab"), bytes(range(256)) * 17],
        "dates": [np.datetime64("2024-02-29T12", "h"), np.timedelta64(-5, "ns")],
        "rng": rng,
        "old": np.random.RandomState(5),
        "python": random.Random(3).getstate(),
    }


def main(folder):
    opt = sgd()
    extra = tw.load_checkpoint(GOLDEN / "v1-sgd.npz", opt, options="file")
    extra["array_of_dates"] = extra.pop("dates")
    tw.save_checkpoint(folder / "v2-sgd.npz", opt, extra | kept())
    opt = adagrad()
    tw.load_checkpoint(GOLDEN / "v1-adagrad.npz", opt, options="file")
    write(folder / "v2-adagrad.npz", opt, None, None, SAVED)


if __name__ == "__main__":
    main(GOLDEN)
