"""sgd_ and adagrad_: what they refuse. The buffers are the caller's, the state included."""

import numpy as np
import pytest
from numpy.lib.stride_tricks import as_strided

import reference
import thalweg as tw
from bits import assert_same_bits
from refusing import refused, rows


def sgd(w, g, v, **options):
    tw.sgd_(w, g, v, **{"lr": 0.1, "momentum": 0.9} | options)


def adagrad(w, g, s, **options):
    tw.adagrad_(w, g, s, **{"lr": 0.1} | options)


CALLS = [pytest.param(sgd, "velocity", id="sgd_"), pytest.param(adagrad, "accumulator", id="ada_")]


def read_only(array):
    array.flags.writeable = False
    return array


W, G, S = np.ones, np.ones, np.zeros  # each row makes its own arrays
f32 = np.float32
SHAPE = "expected shape (3,), that of param, received shape "
# param, gradient, state, exception, the array that is named, what is said of it. "state" stands
# for the rule's own word.
SINGLE = {
    "param read-only": (read_only(W(3)), G(3), S(3), ValueError, "param", "writeable", "Ray"),
    "param int": (W(3, int), G(3), S(3), TypeError, "param", "float64", "received dtype int64"),
    "param half": (W(3, "f2"), G(3), S(3), TypeError, "param", "received dtype float16"),
    "param swapped": (W(3, ">f8"), G(3), S(3), TypeError, "param", "received dtype >f8"),
    "param masked": (np.ma.ones(3), G(3), S(3), TypeError, "param", "received a masked array"),
    "param float": (1.0, G(()), S(()), TypeError, "param", "received float; a number cannot"),
    "param None": (None, G(3), S(3), TypeError, "param", "received None"),
    "param dict": ({"W": W(3)}, G(3), S(3), TypeError, "param", "received dict"),
    "param stride 0": (as_strided(W(1), (3,), (0,)), G(3), S(3), ValueError, "param", "(0,)"),
    "grad int": (W(3), G(3, int), S(3), TypeError, "grad", "received dtype int64", "astype"),
    "grad object": (W(3), G(3, object), S(3), TypeError, "grad", "received dtype object"),
    "grad shape": (W(3), G(2), S(3), ValueError, "grad", SHAPE + "(2,)"),
    "grad list": (W(3), [G(3)], S(3), TypeError, "grad", "received list"),
    "grad int for 0-d": (W(()), 1, S(()), TypeError, "grad", "received int"),
    "state None": (W(3), G(3), None, TypeError, "state", "received None; start it at np.zeros_"),
    "state list": (W(3), G(3), [S(3)], TypeError, "state", "received list"),
    "state float": (W(()), G(()), 0.0, TypeError, "state", "received float"),
    "state shape": (W(3), G(3), S((3, 1)), ValueError, "state", SHAPE + "(3, 1)"),
    "state narrow": (W(3), G(3), S(3, f32), TypeError, "state", "expected dtype float64, that of"),
    "state wide": (W(3, f32), G(3), S(3), TypeError, "state", "received dtype float64"),
    "state int": (W(3), G(3), S(3, int), TypeError, "state", "received dtype int64"),
    "state swapped": (W(3), G(3), S(3, ">f8"), TypeError, "state", "received dtype >f8"),
    "state read-only": (W(3), G(3), read_only(S(3)), ValueError, "state", "writeable"),
    "state stride 0": (W(3), G(3), as_strided(S(1), (3,), (0,)), ValueError, "state", "apart"),
}


@pytest.mark.parametrize(
    ("w", "g", "s", "exception", "named", "words"),
    rows({name: (*row[:5], row[5:]) for name, row in SINGLE.items()}),
)
@pytest.mark.parametrize(("call", "slot"), CALLS)
def test_array_is_refused(call, slot, w, g, s, exception, named, words):
    path = slot if named == "state" else named
    with refused(exception, f"{path}: expected", *words, keeps=(w, g, s)):
        call(w, g, s)
    if named == "state" and s is None:
        return
    lists = [W(2), w, W(())], [None, g, G((), f32)], [S(2), s, S(())]
    words = [word.replace("that of param", 'that of param["1"]') for word in words]
    with refused(exception, f'{path}["1"]: expected', *words, keeps=lists):
        call(*lists)


