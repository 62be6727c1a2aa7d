"""A Joint's bits are those of the rules by themselves, behind one norm and one decision."""

from itertools import combinations_with_replacement

import numpy as np
import pytest

import reference
import thalweg as tw
from bits import assert_same_bits
from rules import RULES
from twin import Twin, summed

SHAPES = {"W": (70, 30), "b": (5,)}
PAIRS = list(combinations_with_replacement(RULES, 2))


def grads(dtype, seed, sparse):
    r = np.random.default_rng(seed)
    made = {name: r.standard_normal(shape).astype(dtype) for name, shape in SHAPES.items()}
    if sparse:
        made["W"] = tw.RowGrad(r.integers(0, 70, 9), r.standard_normal((9, 30)).astype(dtype))
    return made


class Pair:
    """Two halves beside their twins, which clip by one norm over both."""

    def __init__(self, kernels, dtypes, level, shapes=SHAPES, **limits):
        self.params = [
            {name: np.ones(shape, dtype) for name, shape in shapes.items()} for dtype in dtypes
        ]
        rules = [RULES[kernel] for kernel in kernels]
        self.twins = [
            Twin(rule, w, {key: {} for key in w})
            for rule, w in zip(rules, self.params, strict=True)
        ]
        self.opts = [rule.make(w, level) for rule, w in zip(rules, self.params, strict=True)]
        self.joint = tw.Joint(one=self.opts[0], two=self.opts[1], **limits)
        self.limits = limits

    def step(self, one, two, scale=1.0):
        applied = self.joint.step({"one": one, "two": two}, scale=scale)
        clip = 1.0
        if (max_norm := self.limits.get("max_norm")) is not None:
            squares = np.float64(0)
            for twin, given in zip(self.twins, (one, two), strict=True):
                for name, w in twin.params.items():
                    g = reference.scaled(summed(given[name], w.dtype), w.dtype, scale)
                    squares = squares + reference.sum_of_squares(g)
            norm = np.sqrt(squares)
            clip = reference.clip_factor(max_norm, norm, self.limits.get("norm_eps", 1e-6))
            if applied:
                assert_same_bits(np.float64(self.joint.grad_norm), norm)
        if applied:
            for twin, given in zip(self.twins, (one, two), strict=True):
                twin.step(given, scale=scale, clip=clip)
        return applied

    def check(self, context=""):
        for twin, opt, w in zip(self.twins, self.opts, self.params, strict=True):
            twin.assert_equals(opt, w, context)


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_every_pair(pair, level):
    single, double = np.float32, np.float64
    for dtypes in ((single, single), (double, single), (double, double)):
        for limits in (
            {},
            {"max_norm": 0.5, "norm_eps": 0.0 if dtypes[0] == single else 0.25},
            {"max_norm": np.inf, "on_nonfinite": "skip"},
        ):
            both = Pair(pair, dtypes, level, **limits)
            for i in range(2):
                given = [grads(d, i + k, sparse=i == k) for k, d in enumerate(dtypes)]
                assert both.step(*given, scale=0.5)
                both.check(f"{limits} {i}")


@pytest.mark.parametrize("half", [0, 1])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("on_nonfinite", ["skip", "raise"])
def test_what_is_not_finite_leaves_every_byte_of_both(half, bad, on_nonfinite, level):
    pair = ("adagrad_inside", "heavy_ball")
    both = Pair(pair, (np.float32, np.float64), level, on_nonfinite=on_nonfinite)
    for i in range(2):  # at the first step, too
        given = [grads(d, i, False) for d in (np.float32, np.float64)]
        wrong = [dict(each) for each in given]
        wrong[half]["b"] = wrong[half]["b"].copy()
        wrong[half]["b"][3] = bad
        if on_nonfinite == "skip":
            assert both.step(*wrong) is False
            assert both.joint.skipped_steps == i + 1
        else:
            name = ("one", "two")[half]
            with pytest.raises(FloatingPointError, match=rf'grads\["{name}.b"\]'):
                both.step(*wrong)
        both.check()
        assert both.step(*given)
        both.check()


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_threads_over_all_pieces(pair, level):
    """Every pair in both dtypes, beside one twin; large enough for threads to share it."""
    before, shape = tw.get_num_threads(), (300, 301)
    dtypes = np.float32, np.float64
    rng = np.random.default_rng(0)
    rows = tw.RowGrad(rng.integers(0, 300, 250), rng.standard_normal((250, 301)).astype(np.float64))
    steps = [
        [{"W": rng.standard_normal(shape).astype(np.float32)}, {"W": rows}],
        [{"W": rng.standard_normal(shape).astype(np.float32)}, {"W": np.ones(shape)}],
    ]
    found = []
    try:
        for threads in (1, 2, 7):
            tw.set_num_threads(threads)
            both = Pair(pair, dtypes, level, {"W": shape}, max_norm=3.0, on_nonfinite="raise")
            for given in steps:
                if threads == 1:
                    assert both.step(*given)
                else:
                    both.joint.step({"one": given[0], "two": given[1]})
            if threads == 1:
                both.check()
            found.append(both)
        for other in found[1:]:
            for opt, w, first in zip(other.opts, other.params, found[0].twins, strict=True):
                first.assert_equals(opt, w, "with threads")
            assert_same_bits(
                np.float64(other.joint.grad_norm), np.float64(found[0].joint.grad_norm)
            )
    finally:
        tw.set_num_threads(before)


def test_an_own_limit_holds_for_its_part(level):
    params = [{"W": np.ones(4)}, {"W": np.ones(4)}]
    rules = RULES["adagrad_inside"], RULES["heavy_ball"]
    twins = [
        Twin(rules[0], params[0], {"W": {}}, max_norm=0.5, on_nonfinite="skip"),
        Twin(rules[1], params[1], {"W": {}}),
    ]
    opts = [
        rules[0].make(params[0], level, max_norm=0.5, on_nonfinite="skip"),
        rules[1].make(params[1], level),
    ]
    joint = tw.Joint(one=opts[0], two=opts[1])
    for value in (3.0, np.nan, 5.0):
        given = {"W": np.full(4, value)}, {"W": np.ones(4)}
        assert joint.step({"one": given[0], "two": given[1]}) is bool(np.isfinite(value))
        for twin, opt, w, g in zip(twins, opts, params, given, strict=True):
            twin.step(g)
            twin.assert_equals(opt, w, str(value))
    assert joint.skipped_steps == 0
    assert joint.step_count == 3
