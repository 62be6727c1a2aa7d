"""sgd_, adagrad_ and their forms by rows as native calls: limits, what is refused, what is not
usual, and how they look."""

import gc
import inspect
import pickle
import re

import numpy as np
import pytest

import reference
import thalweg as tw
from bits import assert_same_bits
from calls import CALLS, ROW_CALLS, call_of, each_call, each_dtype, each_rule
from refusing import frozen, refused
from thalweg import _core


def test_a_row_that_is_not_there_is_refused_and_dense_calls_go_on():
    table, velocity = np.ones((4, 2)), np.zeros((4, 2))
    for ids in ([0, 4], [-1, 0]):
        words = "grad.rows: expected rows from 0 to 3"
        with refused(IndexError, words, keeps=(table, velocity)):
            tw.sgd_rows_(table, np.array(ids), np.ones((2, 2)), velocity, lr=0.1, momentum=0.9)
    assert tw.sgd_(table, np.ones((4, 2)), velocity, lr=0.5, momentum=0.9)
    assert (table == 0.5).all()


LIMITS = {
    "clipped": {"max_norm": 0.5},
    "not clipped": {"max_norm": 1e9},
    "clipped, judged": {"max_norm": 0.5, "on_nonfinite": "skip", "max_value": 0.9},
    "measured": {},
}


@pytest.mark.parametrize("limits", LIMITS.values(), ids=LIMITS)
@pytest.mark.parametrize("sizes", [[6], [16, 0, 40_000], [200_001, 300_000]], ids=str)
@each_dtype
@each_rule
def test_limits_are_the_optimizers(rule, dtype, sizes, limits, at_level, no_way_out):
    rng = np.random.default_rng(4)
    params = [rng.standard_normal(n).astype(dtype) for n in sizes]
    grads = [rng.standard_normal(n).astype(dtype) for n in sizes]
    states = [np.zeros_like(w) for w in params]
    others = [w.copy() for w in params]
    opt = rule.make(others, at_level, **limits)
    norm = np.zeros(1)
    given = states if rule.slot else None
    for _ in range(2):
        assert call_of(rule)(params, grads, given, norm=norm, **limits) is opt.step(grads)
    expected = reference.grad_norm(grads, [dtype] * len(sizes), max_value=limits.get("max_value"))
    assert norm[0] == expected
    for w, other in zip(params, others, strict=True):
        assert_same_bits(w, other)


@each_call
def test_the_norm_of_arrays_in_columns_is_that_of_their_logical_order(call):
    rng = np.random.default_rng(5)
    w, g, s = (np.asfortranarray(rng.standard_normal((50, 700))) for _ in "wgs")
    norm = np.zeros(1)
    assert call(w, g, np.abs(s, order="F"), lr=0.1, norm=norm)
    assert norm[0] == reference.grad_norm([g], [w.dtype])
    assert norm[0] != reference.grad_norm([g.ravel(order="F")], [w.dtype])


