"""Arbitrary objects thrown at the core: whatever happens, it is a Python exception."""

import pickle
import warnings

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.lib.stride_tricks import as_strided

import thalweg as tw
from refusing import frozen
from thalweg import _core


class Moody:
    """A number that cannot be had twice."""

    asked = False

    def __float__(self):
        self.asked = not self.asked
        if self.asked:
            raise OSError("not now")
        return 0.5


ARRAYS = st.sampled_from(
    [
        np.zeros(3),
        np.zeros((0, 3)),
        np.zeros((3, 2), np.float32).T,
        np.zeros(3, np.float16),
        np.array(1.0),
        np.zeros(3, int),
        np.ma.zeros(3),
        np.zeros(3, object),
        as_strided(np.zeros(1), (3,), (0,)),
        as_strided(np.zeros(0), (2**40, 0), (2**50, 8)),
    ]
)
ATOMS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-2, 3),
    st.floats(),
    st.complex_numbers(),
    st.text(max_size=3),
    st.binary(max_size=3),
    st.sampled_from([object(), len, np.ndarray, tw.SGD, Moody(), iter([1]), ..., range(3)]),
    st.sampled_from(["sgd", "heavy_ball", "adagrad_outside", "lr", "eps", "baseline", "params"]),
    ARRAYS,
)
HASHABLE = st.one_of(st.none(), st.integers(-2, 3), st.text(max_size=2), st.sampled_from("ab"))
ANYTHING = st.recursive(
    ATOMS,
    lambda child: st.one_of(
        st.lists(child, max_size=3),
        st.lists(child, max_size=3).map(tuple),
        st.dictionaries(HASHABLE, child, max_size=3),
    ),
    max_leaves=6,
)
LEAF = st.tuples(st.sampled_from("ab"), ARRAYS, st.integers(0, 1))
OPTIONS = st.dictionaries(st.sampled_from(["lr", "momentum", "eps", "scale", "x"]), ATOMS)
KERNEL = st.sampled_from(["sgd", "ema", "adagrad_inside", "nope"])
FUZZ = settings(
    max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), database=None
)


def survives(call, *args, **kwargs):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return call(*args, **kwargs)
        except SystemError:  # an error that was set and not raised, or the reverse
            raise
        except Exception:
            return None


@FUZZ
@given(st.one_of(st.lists(ANYTHING, max_size=8), st.tuples(KERNEL, *[st.lists(ANYTHING)] * 2)))
def test_fuzz_apply(args):
    survives(_core.apply, *args)


@FUZZ
@given(KERNEL, *[st.lists(ARRAYS, max_size=3)] * 3, OPTIONS, st.booleans())
def test_fuzz_apply_to_arrays(kernel, params, grads, states, options, numbered):
    copies = ([np.array(a, a.dtype, copy=a.size < 99) for a in each] for each in (params, states))
    params, states = copies
    survives(_core.apply, kernel, params, grads, states, "state", options, numbered)


@FUZZ
@given(
    ANYTHING,
    st.one_of(st.lists(LEAF, max_size=3), ANYTHING),
    st.one_of(st.lists(st.tuples(KERNEL, OPTIONS), max_size=2), ANYTHING),
    ANYTHING,
    ANYTHING,
)
def test_fuzz_optimizer(tree, leaves, groups, bound, grads):
    opt = survives(_core.Optimizer, tree, leaves, groups, bound)
    if opt is not None:
        survives(opt.step)
        survives(opt.step, grads, scale=0.5, partial=True)


PARAMS = {"a": np.ones(3), "b": [np.array(1.0), np.zeros((0, 3))]}
OPT = tw.SGD(PARAMS, 0.0, 0.5)


@FUZZ
@given(
    st.one_of(
        ANYTHING,
        st.fixed_dictionaries({}, optional={"a": ANYTHING, "b": ANYTHING, "c": ANYTHING}),
        st.fixed_dictionaries({"a": ARRAYS, "b": st.tuples(ATOMS, ATOMS)}),
    ),
    st.dictionaries(st.sampled_from(["grads", "scale", "partial", "lr"]), ANYTHING, max_size=2),
)
def test_fuzz_step(grads, keywords):
    before = frozen([list(OPT._arrays.values()), OPT.state])
    if survives(OPT.step, grads, **keywords) is None:
        assert frozen([list(OPT._arrays.values()), OPT.state]) == before


@FUZZ
@given(ANYTHING, st.dictionaries(st.sampled_from(["lr", "momentum", "form", "grads"]), ANYTHING))
def test_fuzz_construction(params, options):
    opt = survives(tw.SGD, params, **options)
    if opt is not None:
        survives(repr, opt)
        survives(pickle.dumps, opt)
        survives(opt.step, params)
