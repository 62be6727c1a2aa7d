"""Options by pattern, frozen groups, groups added later, and copies of all of it."""

import copy
import inspect
import pickle

import numpy as np
import pytest

import thalweg as tw
from bits import assert_same_bits
from refusing import frozen, refused, rows
from rules import RULES
from thalweg import _core
from twin import Twin


def A(*shape):
    return np.ones(shape)


def lr_by_name(opt):
    """The learning rate of each array."""
    return {
        name: opt.param_groups[i]["lr"] for name, i in zip(opt.state, opt._group_of, strict=True)
    }


MATCHES = {
    "all": (["*"], {"0.a.W": 1, "0.a.b": 1, "0.b": 1, "0.c.b": 1, "0.W1": 1}),
    "ends": (["*.b"], {"0.a.W": 0, "0.a.b": 1, "0.b": 1, "0.c.b": 1, "0.W1": 0}),
    "one": (["0.a.b"], {"0.a.W": 0, "0.a.b": 1, "0.b": 0, "0.c.b": 0, "0.W1": 0}),
    "set": (["0.[!ac]*"], {"0.a.W": 0, "0.a.b": 0, "0.b": 1, "0.c.b": 0, "0.W1": 1}),
    "any": (["0.W?"], {"0.a.W": 0, "0.a.b": 0, "0.b": 0, "0.c.b": 0, "0.W1": 1}),
    "later wins": (["*", "*.b"], {"0.a.W": 1, "0.a.b": 2, "0.b": 2, "0.c.b": 2, "0.W1": 1}),
    "later hides": (["*.b", "*"], {"0.a.W": 2, "0.a.b": 2, "0.b": 2, "0.c.b": 2, "0.W1": 2}),
    "three": (["*b", "0.a*", "*W*"], {"0.a.W": 3, "0.a.b": 2, "0.b": 1, "0.c.b": 1, "0.W1": 3}),
}


@pytest.mark.parametrize(("patterns", "expected"), rows(MATCHES))
def test_a_pattern_matches_the_names_of_arrays(patterns, expected):
    """Rule k has lr k + 1; lr 0 where none matches."""
    tree = {"a": {"W": A(2), "b": A(2)}, "b": A(2), "c": {"b": A(2)}, "W1": A(2)}
    matches = [{"match": pattern, "lr": k + 1} for k, pattern in enumerate(patterns)]
    assert lr_by_name(tw.SGD([{"params": tree}, *matches], 0.0)) == expected
    # Where they stand among the groups does not matter, only their own order.
    assert lr_by_name(tw.SGD([*matches, {"params": tree}], 0.0)) == expected


def test_every_matching_rule_adds_its_options():
    groups = [
        {"params": {"W": A(2), "b": A(2)}, "weight_decay": 0.5, "lr": 0.25},
        {"params": {"W": A(2), "b": A(2)}, "momentum": 0.5},
        {"match": "*.b", "weight_decay": 0.0, "maximize": True},
        {"match": "1.*", "nesterov": True, "momentum": 0.75},
    ]
    opt = tw.SGD(groups, 1.0, weight_decay=0.125)
    names = "lr", "weight_decay", "maximize", "momentum", "nesterov"
    found = {
        name: tuple(opt.param_groups[i][option] for option in names)
        for name, i in zip(opt.state, opt._group_of, strict=True)
    }
    assert found == {
        "0.W": (0.25, 0.5, False, 0.0, False),
        "0.b": (0.25, 0.0, True, 0.0, False),
        "1.W": (1.0, 0.125, False, 0.75, True),
        "1.b": (1.0, 0.0, True, 0.75, True),
    }
    assert [list(opt.state[name]) for name in opt.state] == [
        ["step"],
        ["step"],
        ["velocity", "step"],
        ["velocity", "step"],
    ]
    # A group's params are those it governs: by name where a pattern had a say, else its tree.
    assert opt.param_groups[0]["params"] == {"0.W": groups[0]["params"]["W"]}
    assert opt.param_groups[2]["params"] == {"0.b": groups[0]["params"]["b"]}


