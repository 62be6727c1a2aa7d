"""Arrays and containers that are refused: DESIGN.md section 4, row by row."""

import numpy as np
import pytest
from numpy.lib.stride_tricks import as_strided

import thalweg as tw
from refusing import RULES, refused, rows


def read_only(array):
    array.flags.writeable = False
    return array


class Tensor:
    """Looks like torch's to the message."""

    def detach(self):
        raise AssertionError("nothing is converted behind the caller's back")


class Frame:
    """Looks like a pandas object to the message."""

    def to_numpy(self):
        raise AssertionError("nothing is converted behind the caller's back")


FLOAT = "expected float32 or float64 in native byte order"
ARRAY = "expected a NumPy array, received "
APART = "expected an array whose elements are apart in memory, received one of "

BAD_PARAMS = {
    "read-only": (
        lambda: read_only(np.ones(3)),
        ValueError,
        ["expected a writeable array, received a read-only one", "joblib, Ray and JAX"],
    ),
    "broadcast": (
        lambda: np.broadcast_to(np.float32(1), (3,)),
        ValueError,
        ["expected a writeable array, received a read-only one"],
    ),
    "int64": (lambda: np.ones(3, np.int64), TypeError, [FLOAT, "received dtype int64", "astype"]),
    "uint8": (lambda: np.ones(3, np.uint8), TypeError, [FLOAT, "received dtype uint8"]),
    "bool": (lambda: np.ones(3, bool), TypeError, [FLOAT, "received dtype bool"]),
    "float16": (lambda: np.ones(3, np.float16), TypeError, [FLOAT, "received dtype float16"]),
    "complex": (lambda: np.ones(3, complex), TypeError, [FLOAT, "received dtype complex128"]),
    "longdouble": (
        lambda: np.ones(3, np.longdouble),
        TypeError,
        [FLOAT, f"received dtype {np.dtype(np.longdouble)}"],
    ),
    "object": (lambda: np.ones(3, object), TypeError, [FLOAT, "received dtype object"]),
    "byte-swapped": (
        lambda: np.ones(3, np.dtype(np.float32).newbyteorder()),
        TypeError,
        [FLOAT, f"received dtype {np.dtype(np.float32).newbyteorder()}"],
    ),
    "structured": (lambda: np.ones(3, [("x", "f4")]), TypeError, [FLOAT, "received dtype [('x'"]),
    "string": (lambda: np.array(["1.0"]), TypeError, [FLOAT, "received dtype <U3"]),
    "datetime": (lambda: np.zeros(3, "M8[s]"), TypeError, [FLOAT, "received dtype datetime64[s]"]),
    "masked": (lambda: np.ma.ones(3), TypeError, [ARRAY + "a masked array; pass its .data"]),
    "float": (lambda: 1.0, TypeError, [ARRAY + "float; a number cannot change in place"]),
    "int": (lambda: 1, TypeError, [ARRAY + "int; a number cannot change in place"]),
    "NumPy scalar": (lambda: np.float32(1), TypeError, [ARRAY + "float32"]),
    "None": (lambda: None, TypeError, [ARRAY + "None"]),
    "str": (lambda: "W", TypeError, [ARRAY + "str"]),
    "set": (lambda: {1.0}, TypeError, [ARRAY + "set"]),
    "tensor": (lambda: Tensor(), TypeError, [ARRAY, "Tensor; pass its .detach().numpy()"]),
    "data frame": (lambda: Frame(), TypeError, [ARRAY, "Frame; pass np.array(p), a copy"]),
    "generator": (
        lambda: (x for x in [np.ones(3)]),
        TypeError,
        ["expected an array or a list, tuple or mapping", "received a generator", "list(...)"],
    ),
    "dict values": (
        lambda: {"a": np.ones(3)}.values(),
        TypeError,
        ["expected an array or a list, tuple or mapping", "received a dict_values", "list(...)"],
    ),
    "stride 0": (
        lambda: as_strided(np.ones(1), (3,), (0,)),
        ValueError,
        [APART + "overlapping elements, shape (3,) and strides (0,)", "np.array(a)"],
    ),
    "overlapping windows": (
        lambda: as_strided(np.ones(9), (4, 3), (16, 8)),
        ValueError,
        [APART + "overlapping elements, shape (4, 3) and strides (16, 8)"],
    ),
    "half an element apart": (
        lambda: as_strided(np.ones(3), (3,), (4,)),
        ValueError,
        [APART + "overlapping elements, shape (3,) and strides (4,)"],
    ),
    "too involved": (
        lambda: as_strided(np.ones(2**22), (2**10, 2**10 + 2), (24, 16)),
        ValueError,
        [APART + "strides too involved to tell"],
    ),
}


