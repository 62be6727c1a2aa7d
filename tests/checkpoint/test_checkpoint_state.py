"""state_dict and back: all of it, or an error that says all and nothing changed."""

import copy
import math
from dataclasses import fields, is_dataclass
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import thalweg as tw
from refusing import frozen, refused
from resuming import Course, bits
from rules import RULES
from strategies import checked
from thalweg import schedules as s

each_rule = pytest.mark.parametrize("kernel", RULES)

SCHEDULES = [
    s.Constant(0.5),
    s.Exponential(0.5, 0.75),
    s.InverseSqrt(0.5),
    s.InverseTime(0.5, 0.25),
    s.Step(0.5, 3, 0.25),
    s.MultiStep(0.5, [1, 4, 4], 0.25),
    s.Polynomial(0.5, 7, 2.5, 0.125),
    s.Cosine(0.1, 7, 0.3),
    s.CosineRestarts(0.5, 3, 2, 0.125),
    s.CosineRestarts(0.5, 3),
    s.OneCycle(0.5, 10, 0.25, 3.0, 7.0),
    s.Warmup(s.Cosine(0.5, 7), 3, 0.25),
    s.Sequence([s.Warmup(s.Warmup(s.Constant(0.1), 2), 3), s.Step(0.2, 2)], [3]),
    s.Warmup(s.Sequence([s.Constant(1), s.Sequence([s.InverseSqrt(0.5)], [])], [2]), 5),
]


def plain(value):
    """Whether it is made of dicts, lists, numbers, words and arrays only."""
    if isinstance(value, dict):
        return all(type(key) is str for key in value) and all(map(plain, value.values()))
    if type(value) is list:
        return all(map(plain, value))
    return value is None or type(value) in (bool, int, float, str, np.ndarray)


def pair(momentum=0.9, **options):
    """Two params of two groups with a state that is not zero."""
    params = {"a": np.arange(4.0), "b": np.ones((2, 3), np.float32)}
    opt = tw.SGD([{"params": params}, {"params": np.ones(2), "lr": 0.25}], 0.5, momentum, **options)
    opt.step([{"a": np.ones(4), "b": np.ones((2, 3))}, np.ones(2)])
    return opt


@each_rule
def test_a_state_dict_brings_everything_but_the_params_back(kernel):
    course = Course(kernel).start().run(0, 42)
    found = course.opt.state_dict()
    assert plain(found)
    again = Course(kernel, 42)
    for name, param in again.opt._arrays.items():
        param[...] = course.opt._arrays[name]
    again.opt.load_state_dict(found)
    assert again.all() == course.all()
    assert again.run(42).all() == course.run(42).all()
    assert again.opt.param_groups[1]["weight_decay"] is course.opt.param_groups[1]["weight_decay"]


def test_a_state_dict_is_a_copy():
    opt = pair()
    opt.lr = s.MultiStep(0.5, [1, 2])
    found = opt.state_dict()
    before = copy.deepcopy(found)
    opt.step([{"a": np.ones(4), "b": np.ones((2, 3))}, np.ones(2)])
    opt.lr, opt.max_norm = 0.125, 1.0
    assert frozen({**found, "arrays": None}) == frozen({**before, "arrays": None})
    for name, array in before["arrays"].items():
        assert bits(found["arrays"][name]["velocity"]) == bits(array["velocity"])
    opt.load_state_dict(found, options="file")
    after = {name: dict(slots) for name, slots in opt.state.items()}
    for array in found["arrays"].values():
        array["velocity"][...] = 77
    found["groups"][0]["lr"]["fields"]["milestones"].append(9)
    for name, slots in after.items():
        assert bits(slots["velocity"]) == bits(before["arrays"][name]["velocity"])
    assert opt.lr == s.MultiStep(0.5, [1, 2])


def test_every_schedule_has_its_turn():
    made = {name for name, x in vars(s).items() if is_dataclass(x) and x.__module__ == s.__name__}
    assert {type(schedule).__name__ for schedule in SCHEDULES} == made


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda x: type(x).__name__)
def test_schedules_by_name_and_fields(schedule, tmp_path):
    opt = pair()
    for group in opt.param_groups:
        group["lr"], group["momentum"], group["weight_decay"] = schedule, s.Constant(0.5), schedule
    found = opt.state_dict()
    assert plain(found)
    described = found["groups"][1]["lr"]
    assert described["schedule"] == type(schedule).__name__
    assert set(described["fields"]) == {field.name for field in fields(schedule) if field.init}
    tw.save_checkpoint(tmp_path / "a", opt)
    opt.load_state_dict(pair().state_dict(), options="file")
    assert opt.param_groups[0]["lr"] == 0.5
    for load in (opt.load_state_dict, lambda _, **o: tw.load_checkpoint(tmp_path / "a", opt, **o)):
        load(found, options="file")
        for group in opt.param_groups:
            assert (group["lr"], group["momentum"]) == (schedule, s.Constant(0.5))
            assert [group["weight_decay"](t) for t in range(12)] == list(map(schedule, range(12)))
        opt.load_state_dict(pair().state_dict(), options="file")