@pytest.mark.parametrize("kernel", ["heavy_ball", "adagrad_inside"])
def test_matched_arrays_step_as_the_reference_does(kernel, level):
    rng = np.random.default_rng(1)
    rule = RULES[kernel]
    start = {name: rng.standard_normal(40) for name in ("0.W", "0.b", "1.W", "1.b")}
    w = {name: x.copy() for name, x in start.items()}
    body = [{"params": {key: w[f"{i}.{key}"] for key in "Wb"}} for i in (0, 1)]
    matches = [{"match": "*.b", "weight_decay": 0.0}, {"match": "1.*", "lr": lambda t: 0.5**t}]
    opt = rule.make([*body, *matches], level, weight_decay=0.25, max_norm=1.0)
    options = {
        name: {"weight_decay": 0.0 if name[2] == "b" else 0.25}
        | ({"lr": lambda t: 0.5**t} if name[0] == "1" else {})
        for name in start
    }
    twin = Twin(rule, start, options, max_norm=1.0)
    for _ in range(3):
        grads = {name: rng.standard_normal(40) for name in start}
        assert opt.step([{key: grads[f"{i}.{key}"] for key in "Wb"} for i in (0, 1)])
        twin.step(grads)
    twin.assert_equals(opt, w)


NO_MATCHES = {
    "nothing": ([{"match": "*.c"}], ValueError, "match: expected a pattern", "received '*.c'"),
    "another case": ([{"match": "*.w"}], ValueError, "one of 0.W, 0.b", "received '*.w'"),
    "the second": ([{"match": "*"}, {"match": "W"}], ValueError, "received 'W'"),
    "no pattern": ([{"match": 3}], TypeError, "match: expected a pattern, a str, received 3"),
    "a list": ([{"match": ["*.b"]}], TypeError, 'params["1.match.0"]: expected a NumPy array'),
    "brackets": ([{"match": "0.[W]]"}], ValueError, "a [ in a name is [[] in a pattern"),
    "misspelt": ([{"match": "*", "lrr": 1}], TypeError, 'params["1.lrr"]: ', "lrr=1"),
    "bad option": ([{"match": "*", "lr": -1}], ValueError, '["lr"]: expected', "received -1"),
    "excluded": ([{"match": "*", "dampening": 0.5}], ValueError, "dampening: expected 0 unless"),
}


@pytest.mark.parametrize(
    ("matches", "exception", "words"),
    rows({name: (*row[:2], row[2:]) for name, row in NO_MATCHES.items()}),
)
def test_a_match_that_is_refused(matches, exception, words):
    params = {"W": A(2), "b": A(2)}
    with refused(exception, *words, keeps=params):
        tw.SGD([{"params": params}, *matches])


def test_a_tree_may_have_the_key_match():
    opt = tw.SGD([{"params": A(2)}, {"match": A(2)}])
    assert list(opt.state) == ["0.params", "1.match"]


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_frozen_arrays_are_left_alone(rule, level):
    """Not stepped, not counted, not in the norm; thawed, they go on where they were."""
    rng = np.random.default_rng(2)
    start = {name: rng.standard_normal(50).astype(np.float32) for name in ("0", "1")}
    w = {name: x.copy() for name, x in start.items()}
    opt = rule.make([{"params": w["0"]}, {"params": w["1"]}], level, max_norm=0.5)
    options = {"0": {}, "1": {}}
    twin = Twin(rule, start, options, max_norm=0.5)
    for is_frozen in (True, False, True, True, False):
        opt.param_groups[1]["frozen"] = options["1"]["frozen"] = is_frozen
        before = frozen([w["1"], opt.state["1"]])
        grads = {name: rng.standard_normal(50) for name in start}
        assert opt.step(list(grads.values()))
        twin.step(grads)
        twin.assert_equals(opt, w)
        assert (frozen([w["1"], opt.state["1"]]) == before) == is_frozen
    assert [opt.state[name]["step"] for name in "01"] == [5, 2]


