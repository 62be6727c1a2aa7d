"""NumPy's scalars and 0-d arrays are taken wherever Python's numbers, flags and keys are."""

import numpy as np
import pytest

import thalweg as tw
from bits import assert_same_bits
from refusing import refused

WHOLE = [np.int8(3), np.int64(3), np.uint16(3), np.uint64(3)]
NUMBERS = [
    *(kind(0.5) for kind in (np.float16, np.float32, np.float64, np.longdouble)),
    np.array(0.5),
]
FLAGS = [np.True_, np.False_, np.bool_(True)]

FLAG_OPTIONS = {
    "nesterov": (tw.SGD, {"momentum": 0.9}),
    "decoupled": (tw.SGD, {"weight_decay": 0.1}),
    "maximize": (tw.Adagrad, {}),
}


@pytest.mark.parametrize("flag", FLAGS, ids=repr)
@pytest.mark.parametrize("name", FLAG_OPTIONS)
def test_flags(name, flag):
    rule, others = FLAG_OPTIONS[name]
    made = []
    for value in (flag, bool(flag)):
        w = np.ones(3)
        opt = rule(w, **others, **{name: value})
        group = rule([{"params": w.copy(), name: value}], **others)
        for each in (opt.param_groups[0], group.param_groups[0]):
            assert each[name] is bool(flag)
        if name != "nesterov":
            opt.param_groups[0][name] = value
        opt.step(np.full(3, 0.25))
        made.append((w, repr(opt), opt.state_dict()["groups"]))
    assert_same_bits(made[0][0], made[1][0])
    assert made[0][1:] == made[1][1:]


@pytest.mark.parametrize("flag", FLAGS, ids=repr)
def test_flags_of_calls(flag):
    w = {"a": np.ones(2), "b": np.ones(2)}
    opt = tw.SGD([{"params": w, "frozen": flag}])
    assert opt.param_groups[0]["frozen"] is bool(flag)
    group = tw.SGD([{"params": np.ones(1)}])
    group.add_group({"params": np.ones(2), "maximize": flag})
    assert group.param_groups[1]["maximize"] is bool(flag)
    given = {"nesterov": flag, "decoupled": flag, "maximize": flag, "weight_decay": 0.5}
    made = []
    for options in (
        given,
        {k: bool(v) if isinstance(v, np.bool_) else v for k, v in given.items()},
    ):
        p, v = np.ones(2), np.zeros(2)
        assert tw.sgd_(p, np.ones(2), v, lr=0.5, momentum=0.5, **options)
        made.append((p, v))
    assert_same_bits(made[0][0], made[1][0])
    assert_same_bits(made[0][1], made[1][1])


def test_partial():
    w = {"a": np.ones(2), "b": np.ones(2)}
    opt = tw.SGD(w)
    assert opt.step({"a": np.ones(2)}, partial=np.True_)
    with refused(ValueError, "partial=True", keeps=opt):
        opt.step({"a": np.ones(2)}, partial=np.False_)


@pytest.mark.parametrize("whole", WHOLE, ids=lambda x: type(x).__name__)
def test_whole_numbers(whole, tmp_path):
    keeper = tw.CheckpointKeeper(tmp_path, keep=whole, every=whole)
    opt = tw.SGD({whole: np.ones(2), "b": [np.ones(1)]}, lr=1.0)
    assert list(opt.state) == ["3", "b.0"]
    for _ in range(3):
        assert opt.step({3: np.ones(2), "b": [np.ones(1)]})
    assert opt.step({np.int32(3): np.ones(2), "b": [np.ones(1)]})
    assert keeper.save(opt)
    schedules = tw.schedules
    for made, same in (
        (schedules.Step(0.1, every=whole), schedules.Step(0.1, every=3)),
        (schedules.Cosine(0.1, steps=whole), schedules.Cosine(0.1, steps=3)),
        (schedules.MultiStep(0.1, [whole]), schedules.MultiStep(0.1, [3])),
        (schedules.Cosine(0.1, steps=np.array(whole)), schedules.Cosine(0.1, steps=3)),
    ):
        assert made == same
        assert repr(made) == repr(same)
    assert schedules.Cosine(0.1, steps=10)(whole) == schedules.Cosine(0.1, steps=10)(3)
    before = tw.get_num_threads()
    try:
        tw.set_num_threads(whole)
        assert tw.get_num_threads() == 3
    finally:
        tw.set_num_threads(before)


@pytest.mark.parametrize("number", NUMBERS, ids=lambda x: f"{type(x).__name__}")
def test_numbers(number):
    opt = tw.SGD(np.ones(2), number, number, dampening=number, weight_decay=number, max_norm=number)
    same = tw.SGD(np.ones(2), 0.5, 0.5, dampening=0.5, weight_decay=0.5, max_norm=0.5)
    opt.norm_eps = opt.max_value = same.norm_eps = same.max_value = 0.5
    opt.norm_eps = opt.max_value = number
    assert repr(opt) == repr(same)
    assert opt.step(np.ones(2), scale=number)
    assert tw.schedules.Constant(number)(0) == 0.5
    assert tw.schedules.Exponential(number, number) == tw.schedules.Exponential(0.5, 0.5)
    ada = tw.Adagrad(
        np.ones(2), number, eps=number, lr_decay=number, initial_accumulator_value=number
    )
    assert ada.param_groups[0]["eps"] == 0.5
    w = np.ones(2)
    assert tw.sgd_(w, np.ones(2), lr=number, weight_decay=number, scale=number, max_norm=number)
    opt.lr = number
    assert opt.lr == 0.5
    opt.lr = lambda t: number
    assert opt.step(np.ones(2))


def test_what_numpys_scalars_are_not():
    """A flag is no number and no key, a number no flag."""
    with refused(TypeError, "lr: expected ", keeps=[]):
        tw.SGD(np.ones(2), lr=np.True_)
    for number in (np.int64(1), np.float64(1), 1):
        with refused(TypeError, "maximize: expected True or False", keeps=[]):
            tw.SGD(np.ones(2), maximize=number)
        with refused(TypeError, "nesterov: expected True or False", keeps=[]):
            tw.SGD(np.ones(2), momentum=0.5, nesterov=number)
    for key in (np.True_, np.float64(1), True):
        with refused(TypeError, "expected keys that are str or int", keeps=[]):
            tw.SGD({key: np.ones(2)})