@pytest.mark.parametrize(("make", "exception", "words"), rows(BAD_PARAMS))
@pytest.mark.parametrize("rule", RULES)
def test_param_is_refused(rule, make, exception, words):
    bad, good = make(), np.ones(2)
    with refused(exception, 'params["layers.1.W"]: ', *words, keeps=(bad, good)):
        rule({"first": good, "layers": [good[:0], {"W": bad}]})


@pytest.mark.parametrize(("make", "exception", "words"), rows(BAD_PARAMS))
def test_lone_param_is_refused(make, exception, words):
    bad = make()
    with refused(exception, "params: ", *words, keeps=bad):
        tw.SGD(bad)


SHARED = {
    "same array": (lambda w: (w, w), "share memory"),
    "same memory": (lambda w: (w, w.view()), "share memory"),
    "reversed": (lambda w: (w, w[::-1]), "share memory"),
    "transposed": (lambda w: (w, w.T), "share memory"),
    "one element": (lambda w: (w.ravel()[:9], w.ravel()[8:]), "share memory"),
    "half an element": (lambda w: (w.ravel()[:1], byte_offset(w, 4)), "share memory"),
    "crossing strides": (lambda w: (w.ravel()[::2], w.ravel()[::3]), "share memory"),
    "float32 in float64": (lambda w: (w, w.ravel().view(np.float32)[::7]), "share memory"),
    "inside the gaps of two": (lambda w: (w[:, :2], w[:, 2:], w[2, 1:3]), "share memory"),
}


def byte_offset(w, by):
    return np.frombuffer(w.data.cast("B")[by : by + 8], np.float64)


@pytest.mark.parametrize(("cut", "word"), rows(SHARED))
@pytest.mark.parametrize("rule", RULES)
def test_params_that_share_memory_are_refused(rule, cut, word):
    base = np.ones((6, 4))
    arrays = cut(base)
    with refused(ValueError, 'params["', "expected memory of its own", word, "copy", keeps=base):
        rule(list(arrays))


def test_both_of_the_params_that_share_memory_are_named():
    w = np.ones(4)
    with refused(ValueError, 'params["x.0"]', 'params["y"]', keeps=w):
        tw.SGD({"x": [w[:3]], "y": w[2:], "z": np.ones(3)})


@pytest.mark.parametrize("rule", RULES)
def test_interleaved_params_and_gradients_are_accepted(rule):
    base = np.ones((8, 4))
    params = [base[::2, 0], base[1::2, 0], base[:, 1], base[:, 2][::-1]]
    assert rule(params).step([base[1::2, 3], base[::2, 3], base[:, 3], base[:, 3]])
    assert (base[:, :3] < 1).all()
    assert (base[:, 3] == 1).all()


def test_empty_arrays_share_no_memory():
    w = np.ones(3)
    assert tw.SGD([w, w[:0], w[3:]]).step([np.ones(3), w[:0], w[1:1]])


READS = "expected float16, float32 or float64 in native byte order"
GRADIENT = "expected a NumPy array of float16, float32 or float64, or None to skip it, received "
SHAPE = 'expected shape (3,), that of params["b"], received shape '
BAD_GRADIENTS = {
    "int32": (lambda: np.ones(3, np.int32), TypeError, READS, "received dtype int32", "astype"),
    "uint8": (lambda: np.ones(3, np.uint8), TypeError, READS, "received dtype uint8"),
    "bool": (lambda: np.ones(3, bool), TypeError, READS, "received dtype bool"),
    "complex": (lambda: np.ones(3, np.complex64), TypeError, READS, "received dtype complex64"),
    "longdouble": (lambda: np.ones(3, np.longdouble), TypeError, READS, "received dtype "),
    "object": (lambda: np.ones(3, object), TypeError, READS, "received dtype object"),
    "byte-swapped": (lambda: np.ones(3, ">f4"), TypeError, READS, "received dtype >f4"),
    "structured": (lambda: np.ones(3, [("x", "f4")]), TypeError, READS, "received dtype [('x'"),
    "string": (lambda: np.array(list("abc")), TypeError, READS, "received dtype <U1"),
    "void": (lambda: np.zeros(3, "V4"), TypeError, READS, "received dtype |V4"),
    "masked": (lambda: np.ma.ones(3), TypeError, GRADIENT + "a masked array; pass its .data"),
    "list": (
        lambda: [1.0, 1.0, 1.0],
        TypeError,
        GRADIENT + "list; pass np.array(..., float) of it",
    ),
    "float": (lambda: 1.0, TypeError, GRADIENT + "float", "its param 0-d"),
    "NumPy scalar": (lambda: np.float32(1), TypeError, GRADIENT + "float32"),
    "generator": (lambda: (x for x in ()), TypeError, GRADIENT + "generator"),
    "str": (lambda: "abc", TypeError, GRADIENT + "str"),
    "dict": (dict, TypeError, GRADIENT + "dict"),
    "tensor": (Tensor, TypeError, GRADIENT, "Tensor; pass its .detach().numpy()"),
    "shorter": (lambda: np.ones(2), ValueError, SHAPE + "(2,)"),
    "longer": (lambda: np.ones(4), ValueError, SHAPE + "(4,)"),
    "row": (lambda: np.ones((1, 3)), ValueError, SHAPE + "(1, 3)"),
    "column": (lambda: np.ones((3, 1)), ValueError, SHAPE + "(3, 1)"),
    "0-d": (lambda: np.array(1.0), ValueError, SHAPE + "()"),
    "empty": (lambda: np.ones(0), ValueError, SHAPE + "(0,)"),
}


