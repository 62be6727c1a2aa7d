"""Regressions of thalweg alone: pytest bench --benchmark-autosave, then --benchmark-compare.

Not part of the tests: a time never decides one.
"""

from collections.abc import Iterator

import numpy as np
import pytest

import thalweg as tw
from contenders import MAKERS, Work
from sparse import batches, thalweg

SIZES = {"2 arrays": (5, 1), "150 x 16": (16,) * 150, "32,768": (1 << 15,), "2^20": (1 << 20,)}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = tw.get_num_threads()
    tw.set_num_threads(1)
    yield
    tw.set_num_threads(before)


@pytest.mark.parametrize("rule", ["momentum", "adagrad"])
@pytest.mark.parametrize("form", ["thalweg", "thalweg dict", "thalweg bound", "limit"])
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_step(benchmark, sizes, form, rule):
    names = MAKERS[form](Work(rule, sizes)).names
    given = [names["grads"]] if "grads" in names else []
    benchmark(names["opt"].step, *given)


@pytest.mark.parametrize("options", [{"max_norm": 1.0}, {"on_nonfinite": "skip"}, {"scale": 0.5}])
def test_whole_step(benchmark, options):
    limits = {name: value for name, value in options.items() if name != "scale"}
    opt = tw.SGD(np.ones(1 << 18, np.float32), 0.01, 0.9, **limits)
    benchmark(opt.step, np.ones(1 << 18, np.float32), scale=options.get("scale", 1.0))


@pytest.mark.parametrize("accumulator", ["element", "row"])
@pytest.mark.parametrize("kind", ["zipf", "uniform"])
def test_rows(benchmark, kind, accumulator):
    names = thalweg(10**5, batches(kind, 8_192, 10**5), 1, accumulator).names
    benchmark(lambda: names["opt"].step(next(names["grads"])))


@pytest.mark.parametrize("rule", [tw.SGD, tw.Adagrad])
def test_construction(benchmark, rule):
    params = {str(i): np.ones(16, np.float32) for i in range(150)}
    benchmark(rule, params, 0.01)