class Cosine:
    """Another one's, of the name of ours."""

    def __call__(self, t):
        return 0.5


@pytest.mark.parametrize(
    "callable_", [abs, Cosine(), lambda t: 0.5], ids=["builtin", "own", "lambda"]
)
def test_any_other_callable_stays_the_live_one(callable_):
    opt = pair()
    opt.param_groups[0]["lr"] = callable_
    found = opt.state_dict()
    assert found["groups"][0]["lr"] == "callable"
    opt.load_state_dict(found, options="file")
    assert opt.param_groups[0]["lr"] is callable_
    opt.param_groups[0]["lr"] = schedule = s.Constant(0.125)
    opt.load_state_dict(found, options="file")
    assert opt.param_groups[0]["lr"] is schedule
    opt.param_groups[0]["lr"] = 0.125
    with refused(ValueError, "groups[0].lr", "callable", "0.125", keeps=opt):
        opt.load_state_dict(found, options="file")
    around = s.Warmup(callable_, 3)
    opt.param_groups[0]["lr"] = around
    found = opt.state_dict()
    opt.load_state_dict(found, options="file")
    assert opt.param_groups[0]["lr"] is around
    opt.param_groups[0]["lr"] = s.Warmup(callable_, 4)
    with refused(ValueError, "groups[0].lr", "same form", keeps=opt):
        opt.load_state_dict(found, options="file")


def test_numbers_are_those_of_the_file():
    """Flags, limits and what a state started from among them."""
    kept = {"frozen": True, "decoupled": True, "maximize": True, "weight_decay": 0.125}
    limits = {"max_norm": 3.0, "max_value": 0.5, "on_nonfinite": "raise"}
    sgd = (tw.SGD, {"momentum": 0.75, "lr": 0.5}, {"momentum": 0.5})
    adagrad = (tw.Adagrad, {"lr_decay": 0.5, "initial_accumulator_value": 2.0, "lr": 0.5}, {})
    for rule, others, start in (sgd, adagrad):
        saved = rule([{"params": np.ones(2), **kept}], **others, **limits)
        opt = rule([{"params": np.ones(2)}], **start)
        opt.load_state_dict(saved.state_dict(), options="file")
        options = opt.param_groups[0].options()
        assert options == saved.param_groups[0].options()
        assert {name: options[name] for name in kept | others} == kept | others
        assert {name: getattr(opt, name) for name in limits} == limits
        opt.load_state_dict(rule([{"params": np.ones(2)}], **start).state_dict(), options="file")
        assert (opt.max_norm, opt.max_value, opt.on_nonfinite) == (None, None, "propagate")
        assert opt.param_groups[0]["frozen"] is False


EQUAL = {
    "form": (tw.SGD, {"momentum": 0.9}, {"momentum": 0.9, "form": "ema"}),
    "nesterov": (tw.SGD, {"momentum": 0.9}, {"momentum": 0.9, "nesterov": True}),
    "dampening": (tw.SGD, {"momentum": 0.9}, {"momentum": 0.9, "dampening": 0.5}),
    "eps": (tw.Adagrad, {}, {"eps": 1e-7}),
    "eps_placement": (tw.Adagrad, {}, {"eps_placement": "outside"}),
    "accumulator": (tw.Adagrad, {}, {"accumulator": "row"}),
}


@pytest.mark.parametrize("name", EQUAL)
def test_what_must_be_the_live_ones(name, tmp_path):
    rule, *options = EQUAL[name]
    one, other = (rule([{"params": np.ones(2)}], **each) for each in options)
    for live, saved in ((one, other), (other, one)):
        words = [f"groups[0].{name}", *(repr(x.param_groups[0][name]) for x in (live, saved))]
        with refused(ValueError, *words, keeps=live):
            live.load_state_dict(saved.state_dict(), options="file")
        tw.save_checkpoint(tmp_path / "a", saved)
        with refused(tw.CheckpointError, *words, keeps=live):
            tw.load_checkpoint(tmp_path / "a", live)