@pytest.mark.parametrize(
    ("make", "exception", "words"),
    rows({name: (row[0], row[1], row[2:]) for name, row in BAD_GRADIENTS.items()}),
)
@pytest.mark.parametrize("rule", RULES)
def test_gradient_is_refused(rule, make, exception, words):
    params = {"a": np.ones((2, 2)), "b": np.ones(3, np.float32), "c": np.ones(5)}
    opt = rule(params)
    good = {"a": np.ones((2, 2)), "b": np.ones(3), "c": np.ones(5)}
    opt.step(good)
    bad = good | {"b": make()}
    for grads in (bad, dict(reversed(bad.items()))):
        with refused(exception, 'grads["b"]: ', *words, keeps=(opt, bad)):
            opt.step(grads)
    with refused(exception, 'grads["b"]: ', *words, keeps=(params, bad)):
        rule(params, grads=bad)


@pytest.mark.parametrize("grad", [1, True, 1j, np.longdouble(1), np.int64(1), "1", [1.0]], ids=repr)
def test_gradient_of_a_0d_param_is_refused(grad):
    opt = tw.SGD(np.array(1.0))
    with refused(TypeError, "grads: " + GRADIENT + type(grad).__name__, keeps=opt):
        opt.step(grad)


@pytest.mark.parametrize("rule", RULES)
def test_gradient_that_shares_memory_is_refused(rule):
    base = np.ones((6, 4))
    params = {"a": base[:, 1], "b": base[:3, 2]}
    opt = rule(params)
    (slot,) = opt.state["a"].keys() - {"step"}
    a, b = (opt.state[name][slot] for name in "ab")
    good = {"a": np.ones(6), "b": np.ones(3)}
    shared = [
        ("a", params["a"], 'params["a"]'),
        ("a", params["a"][::-1], 'params["a"]'),
        ("a", base[:, 2], 'params["b"]'),
        ("b", base[0, 1:], 'params["'),
        ("b", base[2::-1, 1], 'params["a"]'),
        ("a", a, 'state["a"]'),
        ("a", a.view(), 'state["a"]'),
        ("b", a[1:4], 'state["a"]'),
        ("b", b, 'state["b"]'),
    ]
    for name, grad, other in shared:
        bad = good | {name: grad}
        words = f'grads["{name}"]: expected memory of its own', other, "share memory", "np.array"
        with refused(ValueError, *words, keeps=(opt, base, bad)):
            opt.step(bad)
        if "params" in other:
            with refused(ValueError, *words, keeps=(opt, base, bad)):
                rule(params, grads=bad)


def test_a_subclass_cannot_talk_its_way_past_the_overlap_check():
    class Denies(np.ndarray):
        def __array_function__(self, func, types, args, kwargs):
            return False

    w = np.ones(4)
    opt = tw.SGD(w)
    with refused(ValueError, "grads: ", "params share memory", keeps=opt):
        opt.step(w.view(Denies))


def test_memory_that_takes_too_long_to_tell_apart_is_refused():
    # Whether any sum of these strides meets the param is a subset-sum problem.
    steps = np.random.default_rng(0).integers(2**19, 2**20, 22)
    base = np.empty(steps.sum() + 1)  # never touched: the system gives it no pages
    grad = as_strided(base, (2,) * 22, 8 * steps)
    opt = tw.SGD([base[base.size // 2 :][:1], as_strided(np.ones(2**22), (2,) * 22)])
    with refused(ValueError, 'grads["1"]: ', "may share memory", "too involved to tell", keeps=opt):
        opt.step([None, grad])