def test_what_is_frozen_is_not_read():
    """No gradient is needed or looked at, and the array may be anywhere by now."""
    w = {"a": A(2), "b": A(2)}
    groups = [{"params": w}, {"match": "*.b", "frozen": True}]
    opt = tw.SGD(groups, 0.5)
    for second in ({"a": A(2)}, {"a": A(2), "b": None}, {"a": A(2), "b": "text"}):
        assert opt.step([second])
    assert opt.step([{"a": A(2), "b": w["b"]}])  # no overlap, because nothing is written
    assert (w["a"] == -1).all()
    assert (w["b"] == 1).all()
    w["b"].flags.writeable = False
    assert opt.step([{"a": A(2)}])
    opt.param_groups[1]["frozen"] = False
    with refused(RuntimeError, 'params["0.b"]: expected the memory it had', keeps=opt):
        opt.step([{"a": A(2), "b": A(2)}])
    w["b"].flags.writeable = True
    with refused(ValueError, 'grads["0.b"]: expected a gradient, received none', keeps=opt):
        opt.step([{"a": A(2)}])
    with refused(ValueError, "unknown key 'c'", keeps=opt):
        opt.step([{"a": A(2), "b": A(2), "c": A(2)}])
    assert opt.step([{"a": A(2), "b": A(2)}])
    assert opt.state["0.b"]["step"] == 1


def test_frozen_in_other_ways():
    opt = tw.Adagrad({"a": A(2), "b": {"c": A(2)}})
    opt.param_groups[0]["frozen"] = True
    before = frozen(list(opt._arrays.values()))
    assert opt.step({})
    assert opt.step({"b": {}})
    assert frozen(list(opt._arrays.values())) == before
    assert opt.step_count == 2
    # Bound gradients may leave out what is frozen from the start.
    w = [A(2), A(2)]
    bound = tw.SGD([{"params": w[0]}, {"params": {"b": w[1]}, "frozen": True}], grads=[A(2), {}])
    assert bound.step()
    assert (w[1] == 1).all()
    with refused(ValueError, 'grads["1.b"]: expected a gradient', keeps=w):
        tw.SGD([{"params": w[0]}, {"params": {"b": w[1]}}], grads=[A(2), {}])


def test_lr_zero_is_not_frozen():
    """It runs the formula: the state moves, and NaN is what NumPy makes of it."""
    w = A(2)
    opt = tw.SGD(w, 0.0, 0.5)
    opt.step(np.array([3.0, np.nan]))
    assert w[0] == 1
    assert np.isnan(w[1])
    assert opt.state[""]["velocity"][0] == 3
    assert opt.state[""]["step"] == 1


@pytest.mark.parametrize("kernel", ["heavy_ball", "adagrad_outside"])
def test_add_group(kernel, level):
    """The new arrays start as an optimizer's own; the others go on."""
    rng = np.random.default_rng(3)
    rule = RULES[kernel]
    start = {"0.W": rng.standard_normal(40), "1": rng.standard_normal(33).astype(np.float32)}
    w = {name: x.copy() for name, x in start.items()}
    opt = rule.make([{"params": {"W": w["0.W"]}, "lr": 0.5}], level, max_norm=1.0)
    options = {"0.W": {"lr": 0.5}, "1": {"weight_decay": 0.25}}
    twin = Twin(rule, start, options, max_norm=1.0)
    for t in range(4):
        if t == 2:
            opt.add_group({"params": w["1"], "weight_decay": 0.25})
            assert list(opt.state) == ["0.W", "1"]
            assert opt.param_groups[1]["params"] is w["1"]
        grads = {"0.W": rng.standard_normal(40)} | ({"1": rng.standard_normal(33)} if t > 1 else {})
        opt.step([{"W": grads["0.W"]}, *([grads["1"]] if t > 1 else [])])
        twin.step(grads)
    twin.assert_equals(opt, w)


def test_an_added_group_has_the_constructors_options():
    """Not those of another group, and not what was set since."""
    opt = tw.SGD([{"params": A(2), "lr": 0.5, "frozen": True}], 0.25, weight_decay=0.125)
    opt.param_groups[0]["maximize"] = True
    opt.add_group({"params": {"b": A(2)}, "momentum": 0.5})
    group = opt.param_groups[1]
    assert dict(group) == dict(tw.SGD(A(2), 0.25, 0.5, weight_decay=0.125).param_groups[0])
    assert list(opt.state) == ["0", "1.b"]
    opt.add_group({"params": [A(3)]})
    assert list(opt.state) == ["0", "1.b", "2.0"]
    assert opt.step([None, {"b": A(2)}, (A(3),)])