def overlaps():
    base = np.ones((6, 4))
    w, other = base[:, 0], base[:, 1]
    far = np.zeros(6)
    return {
        "grad is param": (w, w, far, "grad: ", "param share memory"),
        "grad is param, turned": (w, w[::-1], far, "grad: ", "param share memory"),
        "grad meets param": (w, base.ravel()[:6], far, "grad: ", "param share memory"),
        "state is param": (w, far, w, "param", "share memory"),
        "grad is state": (w, other, other, "grad: ", "share memory"),
        "grad meets state": (w, other[::-1], other, "grad: ", "share memory"),
    }


@pytest.mark.parametrize(
    ("w", "g", "s", "words"), rows({k: (*row[:3], row[3:]) for k, row in overlaps().items()})
)
@pytest.mark.parametrize(("call", "slot"), CALLS)
def test_shared_memory_is_refused(call, slot, w, g, s, words):
    with refused(ValueError, "expected memory of its own", *words, keeps=(w.base, g, s)):
        call(w, g, s)
    with refused(ValueError, '["1"]', "expected memory of its own", keeps=(w.base, g, s)):
        call([W(1), w], [G(1), g], [S(1), s])


@pytest.mark.parametrize(("call", "slot"), CALLS)
def test_shared_memory_across_a_list_is_refused(call, slot):
    a, b, c, d = (np.ones(4) for _ in range(4))
    lists = {
        ('param["0"]', 'param["1"]'): ([a, a], [c, c], [b, d]),
        ('param["0"]', f'{slot}["1"]'): ([a, b], [c, c], [d, a]),
        (f'{slot}["0"]', f'{slot}["1"]'): ([a, b], [c, c], [d, d]),
        ('grad["0"]: ', 'param["1"]'): ([a, b], [b, b], [c, d]),
        ('grad["1"]: ', f'{slot}["0"]'): ([a, b], [S(4), c], [c, d]),
    }
    for words, (w, g, s) in lists.items():
        with refused(ValueError, *words, "share memory", keeps=(w, g, s)):
            call(w, g, s)


LENGTHS = {
    "few grads": (2, 1, 2, "grad: expected 2 arrays, as many as in param, received 1"),
    "many grads": (2, 3, 2, "grad: expected 2 arrays, as many as in param, received 3"),
    "no grads": (1, 0, 1, "grad: expected 1 arrays, as many as in param, received 0"),
    "few states": (2, 2, 1, "slot: expected 2 arrays, as many as in param, received 1"),
    "many states": (1, 1, 2, "slot: expected 1 arrays, as many as in param, received 2"),
    "no params": (0, 1, 1, "grad: expected 0 arrays, as many as in param, received 1"),
}


@pytest.mark.parametrize(("w", "g", "s", "words"), rows(LENGTHS))
@pytest.mark.parametrize(("call", "slot"), CALLS)
def test_lists_of_unequal_length(call, slot, w, g, s, words):
    lists = [[np.ones(2) for _ in range(n)] for n in (w, g, s)]
    with refused(ValueError, words.replace("slot", slot), keeps=lists):
        call(*lists)


@pytest.mark.parametrize(("call", "slot"), CALLS)
def test_array_where_param_is_a_list(call, slot):
    w, s = [np.ones(2)], [np.zeros(2)]
    words = "expected a list or tuple, as param is, received "
    for grad in (np.ones(2), None, (x for x in [np.ones(2)]), {"0": np.ones(2)}, "g", 1.0):
        with refused(TypeError, "grad: " + words + type(grad).__name__, keeps=(w, s)):
            call(w, grad, s)
    with refused(TypeError, f"{slot}: {words}ndarray", keeps=(w, s)):
        call(w, [np.ones(2)], s[0])
    with refused(TypeError, f"{slot}: expected an array, or a list as param is", keeps=(w, s)):
        call(w, [np.ones(2)], None)


@pytest.mark.parametrize("bad", ["shape", "dtype", "shared"])
@pytest.mark.parametrize(("call", "slot"), CALLS)
def test_one_bad_gradient_of_fifty(call, slot, bad):
    w, s = [np.ones(3) for _ in range(50)], [np.ones(3) for _ in range(50)]
    for k in range(50):
        g = [np.ones(3) for _ in range(50)]
        g[k] = {"shape": np.ones((1, 3)), "dtype": np.ones(3, int), "shared": w[49 - k]}[bad]
        exception = TypeError if bad == "dtype" else ValueError
        with refused(exception, f'grad["{k}"]: expected ', keeps=(w, g, s)):
            call(w, g, s)


