"""Names, containers and calls that are refused, and arrays that changed between two steps."""

import warnings

import numpy as np
import pytest

import thalweg as tw
from refusing import RULES, filled, refused, rows

BAD_NAMES = {
    "dotted": ({"a.b": 0, "a": {"b": 1}}, ValueError, 'params["a.b"]: expected one array of this'),
    "int and str": ({0: 0, "0": 1}, ValueError, 'params["0"]: expected one array of this name'),
    "list and key": ({"a": [0], "a.0": 1}, ValueError, "received two"),
    "bool key": ({True: 0}, TypeError, "params: expected keys that are str or int, received True"),
    "float key": ({"a": {1.5: 0}}, TypeError, 'params["a"]: expected keys that are str or int'),
    "tuple key": ({("a", 1): 0}, TypeError, "received ('a', 1)"),
    "bytes key": ({b"a": 0}, TypeError, "received b'a'"),
    "None key": ({None: 0}, TypeError, "received None"),
    "no params": ([], ValueError, "params: expected at least one array, received none"),
    "empty tree": ({"a": [], "b": {}}, ValueError, "expected at least one array, received none"),
}


@pytest.mark.parametrize(("tree", "exception", "words"), rows(BAD_NAMES))
def test_names_are_refused(tree, exception, words):
    arrays = [np.ones(2), np.ones(3)]

    with refused(exception, words, keeps=arrays):
        tw.SGD(filled(tree, arrays))


def test_params_that_contain_themselves_are_refused():
    loop = [np.ones(2)]
    loop.append(loop)
    with pytest.raises((RecursionError, ValueError)):
        tw.SGD(loop)


CONTAINERS = {
    "list for mapping": ({"a": 0}, lambda g: [g], TypeError, "a mapping with the keys 'a'", "list"),
    "array for mapping": ({"a": 0}, lambda g: g, TypeError, "'a'", "an array of shape (3,)"),
    "None for mapping": ({"a": 0}, lambda g: None, TypeError, "keys 'a'", "None"),
    "mapping for list": ([0], lambda g: {"0": g}, TypeError, "a list or tuple of 1 items", "dict"),
    "array for list": ([0], lambda g: g, TypeError, "list or tuple", "an array of shape (3,)"),
    "None for list": ([0, 1], lambda g: None, TypeError, "list or tuple of 2 items", "None"),
    "str for list": ([0], lambda g: "g", TypeError, "list or tuple", "str"),
    "set for list": ([0], lambda g: {1}, TypeError, "list or tuple", "set"),
    "generator": ([0], lambda g: (x for x in [g]), TypeError, "generator; pass list(...) of it"),
    "iterator": ({"a": 0}, lambda g: iter({"a": g}), TypeError, "keys", "pass list(...) of it"),
    "values": ([0], lambda g: {"a": g}.values(), TypeError, "dict_values; pass list(...) of it"),
    "too short": ([0, 1], lambda g: [g], ValueError, "grads: expected 2 items", "received 1;"),
    "too long": ([0], lambda g: [g, g], ValueError, "grads: expected 1 items", "received 2;"),
    "empty list": ([0], lambda g: [], ValueError, "expected 1 items", "received 0; None stands"),
    "missing": ({"a": 0, "b": 1}, lambda g: {"a": g}, ValueError, 'grads["b"]: ', "key is missing"),
    "unknown": ({"a": 0}, lambda g: {"a": g, "c": g}, ValueError, "keys 'a', ", "unknown key 'c'"),
    "other name": ({"a": 0}, lambda g: {"A": g}, ValueError, 'grads["a"]: expected', "received no"),
    "str for int": ({0: 0}, lambda g: {"0": g}, ValueError, 'grads["0"]: ', "the key is missing"),
    "nested missing": (
        {"x": [{"a": 0, "b": 1}]},
        lambda g: {"x": [{"b": g}]},
        ValueError,
        'grads["x.0.a"]: ',
    ),
    "nested kind": (
        {"x": [{"a": 0}]},
        lambda g: {"x": [[g]]},
        TypeError,
        'grads["x.0"]: expected a mapping with the keys \'a\', as params["x.0"] is, received list',
    ),
    "nested length": ({"x": [0, 1]}, lambda g: {"x": [g]}, ValueError, 'grads["x"]: expected 2'),
    "group without list": (
        [{"params": {"W": 0}}],
        lambda g: {"W": g},
        TypeError,
        "grads: expected a list or tuple of 1 items, as params is, received dict",
    ),
    "group's own": (
        [{"params": 0}, {"params": {"W": 1}}],
        lambda g: [g, {"V": g}],
        ValueError,
        'grads["1.W"]: ',
    ),
}


@pytest.mark.parametrize(
    ("tree", "make", "exception", "words"),
    rows({name: (*row[:3], row[3:]) for name, row in CONTAINERS.items()}),
)
def test_container_of_gradients_is_refused(tree, make, exception, words):
    arrays = [np.ones(3), np.ones(3)]

    opt = tw.SGD(filled(tree, arrays), 0.1, 0.9)
    for act in (opt.step, lambda grads: tw.SGD(filled(tree, arrays), grads=grads)):
        if make(0) is None and act != opt.step:
            continue  # grads=None binds nothing
        with refused(exception, "grads", "expected", *words, keeps=opt):
            act(make(np.ones(3)))