W = A(4)
ADDITIONS = {
    "not a mapping": (None, TypeError, 'add_group: expected a mapping with "params"'),
    "no params": ({"lr": 0.1}, TypeError, "add_group: expected a mapping"),
    "a match": ({"match": "*", "lr": 0.1}, TypeError, "add_group: expected a mapping"),
    "no option": ({"params": A(2), "eps": 0.1}, TypeError, "expected an array, or for a group one"),
    "no array": ({"params": []}, ValueError, "params: expected at least one array"),
    "generator": ({"params": (x for x in [A(2)])}, TypeError, "pass list(...) of it"),
    "integers": (
        {"params": [A(2), np.arange(3)]},
        TypeError,
        'params["1.1"]: expected float32 or float64',
    ),
    "the same": ({"params": W}, ValueError, "share memory"),
    "overlap": ({"params": [A(2), W[1:3]]}, ValueError, 'params["1.1"]', "share memory"),
    "tail": ({"params": [A(2), W[:0], W[2:]]}, ValueError, "share memory"),
    "bad lr": ({"params": A(2), "lr": -1}, ValueError, 'param_groups[1]["lr"]: expected a finite'),
    "excluded": ({"params": A(2), "dampening": 0.5}, ValueError, "dampening: expected 0 unless"),
    "float32 limit": ({"params": A(2).astype("f4")}, ValueError, "max_value: ", "see as inf"),
    "key": ({"params": {None: A(2)}}, TypeError, "expected keys that are str or int"),
}


@pytest.mark.parametrize(
    ("group", "exception", "words"),
    rows({name: (*row[:2], row[2:]) for name, row in ADDITIONS.items()}),
)
def test_an_addition_that_is_refused(group, exception, words):
    opt = tw.SGD([{"params": W}], 0.5, max_value=1e39)
    before = len(opt.param_groups), list(opt.state), list(opt._kernels), list(opt._group_of)
    with refused(exception, *words, keeps=opt):
        opt.add_group(group)
    assert before == (len(opt.param_groups), list(opt.state), opt._kernels, opt._group_of)
    W[:] = 1
    assert opt.step([A(4)])
    assert (W == 0.5).all()
    opt.add_group({"params": A(2)})
    assert opt.step([A(4), A(2)])


def test_additions_that_have_no_place():
    said = "add_group: expected an optimizer made with groups, received one made with a tree"
    for params in (A(2), {"a": A(2)}, [A(2)]):
        opt = tw.SGD(params)
        with refused(ValueError, said, keeps=opt):
            opt.add_group({"params": A(2)})
    bound = tw.SGD([{"params": A(2)}], grads=[A(2)])
    with refused(ValueError, "add_group: ", "one with bound buffers", keeps=bound):
        bound.add_group({"params": A(2)})
    assert bound.step()


def test_a_gradient_that_meets_an_added_param():
    """Its address was found free before the group came."""
    g = A(2)
    opt = tw.SGD([{"params": A(2)}])
    opt.step([g])
    opt.add_group({"params": g})
    with refused(ValueError, 'grads["0"]: expected memory of its own', 'params["1"]', keeps=opt):
        opt.step([g, A(2)])