@pytest.mark.parametrize("many", [False, True], ids=["one", "list"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@each_call
def test_nonfinite(call, bad, many):
    w, g, s = np.ones(50), np.ones(50), np.zeros(50)
    g[17] = bad
    arrays = ([np.ones(3), w], [np.ones(3), g], [np.zeros(3), s]) if many else (w, g, s)
    norm = np.full(1, 7.0)
    options = {"lr": 0.1, "max_norm": 1.0, "norm": norm}
    before = frozen((arrays, norm))
    assert call(*arrays, on_nonfinite="skip", **options) is False
    assert frozen((arrays, norm)) == before
    path = 'grad["1"]' if many else "grad"
    with refused(FloatingPointError, f"{path}: expected finite", "[17]", keeps=(arrays, norm)):
        call(*arrays, on_nonfinite="raise", **options)
    assert call(*arrays, **options) is True
    assert np.isnan(w[17])


NORMS = {
    "list": ([0.0], TypeError, "received list"),
    "float": (0.0, TypeError, "received float"),
    "float32": (np.zeros(1, np.float32), TypeError, "expected an array of float64"),
    "two": (np.zeros(2), ValueError, "one element"),
    "none": (np.zeros(0), ValueError, "one element"),
}


@pytest.mark.parametrize("case", NORMS)
@each_call
def test_wrong_norms(call, case):
    norm, exception, words = NORMS[case]
    w, g, s = np.ones(3), np.ones(3), np.zeros(3)
    with refused(exception, "norm: ", words, keeps=(w, g, s)):
        call(w, g, s, lr=0.1, norm=norm)


@each_call
def test_a_norm_that_is_not_its_own(call):
    w, g, s = np.ones(3), np.ones(3), np.zeros(3)
    read_only = np.zeros(1)
    read_only.flags.writeable = False
    for norm in (w[:1], s[2:], g[1:2]):
        with refused(ValueError, "share memory", keeps=(w, g, s)):
            call(w, g, s, lr=0.1, norm=norm)
    with refused(ValueError, "norm: ", "writeable", keeps=(w, g, s)):
        call(w, g, s, lr=0.1, norm=read_only)
    assert call(w, g, s, lr=0.1, norm=np.zeros((1, 1)))


def fifty(dtype=np.float64):
    return [[np.full(4, x, dtype) for _ in range(50)] for x in (1.0, 1.0, 0.0)]


def read_only(array):
    array.flags.writeable = False
    return array


# What stands in place of array k of 50: which operand, what, the exception, words of its message.
WRONG = {
    "param int": (0, lambda a: a.astype(int), TypeError, "received dtype int64"),
    "param half": (0, lambda a: a.astype("f2"), TypeError, "received dtype float16"),
    "param shorter": (0, lambda a: a[:3], ValueError, "received shape (4,)"),
    "param read-only": (0, read_only, ValueError, "writeable"),
    "param list": (0, list, TypeError, "received list"),
    "param broadcast": (0, lambda a: np.broadcast_to(a[:1], 4), ValueError, "read-only"),
    "param None": (0, lambda a: None, TypeError, "received None"),
    "grad shorter": (1, lambda a: a[:3], ValueError, "received shape (3,)"),
    "grad two-dimensional": (1, lambda a: a[None], ValueError, "received shape (1, 4)"),
    "grad complex": (1, lambda a: a + 1j, TypeError, "received dtype complex128"),
    "grad swapped": (1, lambda a: a.astype(">f8"), TypeError, "received dtype >f8"),
    "grad list": (1, list, TypeError, "received list"),
    "state narrow": (2, lambda a: a.astype("f4"), TypeError, "received dtype float32"),
    "state longer": (2, lambda a: np.zeros(5), ValueError, "received shape (5,)"),
    "state read-only": (2, read_only, ValueError, "writeable"),
    "state None": (2, lambda a: None, TypeError, "received None"),
}


@pytest.mark.parametrize("known", [False, True], ids=["new", "after a usual call"])
@pytest.mark.parametrize("case", WRONG)
@each_call
def test_array_k_of_50_is_refused(call, case, known):
    operand, wrong, exception, words = WRONG[case]
    for k in range(0, 50, 7):
        arrays = fifty()
        if known:
            call(*arrays, lr=0.1)
        arrays[operand][k] = wrong(arrays[operand][k])
        with refused(exception, f'["{k}"]: expected', words, keeps=arrays):
            call(*arrays, lr=0.1)


@pytest.mark.parametrize("known", [False, True], ids=["new", "after a usual call"])
@each_call
def test_array_k_of_50_shares_memory(call, known):
    for k in range(0, 49, 7):
        for operand, other in ((0, 0), (0, 2), (1, 0), (1, 2), (2, 2), (2, 0)):
            arrays = fifty()
            if known:
                call(*arrays, lr=0.1)
            arrays[operand][k] = arrays[other][k + 1]
            with refused(ValueError, "share memory", keeps=arrays):
                call(*arrays, lr=0.1)


@pytest.mark.parametrize("seed", range(30))
@each_call
def test_what_shares_memory_is_found_in_any_order_of_calls(call, seed):
    """Views of a few buffers at random: the native call refuses what the general way refuses."""
    rng = np.random.default_rng(seed)
    pool = [np.ones(40) for _ in range(6)]
    slot = "velocity" if call is tw.sgd_ else "accumulator"
    kernel = "heavy_ball" if call is tw.sgd_ else "adagrad_inside"
    refusals = 0
    for _ in range(150):
        count = rng.integers(1, 4)
        picked = [
            [pool[rng.integers(6)][8 * (j := rng.integers(5)) : 8 * j + 8] for _ in range(count)]
            for _ in range(3)
        ]
        before = frozen(pool)
        try:
            _core.apply(kernel, *picked, slot, {"lr": 0.0}, True)
        except ValueError:
            refusals += 1
            with refused(ValueError, "share memory", keeps=pool):
                call(*picked, lr=0.5)
        else:
            assert frozen(pool) == before or kernel != "sgd"
            call(*picked, lr=0.5)
    assert refusals > 5


@each_call
def test_memory_given_back_and_taken_again(call):
    """The same addresses in other roles are looked at again."""
    for _ in range(50):
        arrays = fifty()
        assert call(*arrays, lr=0.1)
        del arrays
        gc.collect()
    w, g, s = np.ones(4), np.ones(4), np.zeros(4)
    assert call([w, s], [g, np.ones(4)], [np.zeros(4), np.zeros(4)], lr=0.1)
    with refused(ValueError, "share memory", keeps=(w, g, s)):
        call([w, s], [g, np.ones(4)], [s, np.zeros(4)], lr=0.1)


@each_call
def test_what_a_refused_call_has_seen_of_places_is_not_taken_for_checked(call):
    arrays = fifty()
    assert call(*arrays, lr=0.1)
    arrays[0][3] = arrays[2][7]
    arrays[0][49] = np.ones(4, int)
    with refused(TypeError, 'param["49"]', keeps=arrays):
        call(*arrays, lr=0.1)
    arrays[0][49] = np.ones(4)
    for _ in range(2):
        with refused(ValueError, "share memory", keeps=arrays):
            call(*arrays, lr=0.1)


ARGUMENTS = {
    "no lr": ((3,), {}, "lr"),
    "misspelt": ((3,), {"lr": 0.1, "weight_decy": 0.1}, "weight_decy"),
    "a param twice": ((3,), {"lr": 0.1, "param": np.ones(3)}, "param"),
    "too many": ((4,), {"lr": 0.1}, "positional"),
    "too few": ((1,), {"lr": 0.1}, "grad"),
    "none": ((0,), {"lr": 0.1}, "param"),
}


@pytest.mark.parametrize("case", ARGUMENTS)
@each_call
def test_wrong_arguments(call, case):
    (count,), options, word = ARGUMENTS[case]
    arrays = [np.ones(3) for _ in range(count)]
    with pytest.raises(TypeError, match=re.escape(call.__name__)) as caught:
        call(*arrays, **options)
    assert word in str(caught.value)
    assert all((array == 1).all() for array in arrays)


def test_everything_by_name():
    w, g, v = np.ones(2), np.ones(2), np.zeros(2)
    assert tw.sgd_(velocity=v, lr=0.5, momentum=0.9, grad=g, param=w)
    assert (w == 0.5).all()
    name = "".join(["mo", "mentum"])  # no interned word
    assert tw.sgd_(w, g, v, lr=0.5, **{name: 0.0})
    assert (w == 0).all()


OPTION_VALUES = {
    "lr": [-1.0, np.nan, np.inf, "0.1", None, lambda t: 0.1],
    "weight_decay": [-1e-3, np.inf, 10**400],
    "scale": [0.0, -1, np.nan, None],
    "max_norm": [0.0, -1.0, np.nan, "1"],
    "max_value": [0.0, np.nan],
    "on_nonfinite": ["ignore", None, 1],
    "maximize": [1, None, "yes"],
    "decoupled": [0, "no"],
}


@pytest.mark.parametrize(
    ("option", "value"),
    [(option, value) for option, values in OPTION_VALUES.items() for value in values],
    ids=lambda x: x if isinstance(x, str) else type(x).__name__,
)
@each_call
def test_wrong_options(call, option, value):
    w, g, s = np.ones(3), np.ones(3), np.zeros(3)
    with pytest.raises((TypeError, ValueError), match=f"^{option}: expected"):
        call(w, g, s, **{"lr": 0.1} | {option: value})
    assert (w == 1).all()
    assert (s == 0).all()


def test_code_of_the_callers_among_the_options():
    """It runs before the arrays are looked at for the last time."""

    class Shrinks:
        def __float__(self):
            w.resize(1, refcheck=False)
            return 0.1

    w, g, s = np.ones(3), np.ones(3), np.zeros(3)
    with pytest.raises(RuntimeError, match="param: expected the memory"):
        tw.adagrad_(w, g, s, lr=Shrinks())


def test_they_look_like_functions():
    for call in (*CALLS.values(), *ROW_CALLS.values()):
        signature = inspect.signature(call)
        names = list(signature.parameters)
        assert names[0] == ("table" if "rows" in call.__name__ else "param")
        assert signature.parameters["lr"].default is inspect.Parameter.empty
        assert signature.parameters["lr"].kind is inspect.Parameter.KEYWORD_ONLY
        assert signature.parameters["norm"].default is None
        assert call.__doc__.startswith("Take one step of ")
        assert pickle.loads(pickle.dumps(call)) is call
        assert call.__module__ in ("thalweg.functional", "thalweg.rows")
    assert list(inspect.signature(tw.sgd_).parameters)[4:8] == [
        "momentum",
        "dampening",
        "nesterov",
        "form",
    ]
    with pytest.raises(ValueError, match="received other"):
        _core.native(type("other", (), {}), "()")