OPTIONS = {
    "no lr": (sgd, {"lr": None}, TypeError, "lr: expected a finite number >= 0, received NoneType"),
    "lr is nan": (adagrad, {"lr": np.nan}, ValueError, "lr: expected", "received nan"),
    "lr < 0": (sgd, {"lr": -0.1}, ValueError, "lr: expected a finite number >= 0, received -0.1"),
    "lr is a schedule": (
        sgd,
        {"lr": lambda t: 0.1},
        TypeError,
        "lr: expected a number, received a c",
    ),
    "bool": (sgd, {"momentum": True}, TypeError, "momentum: expected a number", "bool True"),
    "momentum 2": (sgd, {"momentum": 2}, ValueError, "momentum: expected", "received 2.0"),
    "dampening": (sgd, {"dampening": 1.1}, ValueError, "dampening: expected", "received 1.1"),
    "damped classic": (
        sgd,
        {"form": "classic", "dampening": 0.1},
        ValueError,
        "dampening: expected 0 unless form is heavy_ball",
    ),
    "nesterov ema": (sgd, {"form": "ema", "nesterov": True}, ValueError, "other than ema"),
    "form": (sgd, {"form": "nag"}, ValueError, "form: expected one of", "received 'nag'"),
    "eps 0": (adagrad, {"eps": 0}, ValueError, "eps: expected a finite number > 0, received 0.0"),
    "placement": (adagrad, {"eps_placement": 1}, ValueError, "eps_placement: expected one of"),
    "decay": (adagrad, {"weight_decay": -1}, ValueError, "weight_decay: expected", "-1.0"),
    "flag": (adagrad, {"maximize": 1}, TypeError, "maximize: expected True or False, received 1"),
    "scale": (adagrad, {"scale": 0}, ValueError, "scale: expected a finite number > 0", "0.0"),
    "unknown": (adagrad, {"lr_decay": 0.1}, TypeError, "lr_decay"),
    "overflow": (
        sgd,
        {"lr": 1e30, "weight_decay": 1e300, "decoupled": True},
        ValueError,
        "weight_decay: expected a finite 1 - lr * weight_decay",
    ),
}


@pytest.mark.parametrize(
    ("call", "options", "exception", "words"),
    rows({name: (*row[:3], row[3:]) for name, row in OPTIONS.items()}),
)
def test_option_is_refused(call, options, exception, words):
    w, g, s = np.ones(3), np.ones(3), np.ones(3)
    with refused(exception, *words, keeps=(w, g, s)):
        call(w, g, s, **options)
    with refused(exception, *words, keeps=(w, g, s)):
        call([w], [g], [s], **options)


def test_eps_that_float32_sees_as_zero():
    w, g, s = np.ones(3, np.float32), np.ones(3), np.zeros(3, np.float32)
    words = "eps: expected", "received 1e-46, which float32 arrays see as 0.0"
    with refused(ValueError, *words, keeps=(w, s)):
        adagrad(w, g, s, eps=1e-46)
    with refused(ValueError, *words, keeps=(w, s)):
        adagrad([np.ones(1), w], [np.ones(1), g], [np.ones(1), s], eps=1e-46)
    adagrad(np.ones(1), np.ones(1), np.ones(1), eps=1e-46)


def test_a_mapping_is_no_list_of_arrays():
    w = {"a": np.ones(2)}
    with refused(TypeError, "param: expected", "received dict", "thalweg.Adagrad", keeps=w):
        tw.adagrad_(w, {"a": np.ones(2)}, {"a": np.ones(2)}, lr=0.1)
    with refused(TypeError, "param: expected", "received dict", "thalweg.SGD", keeps=w):
        tw.sgd_(w, {"a": np.ones(2)}, lr=0.1)


@pytest.mark.parametrize("form", ["heavy_ball", "classic", "ema"])
def test_a_velocity_takes_part_without_momentum(form):
    w, v, g = np.ones(3), np.full(3, 7.0), np.full(3, 0.5)
    expected_w, expected_v = w.copy(), v.copy()
    reference.sgd(expected_w, g, expected_v, 1, lr=0.1, form=form)
    tw.sgd_(w, g, v, lr=0.1, form=form)
    assert_same_bits(w, expected_w)
    assert_same_bits(v, expected_v)