COPIES = {
    "pickle": lambda both: pickle.loads(pickle.dumps(both)),
    "deepcopy": copy.deepcopy,
}


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
@pytest.mark.parametrize("kernel", ["heavy_ball_nesterov", "adagrad_inside"])
def test_copies_keep_everything(copied, kernel):
    rng = np.random.default_rng(4)
    params = [{"W": rng.standard_normal(9), "b": rng.standard_normal(3)}, rng.standard_normal(5)]
    groups = [
        {"params": params[0], "lr": 0.5},
        {"match": "*.b", "weight_decay": 0.25, "frozen": True},
    ]
    limits = {"max_norm": 0.75, "max_value": 0.5, "on_nonfinite": "skip"}
    opt = RULES[kernel].make(groups, _core.isa, **limits)
    opt.step([{"W": np.full(9, np.nan)}])
    opt.step([{"W": rng.standard_normal(9)}])
    opt.add_group({"params": params[1], "maximize": True})
    opt.step([{"W": rng.standard_normal(9)}, rng.standard_normal(5)])
    opt.param_groups[1]["frozen"] = False

    twins = copied((params, opt))
    for other_params, other in ((params, opt), twins):
        assert (other.max_norm, other.max_value, other.on_nonfinite) == tuple(limits.values())
        assert (other.step_count, other.skipped_steps) == (2, 1)
        assert other._arrays["0.b"] is other_params[0]["b"]
        assert other.param_groups[2]["params"] is other_params[1]
        # A pattern is no group of its own for the gradients, and one more group has its defaults.
        added = {"params": np.arange(4.0)}
        other.add_group(added)
        assert list(other.state) == ["0.W", "0.b", "1", "2"]
        assert other.param_groups[3]["lr"] == 0.1
        assert not other.param_groups[3]["frozen"]
        for seed in (5, 6):
            made = np.random.default_rng(seed)
            grads = [made.standard_normal(n) for n in (9, 3, 5, 4)]
            assert other.step([{"W": grads[0], "b": grads[1]}, grads[2], grads[3]])
    assert [dict(g.options()) for g in opt.param_groups] == [
        dict(g.options()) for g in twins[1].param_groups
    ]
    assert opt.grad_norm == twins[1].grad_norm
    for name, array in opt._arrays.items():
        assert_same_bits(array, twins[1]._arrays[name], name)
        for slot, value in opt.state[name].items():
            assert np.array_equal(value, twins[1].state[name][slot])
    assert repr(opt) == repr(twins[1])


def test_a_step_is_one_native_call():
    """Whatever the groups: nothing in Python stands between the caller and the core."""
    for rule in (tw.SGD, tw.Adagrad):
        assert rule.step is _core.Optimizer.step
        assert inspect.ismethoddescriptor(rule.step)
    opt = tw.SGD([{"params": {"a": A(2), "b": A(2)}}, {"match": "*.a", "frozen": True}])
    opt.add_group({"params": A(2)})
    assert "step" not in vars(opt)
    assert type(opt.step).__name__ == "builtin_function_or_method"


def test_a_buffer_that_was_not_bound():
    w = {"a": A(2), "b": A(2)}
    groups = [{"params": w}, {"match": "0.b", "frozen": True}]
    opt = tw.SGD(groups, 0.5, grads=[{"a": A(2)}])
    assert opt.step()
    opt.param_groups[1]["frozen"] = False
    for one in (opt, copy.deepcopy(opt), pickle.loads(pickle.dumps(opt)), opt):
        with refused(ValueError, 'grads["0.b"]: expected a buffer', "was frozen", keeps=one):
            one.step()
        one.param_groups[1]["frozen"] = True
        assert one.step()
        one.param_groups[1]["frozen"] = False


def test_what_is_no_group_to_add():
    opt = tw.SGD([{"params": A(2)}])
    for group, *words in [
        ({"params": A(3), "lrr": 0.1}, 'params["1.lrr"]', "received lrr=0.1"),
        ({"params": A(3), "lrr": len}, 'params["1.lrr"]', "received lrr=<built-in function len>"),
        ({"params": A(3), "lrr": A(3)}, "expected the options lr, momentum", "received 'lrr'"),
        ({"match": "*", "lr": 0.1}, "received ['match', 'lr']; patterns", "is made with"),
        ([A(3)], 'add_group: expected a mapping with "params"', "received list"),
    ]:
        with refused(TypeError, *words, keeps=opt):
            opt.add_group(group)


def test_the_norm_of_the_last_step_is_kept():
    opt = tw.SGD(A(4), max_norm=1.0)
    assert copy.deepcopy(opt).grad_norm is None
    opt.step(A(4))
    assert copy.deepcopy(opt).grad_norm == pickle.loads(pickle.dumps(opt)).grad_norm == 2.0