def test_all_that_does_not_fit_is_in_one_error():
    params = {name: np.ones((2, 3)) for name in "abcdefg"}
    opt = tw.SGD([{"params": params}, {"params": np.ones(2)}], 0.5, 0.9)
    found = opt.state_dict()
    arrays = found["arrays"]
    arrays["renamed"] = arrays.pop("0.a")
    del arrays["0.b"]
    arrays["0.c"]["velocity"] = np.ones((3, 2))
    arrays["0.d"]["velocity"] = np.ones((2, 3), np.float32)
    arrays["0.e"]["velocity"] = np.ones((2, 3), ">f8")
    arrays["0.f"]["step"] = -1
    arrays["0.g"]["group"] = 1
    arrays["1"]["accumulator"] = arrays["1"].pop("velocity")
    found["step_count"], found["skipped_steps"], found["grad_norm"] = -5, 1.5, "large"
    found["last_lr"] = [0.5]
    found["groups"][0]["nesterov"] = True
    found["groups"][1].pop("lr")
    words = ["0.a", "0.b", "missing", "renamed", "0.c", "(3, 2)", "0.d", "float32", "0.e", ">f8"]
    words += ["0.f", "-1", "0.g", "group 0", "accumulator", "step_count", "-5", "skipped_steps"]
    words += [
        "1.5",
        "grad_norm",
        "large",
        "last_lr",
        "[0.5]",
        "groups[0].nesterov",
        "groups[1]",
        "lr",
    ]
    with refused(ValueError, *words, keeps=(opt, params)):
        opt.load_state_dict(found, options="file")


def test_another_rule_version_or_no_state_dict():
    opt = pair()
    adagrad = tw.Adagrad([np.ones(4)])
    with refused(ValueError, "rule", "SGD", "Adagrad", keeps=opt):
        opt.load_state_dict(adagrad.state_dict(), options="file")
    for version in (0, 3, "1", None, True, [1], np.ones(2)):
        with refused(ValueError, "version: expected 1 or 2", repr(version)[:20], keeps=opt):
            opt.load_state_dict(opt.state_dict() | {"version": version}, options="file")
    for thing in (None, [], "state", 3, opt, np.ones(3)):
        with refused(ValueError, "expected a mapping", type(thing).__name__, keeps=opt):
            opt.load_state_dict(thing, options="file")
    for key in [key for key in opt.state_dict() if key != "last_lr"]:
        found = opt.state_dict()
        del found[key]
        with refused(ValueError, key, keeps=opt):
            opt.load_state_dict(found, options="file")
    with refused(ValueError, "groups: expected 2, received 1", keeps=opt):
        opt.load_state_dict(
            opt.state_dict() | {"groups": opt.state_dict()["groups"][:1]}, options="file"
        )


OUT_OF_RANGE = {
    "lr": [-1.0, math.nan, math.inf, "x", None, [1], {"schedule": "Nope", "fields": {}}],
    "momentum": [1.5, -0.1, math.nan, {"schedule": "Cosine", "fields": {"lr": -1, "steps": 2}}],
    "weight_decay": [-1.0, {"schedule": "Constant", "fields": {"lr": 1, "no": 2}}, {}],
    "frozen": [2, "yes", None],
    "decoupled": ["no"],
    "maximize": [3.5],
}
OUT_OF_RANGE["lr"] += [
    {"schedule": "Cosine"},
    {"schedule": ["Cosine"], "fields": {}},
    {"schedule": "_Range", "fields": {}},
    {"schedule": "Warmup", "fields": {"schedule": "os.system", "steps": 1}},
    {"schedule": "Warmup", "fields": {"schedule": abs, "steps": "x"}},
]
ITSELF = {"schedule": "Warmup", "fields": {"steps": 1}}
ITSELF["fields"]["schedule"] = ITSELF
OUT_OF_RANGE["lr"].append(ITSELF)
LIMITS = {
    "max_norm": [-1.0, 0, math.nan, "x", [1]],
    "max_value": [-1.0, 0, math.nan, {}, 10**400],
    "norm_eps": [-1.0, None, math.nan, "x"],
    "on_nonfinite": ["skipp", None, 1],
}