def test_unknown_keys_are_refused_with_partial_too():
    opt = tw.SGD({"a": np.ones(3), "b": {"c": np.ones(3)}})
    g = np.ones(3)
    for bad in ({"a": g, "d": g}, {"b": {"c": g, "d": g}}, {"d": g}):
        with refused(ValueError, "received the unknown key 'd'", keeps=opt):
            opt.step(bad, partial=True)


def test_long_lists_of_keys_are_cut_short():
    opt = tw.SGD({f"w{i}": np.ones(1) for i in range(30)})
    with refused(TypeError, "'w0', 'w1', 'w2'", "'w7', ... (30 in all)", keeps=opt):
        opt.step([])


CALLS = {
    "no gradients": ((), {}, "expected gradients, received none, and no buffers are bound"),
    "scale alone": ((), {"scale": 2.0}, "call step(grads), or bind buffers once with grads=..."),
    "two": ((1, 2), {}, "expected at most 1 positional argument, received 2"),
    "twice": ((1,), {"grads": 1}, "received grads twice"),
    "unknown": ((1,), {"lr": 1}, "expected the arguments grads, scale and partial, received 'lr'"),
}


@pytest.mark.parametrize(("args", "kwargs", "words"), rows(CALLS))
def test_call_of_step_is_refused(args, kwargs, words):
    opt = tw.SGD(np.ones(3))
    with refused(TypeError, "step: ", words, keeps=opt):
        opt.step(*args, **kwargs)


@pytest.mark.parametrize("bound", [False, True])
def test_one_bad_gradient_of_fifty(bound):
    rng = np.random.default_rng(0)
    params = [rng.normal(size=k % 4 + 1) for k in range(50)]
    opt = tw.SGD(params, 0.1, 0.9)
    opt.step([np.ones(w.shape) for w in params])
    for k in range(50):
        grads = [np.ones(w.shape, (np.float64, np.float32)[i % 2]) for i, w in enumerate(params)]
        grads[k] = grads[k][:, None]
        words = f'grads["{k}"]: expected shape {params[k].shape}', f"shape {grads[k].shape}"
        with refused(ValueError, *words, keeps=(opt, grads)):
            if bound:
                tw.SGD(params, grads=grads)
            else:
                opt.step(grads)


def quietly(change):
    """NumPy deprecates some of these one after the other; the danger remains."""

    def act(w):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            change(w)

    return act


def move(w):
    """Unpickled, it lies in the bytes that came in, while its old memory still stands."""
    w.__setstate__(w.copy().__reduce__()[2])


def setter(name, value):
    return quietly(lambda w: setattr(w, name, value))


CHANGES = {
    "longer": (lambda w: w.resize((16, 32), refcheck=False), "received shape (16, 32)"),
    "elsewhere": (move, "received another buffer"),
    "empty": (lambda w: w.resize((0, 16), refcheck=False), "received shape (0, 16)"),
    "shape": (setter("shape", (8, 32)), "received shape (8, 32) and strides (256, 8)"),
    "dimensions": (setter("shape", (256,)), "received shape (256,) and strides (8,)"),
    "strides": (setter("strides", (8, 128)), "received shape (16, 16) and strides (8, 128)"),
    "read-only": (lambda w: w.setflags(write=False), "received a read-only array"),
    "dtype": (setter("dtype", np.int64), "received dtype int64"),
    "dtype's size": (setter("dtype", np.float32), "received dtype float32"),
    "dtype's order": (setter("dtype", np.dtype(">f8")), "received dtype >f8"),
}


@pytest.mark.parametrize(("change", "words"), rows(CHANGES))
@pytest.mark.parametrize("name", ["a", "c"])
@pytest.mark.parametrize("rule", RULES)
def test_param_that_changed_between_steps(rule, name, change, words):
    params = {name: np.ones((16, 16)) for name in "abc"}
    grads = {name: np.full((16, 16), 2.0) for name in "abc"}
    opt = rule(params, grads=grads)
    opt.step()
    change(params[name])
    said = f'params["{name}"]: expected the memory it had', words, "make a new optimizer"
    for args in ((), (grads,)):
        with refused(RuntimeError, *said, keeps=(opt, grads)):
            opt.step(*args)


def test_every_param_of_fifty_that_changed():
    for k in range(50):
        params = [np.ones(3) for _ in range(50)]
        opt = tw.SGD(params)
        params[k].flags.writeable = False
        with refused(RuntimeError, f'params["{k}"]: ', "received a read-only array", keeps=opt):
            opt.step([np.ones(3)] * 50)
        params[k].flags.writeable = True
        assert opt.step([np.ones(3)] * 50)


def test_bound_gradients_are_checked_at_every_step():
    w, g = np.ones(4), np.ones(4)
    opt = tw.SGD([w, np.ones(2)], grads=[g, np.ones(2)])
    assert opt.step()
    quietly(lambda g: setattr(g, "shape", (2, 2)))(g)
    with refused(ValueError, 'grads["0"]: expected shape (4,)', "received shape (2, 2)", keeps=opt):
        opt.step()


def test_a_misspelt_key_is_named():
    opt = tw.SGD({"weight": np.ones(2), "bias": np.ones(1)})
    words = 'grads["weight"]: expected', "missing, and 'wieght' is no key of params"
    with refused(ValueError, *words, keeps=opt):
        opt.step({"wieght": np.ones(2), "bias": np.ones(1)})


def test_params_that_contain_themselves():
    params = [np.ones(2)]
    params.append(params)
    with refused(ValueError, "does it contain itself?"):
        tw.SGD(params)
