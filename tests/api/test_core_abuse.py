"""``_core`` raises, whatever it is given; it never brings the interpreter down."""

import pickle
import warnings

import numpy as np
import pytest

import thalweg as tw
from refusing import refused
from thalweg import _core


def made(tree=0, count=1, kernel="heavy_ball", bound=None, **options):
    leaves = [(str(i), np.zeros(3), 0) for i in range(count)]
    return _core.Optimizer(tree, leaves, [(kernel, {"lr": 0.5} | options)], bound)


METHODS = {
    "step": lambda o: o.step(np.zeros(3)),
    "bound step": lambda o: o.step(),
    "step_count": lambda o: o.step_count,
    "is_bound": lambda o: o._is_bound,
    "state": lambda o: o._state_of(0),
    "bound": lambda o: o._bound_of(0),
    "steps": lambda o: o._steps_of(0),
    "get": lambda o: o._get_option(0, "lr"),
    "set": lambda o: o._set_option(0, "lr", 1.0),
    "counters": lambda o: o._set_counters(0, []),
    "level": lambda o: o._use_level("baseline"),
}


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("rule", [_core.Optimizer, tw.SGD, tw.Adagrad])
def test_an_object_whose_init_never_ran(rule, method):
    with pytest.raises(TypeError, match="never initialised; call super"):
        method(rule.__new__(rule))


@pytest.mark.parametrize("rule", [tw.SGD, tw.Adagrad])
def test_an_object_whose_init_failed(rule):
    opt = rule.__new__(rule)
    with pytest.raises(ValueError):
        opt.__init__(np.zeros(3), -1)
    for method in METHODS.values():
        with pytest.raises(TypeError, match="never initialised"):
            method(opt)
    for use in (repr, pickle.dumps, lambda o: o.lr):
        with pytest.raises((AttributeError, TypeError)):
            use(opt)


def test_methods_of_another_object():
    for thing in (None, 1, object(), np.zeros(3), _core.Optimizer):
        with pytest.raises(TypeError):
            _core.Optimizer.step(thing, np.zeros(3))
        with pytest.raises(TypeError):
            _core.Optimizer._state_of(thing, 0)


@pytest.mark.parametrize("tree", [1, 5_000_000, [0, 1], {"a": 7}, [[[9]]], 2**63])
def test_a_tree_whose_leaves_are_not_there(tree):
    with pytest.raises(IndexError):
        made(tree)


def nested(depth):
    tree = 0
    for _ in range(depth):
        tree = [tree]
    return tree


def test_a_tree_that_is_too_deep():
    loop = []
    loop.append(loop)
    for tree in (loop, {"a": loop}, nested(501), nested(100_000)):
        with pytest.raises(ValueError, match="expected nesting of at most 500 levels"):
            made(tree)
    deep = made(nested(500))
    grads = np.ones(3)
    for _ in range(500):
        grads = [grads]
    assert deep.step(grads)
    with pytest.raises((TypeError, ValueError)):
        deep.step(loop)


def test_odd_trees():
    assert made([0, 0, 0]).step([np.ones(3), np.ones(3), None])
    assert made([], 3).step([])
    assert made({0: 0, "a": []}).step({0: np.ones(3), "a": ()})
    for tree in (None, "a", -1, 1.5, object(), (0.5,), {0}):
        with pytest.raises((TypeError, RuntimeError, ValueError)):
            made(tree)
    empty = _core.Optimizer([], [], [], None)
    with pytest.raises(ValueError, match="received none to update"):
        empty.step([])


BAD_LEAVES = [
    [()],
    [("a",)],
    [("a", np.zeros(3))],
    [("a", np.zeros(3), 1)],
    [("a", np.zeros(3), -1)],
    [("a", np.zeros(3), 2**64)],
    [("a", np.zeros(3), None)],
    [(1, np.zeros(3), 0)],
    [("\ud800", np.zeros(3), 0)],
    [np.zeros(3)],
    ["abc"],
    [None],
]


@pytest.mark.parametrize("leaves", BAD_LEAVES, ids=range(len(BAD_LEAVES)))
def test_leaves_of_another_form(leaves):
    with pytest.raises((TypeError, ValueError, IndexError, RuntimeError)):
        _core.Optimizer(0, leaves, [("sgd", {"lr": 0.5})], None)


@pytest.mark.parametrize(
    "group",
    [
        (),
        ("sgd",),
        ("sgd", None),
        ("nope", {}),
        ("", {}),
        (None, {}),
        ("sgd", {"beta": 1.0}),
        ("sgd", {1: 1.0}),
        ("sgd", {"lr": "x"}),
        None,
        "sgd",
    ],
    ids=repr,
)
def test_groups_of_another_form(group):
    with pytest.raises((TypeError, ValueError, IndexError, KeyError, RuntimeError)):
        _core.Optimizer(0, [("a", np.zeros(3), 0)], [group], None)