@pytest.mark.parametrize("where", ["groups", "limits"])
def test_out_of_range_options_are_rolled_back(where):
    opt = pair()
    for name, values in (OUT_OF_RANGE if where == "groups" else LIMITS).items():
        for value in values:
            found = opt.state_dict()
            found["groups"][0] |= {"lr": 0.0625, "weight_decay": 0.5, "maximize": True}
            found["limits"] |= {"max_norm": 7.0, "max_value": 7.0, "on_nonfinite": "skip"}
            for array in found["arrays"].values():
                array["velocity"][...] = 5
            (found["groups"][1] if where == "groups" else found["limits"])[name] = value
            with refused(ValueError, name, keeps=opt):
                opt.load_state_dict(found, options="file")
    found = opt.state_dict()
    found["limits"] = {}
    with refused(ValueError, keeps=opt):
        opt.load_state_dict(found, options="file")


def test_momentum_needs_a_velocity():
    opt = tw.SGD(np.ones(2))
    found = opt.state_dict()
    found["groups"][0]["momentum"] = 0.5
    with refused(ValueError, "momentum", "0.5", "velocity", keeps=opt):
        opt.load_state_dict(found, options="file")


class Pretender:
    """Looks like an array until it is copied."""

    shape, dtype = (4,), np.dtype(float)


GARBAGE = [None, True, -1, 2**63, 10**400, 1.5, math.nan, -1.0, "x", b"x", (), [], {}, {"a": 1}]
GARBAGE += [
    set(),
    object(),
    np.float32(1),
    np.ones(2),
    np.ones(4, object),
    np.array("x"),
    Pretender(),
]
GARBAGE += [[[]], [{}], {"group": 0, "step": 0}, Fraction(10**400), 1j, range(3), Cosine()]


def test_what_only_looks_like_an_array():
    opt = pair()
    found = opt.state_dict()
    found["arrays"]["0.b"]["velocity"] += 1
    found["arrays"]["0.a"]["velocity"] = Pretender()
    with refused(ValueError, "0.a", "Pretender", keeps=opt):
        opt.load_state_dict(found, options="file")


def places(value, path=()):
    yield path
    if isinstance(value, dict):
        for key, each in value.items():
            yield from places(each, (*path, key))
    elif isinstance(value, list):
        for i, each in enumerate(value):
            yield from places(each, (*path, i))


@checked
@given(st.data())
def test_garbage_in_any_place(data):
    """Refused by ValueError with nothing changed, or a value that is as good as the one before."""
    opt = pair()
    opt.param_groups[0]["lr"] = s.Sequence([s.Constant(0.5), s.Warmup(s.Cosine(1, 2), 3)], [4])
    found = opt.state_dict()
    for array in found["arrays"].values():
        array["velocity"] += 1
    for _ in range(data.draw(st.integers(1, 3))):
        path = data.draw(st.sampled_from([path for path in places(found) if path]))
        below = found
        for key in path[:-1]:
            below = below[key]
        below[path[-1]] = copy.deepcopy(data.draw(st.sampled_from(GARBAGE), label=str(path)))
    before = frozen(opt)
    try:
        opt.load_state_dict(found, options="file")
    except ValueError:
        assert frozen(opt) == before
    else:
        for name, array in found["arrays"].items():
            assert bits(opt.state[name]["velocity"]) == bits(array["velocity"])
        opt.step([{"a": np.ones(4), "b": np.ones((2, 3))}, np.ones(2)])


def test_a_state_dict_of_live_views():
    """Arrays that are the optimizer's own, in another order, are read before any is written."""
    w = {"a": np.ones(2), "b": np.ones(2)}
    opt = tw.SGD(w, 0.5, 0.9)
    opt.step({"a": np.full(2, 1.0), "b": np.full(2, 2.0)})
    found = opt.state_dict()
    for mine, other in (("a", "b"), ("b", "a")):
        found["arrays"][mine]["velocity"] = opt.state[other]["velocity"]
    opt.load_state_dict(found, options="file")
    assert [opt.state[name]["velocity"][0] for name in "ab"] == [2.0, 1.0]


def test_the_rates_of_the_last_step():
    """A state_dict of the first version has none."""
    opt = pair()
    opt.param_groups[0]["frozen"] = True
    opt.lr = s.Exponential(0.5, 0.5)
    opt.step([{"a": np.ones(4), "b": np.ones((2, 3))}, np.ones(2)])
    found = opt.state_dict()
    assert plain(found)
    again = pair()
    again.load_state_dict(found, options="file")
    assert again.last_lr == opt.last_lr
    del found["last_lr"]
    again.load_state_dict(found | {"version": 1}, options="file")
    assert again.last_lr == (None, None)
    for wrong in (0.5, [0.5], [0.5] * 3, [-1.0, 0.5], [math.nan, 0.5], ["x", 0.5], {0: 1, 1: 2}):
        with refused(ValueError, "last_lr", keeps=again):
            again.load_state_dict(found | {"last_lr": wrong}, options="file")
