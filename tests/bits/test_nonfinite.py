"""Gradients with NaN or infinities: propagated as in NumPy, skipped without a trace, or raised."""

import itertools
import re

import numpy as np
import pytest

import thalweg as tw
from bits import as_integers, assert_same_bits
from refusing import everything, frozen
from rules import RULES
from twin import Twin

BAD = [np.nan, np.inf, -np.inf]
MODES = ["skip", "raise"]
DTYPE = [np.float32, np.float64]

# Fifty arrays: every kind of tail, three with edges of a tile and of a block, all ranks.
SHAPES = [(n,) for n in (*range(1, 34), 63, 64, 65, 1023, 1024, 1025, 16385, 32769)]
SHAPES += [(), (1, 1), (3, 5), (5, 33), (7, 1, 5), (2, 3, 4), (31, 33), (3, 5461), (1, 64)]
assert len(SHAPES) == 50


def places(size):
    """The first, the last, the tail after the lanes, and the edges of tiles and blocks."""
    edges = [0, size - 1, size // 32 * 32, 31, 32, 1023, 1024, 4095, 4096, 16383, 16384, 32767]
    return sorted({i for i in edges if 0 <= i < size})


def put(array, index, value):
    """Set an element by its index in logical C order; return what was there."""
    where = np.unravel_index(index, array.shape)
    before = array[where]
    array[where] = value
    return before


def pair(rule, level, on_nonfinite, **options):
    """Two optimizers of the same fifty arrays, with gradients for both."""
    rng = np.random.default_rng(1)
    start = [rng.standard_normal(s).astype(DTYPE[i % 2]) for i, s in enumerate(SHAPES)]
    grads = [rng.standard_normal(s).astype(DTYPE[i // 2 % 2]) for i, s in enumerate(SHAPES)]
    opts = []
    for _ in range(2):
        params = [np.array(w) for w in start]
        opts.append(rule.make(params, level, max_norm=9.0, on_nonfinite=on_nonfinite, **options))
    return *opts, grads


OPTIONS = {
    "heavy_ball": {"dampening": 0.5, "lr": lambda t: 0.1 / (t + 1)},
    "adagrad_inside": {"lr_decay": 0.5, "weight_decay": 0.1},
}


@pytest.mark.parametrize("kernel", OPTIONS)
@pytest.mark.parametrize("on_nonfinite", MODES)
def test_no_trace_of_a_bad_element_anywhere(kernel, on_nonfinite, level):
    """In each array, before the first step and later; then a good step is as if nothing were."""
    for i in range(len(SHAPES)):
        opt, clean, grads = pair(RULES[kernel], level, on_nonfinite, **OPTIONS[kernel])
        tried = 0
        for _ in range(2):
            before = everything(opt)
            for index, bad in itertools.product(places(grads[i].size), BAD):
                good = put(grads[i], index, bad)
                tried += 1
                if on_nonfinite == "skip":
                    assert opt.step(grads) is False
                    assert opt.skipped_steps == tried
                else:
                    with pytest.raises(FloatingPointError):
                        opt.step(grads)
                    assert opt.skipped_steps == 0
                put(grads[i], index, good)
            assert everything(opt) == before
            assert opt.step(grads) is clean.step(grads) is True
            assert [*map(frozen, opt._arrays.values())] != before[0]
            assert_same(opt, clean)


def assert_same(one, other):
    for name in one.state:
        assert_same_bits(one._arrays[name], other._arrays[name], name)
        for slot, value in one.state[name].items():
            expected = other.state[name][slot]
            assert value == expected if slot == "step" else not assert_same_bits(value, expected)
    assert (one.step_count, one.grad_norm) == (other.step_count, other.grad_norm)


@pytest.mark.parametrize("on_nonfinite", MODES)
@pytest.mark.parametrize("bad", BAD)
def test_every_refused_step_by_itself(on_nonfinite, bad, level):
    """One element of each array: the bytes are looked at after every single step."""
    opt, _, grads = pair(RULES["heavy_ball"], level, on_nonfinite)
    for t in range(2):
        before = everything(opt)
        for g in grads:
            good = put(g, g.size - 1, bad)
            if on_nonfinite == "skip":
                assert not opt.step(grads)
            else:
                with pytest.raises(FloatingPointError):
                    opt.step(grads)
            assert everything(opt) == before
            put(g, g.size - 1, good)
        assert opt.step(grads)
        assert opt.step_count == t + 1


@pytest.mark.parametrize("threads", [1, 2, 7])
def test_no_trace_with_threads(threads, level):
    n = 200_000
    before = tw.get_num_threads()
    tw.set_num_threads(threads)
    try:
        w, g = np.ones(n, np.float32), np.ones(n, np.float32)
        opt = tw.SGD(w, 0.1, 0.9, on_nonfinite="skip")
        opt._use_level(level)
        for t, index in enumerate([0, 16383, 16384, 31, 131072, n - 1]):
            kept = everything(opt)
            put(g, index, np.nan)
            assert not opt.step(g)
            assert everything(opt) == kept
            put(g, index, 1.0)
            assert opt.step(g)
            assert (opt.step_count, opt.skipped_steps) == (t + 1, t + 1)
    finally:
        tw.set_num_threads(before)


@pytest.mark.parametrize("bad", BAD)
def test_propagate_is_what_numpy_does(bad, level):
    for rule, max_norm in itertools.product(RULES.values(), [None, 1.0]):
        rng = np.random.default_rng(2)
        start = {str(i): rng.standard_normal(s) for i, s in enumerate(SHAPES)}
        grads = {name: rng.standard_normal(w.shape) for name, w in start.items()}
        for i, g in enumerate(grads.values()):
            where = places(g.size)
            put(g, where[i % len(where)], bad)
        twin = Twin(rule, start, {name: {} for name in start}, max_norm=max_norm)
        params = [np.array(w) for w in start.values()]
        opt = rule.make(params, level, max_norm=max_norm)
        for _ in range(2):
            assert opt.step(list(grads.values()))
            assert twin.step(grads)
        twin.assert_equals(opt, {name: params[int(name)] for name in start}, rule.kernel)


def test_the_message_names_every_bad_array():
    params = {"W": np.ones((3, 5)), "ok": np.ones(4), "deep": [np.ones(()), np.ones(40_000)]}
    g = {"W": np.ones((3, 5)), "ok": np.ones(4), "deep": [np.full((), np.inf), np.ones(40_000)]}
    g["W"][1, 2], g["W"][1, 3], g["W"][2, 4] = np.inf, np.nan, np.nan
    g["deep"][1][[16_384, 39_999, 20_000]] = -np.inf, np.inf, np.nan
    opt = tw.SGD(params, on_nonfinite="raise")
    before = everything(opt)
    with pytest.raises(FloatingPointError) as caught:
        opt.step(g)
    said = str(caught.value)
    assert re.findall(r'grads\["(.*?)"\]: .*? received (.*?)(?:;|$)', said) == [
        ("W", "2 NaN and 1 inf, the first at [1, 2]"),
        ("deep.0", "0 NaN and 1 inf, the first at []"),
        ("deep.1", "1 NaN and 2 inf, the first at [16384]"),
    ]
    assert "nothing has changed" in said
    assert everything(opt) == before


@pytest.mark.parametrize("layout", ["F", "strided", "float16", "float64"])
def test_the_position_is_that_in_the_array(layout):
    g = np.zeros((7, 3, 2500), np.float32)
    g[5, 1, 2401] = np.nan
    g[5, 2, 3] = np.inf  # before it in an F-ordered memory
    if layout == "F":
        g = np.asfortranarray(g)
    elif layout == "strided":
        g = np.repeat(g, 2, axis=1)[::-1, ::2][::-1]
    else:
        g = g.astype(layout)
    opt = tw.SGD(np.ones((7, 3, 2500), np.float32), on_nonfinite="raise")
    with pytest.raises(FloatingPointError, match=r"1 NaN and 1 inf, the first at \[5, 1, 2401\]"):
        opt.step(g)


def judged(param, grad, scale=1.0, **limits):
    """Whether a step of one array is left out."""
    opt = tw.SGD(param, on_nonfinite="skip", **limits)
    return not opt.step(grad, scale=scale)


@pytest.mark.parametrize("limits", [{}, {"max_norm": 1.0}, {"max_value": 1.0}], ids=str)
def test_the_gradient_is_judged_after_conversion_and_scale(limits):
    w = np.ones(3, np.float32)
    big, huge = np.full(3, 1e38, np.float32), np.full(3, 1e39)
    assert not judged(w, big, **limits)
    assert judged(w, big, scale=100.0, **limits)  # finite, but not once scaled
    assert judged(w, huge, **limits)  # a float32 sees inf
    assert judged(w, huge, scale=1e-5, **limits)  # converted first, as section 3 has it
    assert not judged(np.ones(3), huge, **limits)
    # Only the square overflows, and with it the norm where one is asked for.
    assert judged(np.ones(3), np.full(3, 1e200), **limits) == ("max_norm" in limits)
    assert judged(w, np.array([1, np.inf, 1], np.float16), **limits)
    assert judged(w, np.broadcast_to(np.float32(np.nan), 3), **limits)
    assert judged(np.ones(()), float("nan"), **limits)


@pytest.mark.parametrize("bad", BAD)
def test_a_bound_hides_no_infinity_from_the_judge(bad):
    assert judged(np.ones(4), np.array([1, 2, bad, 3.0]), max_value=0.5, max_norm=1.0)


def test_only_gradients_that_are_used_are_judged():
    def arrays():
        return {"a": np.ones(2), "b": np.ones(2)}

    groups = [{"params": arrays()}, {"params": arrays(), "frozen": True}]
    opt = tw.SGD(groups, on_nonfinite="raise", max_norm=1.0)
    bad = np.full(2, np.nan)
    assert opt.step([{"a": np.ones(2), "b": None}, {"a": bad, "b": bad}])
    assert opt.step([{"a": np.ones(2)}, {}], partial=True)
    assert opt.grad_norm == np.sqrt(2)
    opt.param_groups[1]["frozen"] = False
    with pytest.raises(FloatingPointError, match=r'grads\["1.b"\]'):
        opt.step([arrays(), {"a": None, "b": bad}])
    # What was bad in an earlier step is not remembered.
    assert opt.step([arrays(), {"a": np.ones(2), "b": None}])


def test_schedules_stand_still():
    asked = []

    def lr(t):
        asked.append(t)
        return 0.5

    w = np.ones(1)
    opt = tw.SGD(w, lr, on_nonfinite="skip", max_norm=1e9)
    for g in [np.nan, 1.0, np.inf, -np.inf, 1.0]:
        opt.step(np.array([g]))
    assert asked[-1] == 1
    assert sorted(set(asked)) == [0, 1]
    assert (opt.step_count, opt.skipped_steps, opt.grad_norm) == (2, 3, 1.0)
    assert w == 0


def test_the_gradient_keeps_its_bits():
    g = np.array([np.nan, np.inf, -np.inf, 1.0])
    before = as_integers(g)
    for mode in ("propagate", "skip"):
        tw.SGD(np.ones(4), max_norm=1.0, max_value=2.0, on_nonfinite=mode).step(g, scale=2.0)
    assert (as_integers(g) == before).all()


@pytest.mark.parametrize("value", ["Skip", "", None, True, 0, b"skip", ["skip"]])
def test_what_is_no_mode(value):
    w = np.ones(2)
    expected = "on_nonfinite: expected propagate, skip or raise, received "
    with pytest.raises(ValueError, match=expected + re.escape(repr(value))):
        tw.SGD(w, on_nonfinite=value)
    opt = tw.Adagrad(w, on_nonfinite="skip")
    with pytest.raises(ValueError, match=expected):
        opt.on_nonfinite = value
    assert opt.on_nonfinite == "skip"