def test_indices_and_counters_out_of_range():
    opt = made()
    for index in (1, 2**63, 2**64, -1, None, "a", 0.5):
        for call in (opt._state_of, opt._bound_of, opt._steps_of):
            with pytest.raises((IndexError, TypeError)):
                call(index)
        with pytest.raises((IndexError, TypeError)):
            opt._get_option(index, "lr")
        with pytest.raises((IndexError, TypeError)):
            opt._set_option(index, "lr", 1.0)
    for count, steps in ((0, []), (0, [1, 2]), (-1, [0]), (2**64, [0]), (0, [-1]), (0, None)):
        with pytest.raises((ValueError, TypeError)):
            opt._set_counters(count, steps)
    for name in ("beta", "", "form", None, 1):
        with pytest.raises((KeyError, TypeError)):
            opt._get_option(0, name)
        with pytest.raises((KeyError, TypeError)):
            opt._set_option(0, name, 1.0)
    opt._set_counters(2**64 - 1, [2**64 - 1])
    assert opt.step(np.ones(3))


@pytest.mark.parametrize("level", ["nope", "AVX2", "baseline\0", "\ud800", None, 5])
def test_levels_that_are_none(level):
    opt = made()
    with pytest.raises((ValueError, TypeError)):
        opt._use_level(level)
    with pytest.raises((ValueError, TypeError)):
        _core.apply("sgd", [np.zeros(3)], [np.zeros(3)], None, "", {"lr": 1.0}, level=level)
    assert opt.step(np.ones(3))


class Runs:
    """A number whose conversion runs code of the caller's."""

    def __init__(self, action, value=0.5):
        self.action, self.value = action, value

    def __float__(self):
        self.action()
        return self.value


def test_arguments_that_change_while_they_are_read():
    params, grads, states, options = [], [], [], {}

    def empty():
        for each in (params, grads, states, options, leaves, groups):
            each.clear()

    leaves, groups = [], []
    for kernel in ("heavy_ball", "adagrad_inside"):
        params[:], grads[:] = ([np.ones(3) for _ in range(20)] for _ in range(2))
        states[:] = [np.zeros(3) for _ in range(20)]
        options |= {name: Runs(empty) for name in ("lr", "momentum", "eps", "weight_decay")}
        _core.apply(kernel, params, grads, states, "state", options, True)
        leaves[:] = [(str(i), np.ones(3), 0) for i in range(20)]
        options |= {name: Runs(empty) for name in ("lr", "momentum", "eps", "weight_decay")}
        groups[:] = [(kernel, options)]
        opt = _core.Optimizer(list(range(20)), leaves, groups, None)
        assert opt.step([np.ones(3)] * 20)


def test_arrays_that_change_while_options_are_read():
    w, s = np.ones((30, 20)), np.zeros((30, 20))

    def reshape():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            s.shape = (600,)

    grad = np.ones((20, 30)).T
    with refused(ValueError, "state: expected shape (30, 20)", "received shape (600,)"):
        _core.apply("heavy_ball", [w], [grad], [s], "state", {"lr": Runs(reshape)}, False)
    assert (w == 1).all()
    said = "param: expected the memory it had", "received a read-only array"
    options = {"lr": Runs(lambda: w.setflags(write=False))}
    with refused(RuntimeError, *said):
        _core.apply("sgd", [w], [grad], None, "state", options, False)
    assert (w == 1).all()


def test_keys_whose_str_changes_the_tree():
    class Key(str):
        __hash__ = str.__hash__

        def __str__(self):
            tree.clear()
            return "key"

    tree = {Key(f"k{i}"): i for i in range(10)}
    assert made(tree, 10).step({f"k{i}": np.ones(3) for i in range(10)})


def test_an_init_within_the_init():
    opt = tw.SGD.__new__(tw.SGD)
    inner = Runs(lambda: _core.Optimizer.__init__(opt, 0, [("", np.ones(3), 0)], groups, None))
    groups = [("sgd", {"lr": 0.5})]
    with pytest.raises(TypeError, match="initialised twice"):
        _core.Optimizer.__init__(opt, 0, [("", np.ones(3), 0)], [("sgd", {"lr": inner})], None)
    assert opt.step(np.ones(3))


def test_objects_that_lie_about_their_class():
    class Liar:
        @property
        def __class__(self):
            raise RuntimeError("asked")

    class Posing:
        __class__ = np.ma.MaskedArray

    opt = tw.SGD(np.array(1.0))
    for grad in (Liar(), Posing()):
        with refused(TypeError, "grads: expected a NumPy array", keeps=opt):
            opt.step(grad)
        with refused(TypeError, "params: expected a NumPy array"):
            tw.SGD(Posing())
