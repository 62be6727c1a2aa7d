"""tw.schedules as values and as options: what they refuse, and an optimizer that follows them."""

import copy
import dataclasses
import math
import os
import pickle
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from test_schedules import EXAMPLES, classes, name_of

import thalweg as tw
from thalweg import schedules
from thalweg.schedules import (
    Constant,
    Cosine,
    CosineRestarts,
    Exponential,
    InverseSqrt,
    InverseTime,
    MultiStep,
    OneCycle,
    Polynomial,
    Sequence,
    Step,
    Warmup,
)


@pytest.mark.parametrize("example", EXAMPLES, ids=name_of)
def test_values_are_plain_floats_within_bounds(example):
    for t in range(30):
        value = example(t)
        assert type(value) is float
        assert 0 <= value <= 0.1 * (1 + 1e-15)
        assert example(t) == value


@pytest.mark.parametrize("example", EXAMPLES, ids=name_of)
def test_is_a_value(example):
    assert eval(repr(example), vars(schedules)) == example
    for twin in (
        pickle.loads(pickle.dumps(example)),
        copy.copy(example),
        copy.deepcopy(example),
        dataclasses.replace(example),
    ):
        assert type(twin) is type(example)
        assert twin == example
        assert hash(twin) == hash(example)
        assert [twin(t) for t in range(30)] == [example(t) for t in range(30)]
    assert len({example, *EXAMPLES}) == len(EXAMPLES)
    assert all(example != other for other in EXAMPLES if other is not example)


@pytest.mark.parametrize("example", EXAMPLES, ids=name_of)
def test_is_frozen(example):
    assert not hasattr(example, "__dict__")
    for field in dataclasses.fields(example):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(example, field.name, 0)


def test_parameters_become_plain():
    exact = float(np.float32(0.1))
    schedule = MultiStep(np.float32(0.1), np.array([2, 5]), np.float64(0.5))
    assert repr(schedule) == f"MultiStep(lr={exact!r}, milestones=(2, 5), gamma=0.5)"
    assert {type(step) for step in schedule.milestones} == {int}
    assert type(schedule(7)) is float
    assert schedule(2) == exact * 0.5
    assert type(Constant(1)(0)) is float
    assert type(CosineRestarts(1, np.int8(100), np.uint8(3)).period) is int
    assert Sequence([Constant(1)], iter([])).schedules == (Constant(1.0),)


RATES = [-1, -1e-300, math.nan, math.inf, -math.inf, 10**400, np.float32("nan")]
NO_NUMBERS = ["0.1", None, True, np.True_, 1j, [0.1], np.array([0.1]), b"1"]
NO_INTEGERS = [1.0, np.float64(2.0), "3", None, False, 1j, [1]]
NO_SCHEDULES = [0.1, None, "Cosine", Cosine, [Constant(1)]]
KIND = {
    "a finite number >= 0": (RATES, NO_NUMBERS),
    "a finite number > 0": ([0, -0.0, *RATES], NO_NUMBERS),
    "a number from 0 to 1": ([-1e-300, 1.0000001, *RATES], NO_NUMBERS),
    "an integer >= 1": ([0, -1, np.int64(-5)], NO_INTEGERS),
    "an integer >= 0": ([-1, np.int64(-5), -(10**30)], NO_INTEGERS),
    "a callable, step -> float": ([], NO_SCHEDULES),
}
WARM = {"schedule": Constant(1), "steps": 5}
REFUSED = [
    (Constant, {}, "lr", "a finite number >= 0"),
    (Exponential, {"gamma": 0.5}, "lr", "a finite number >= 0"),
    (Exponential, {"lr": 1}, "gamma", "a finite number >= 0"),
    (InverseSqrt, {}, "lr", "a finite number >= 0"),
    (InverseTime, {"decay": 1}, "lr", "a finite number >= 0"),
    (InverseTime, {"lr": 1}, "decay", "a finite number >= 0"),
    (Step, {"every": 5}, "lr", "a finite number >= 0"),
    (Step, {"lr": 1}, "every", "an integer >= 1"),
    (Step, {"lr": 1, "every": 5}, "gamma", "a finite number >= 0"),
    (MultiStep, {"milestones": [5]}, "lr", "a finite number >= 0"),
    (MultiStep, {"lr": 1, "milestones": [5]}, "gamma", "a finite number >= 0"),
    (Polynomial, {"steps": 5}, "lr", "a finite number >= 0"),
    (Polynomial, {"lr": 1}, "steps", "an integer >= 1"),
    (Polynomial, {"lr": 1, "steps": 5}, "power", "a finite number > 0"),
    (Polynomial, {"lr": 1, "steps": 5}, "end", "a finite number >= 0"),
    (Cosine, {"steps": 5}, "lr", "a finite number >= 0"),
    (Cosine, {"lr": 1}, "steps", "an integer >= 1"),
    (Cosine, {"lr": 1, "steps": 5}, "end", "a finite number >= 0"),
    (CosineRestarts, {"period": 5}, "lr", "a finite number >= 0"),
    (CosineRestarts, {"lr": 1}, "period", "an integer >= 1"),
    (CosineRestarts, {"lr": 1, "period": 5}, "mult", "an integer >= 1"),
    (CosineRestarts, {"lr": 1, "period": 5}, "end", "a finite number >= 0"),
    (OneCycle, {"steps": 5}, "max_lr", "a finite number >= 0"),
    (OneCycle, {"max_lr": 1}, "steps", "an integer >= 1"),
    (OneCycle, {"max_lr": 1, "steps": 5}, "pct_start", "a number from 0 to 1"),
    (OneCycle, {"max_lr": 1, "steps": 5}, "div", "a finite number > 0"),
    (OneCycle, {"max_lr": 1, "steps": 5}, "final_div", "a finite number > 0"),
    (Warmup, {"steps": 5}, "schedule", "a callable, step -> float"),
    (Warmup, {"schedule": Constant(1)}, "steps", "an integer >= 0"),
    (Warmup, WARM, "start", "a number from 0 to 1"),
]


def message_of(error, call, *arguments, **options):
    with pytest.raises(error) as caught:
        call(*arguments, **options)
    assert type(caught.value) is error
    return str(caught.value)


@pytest.mark.parametrize(("cls", "others", "name", "expected"), REFUSED)
def test_refused_parameter(cls, others, name, expected):
    out_of_range, wrong_kind = KIND[expected]
    for value in out_of_range:
        message = message_of(ValueError, cls, **others, **{name: value})
        assert message == f"{name}: expected {expected}, received {value!r}"
    for value in wrong_kind:
        message = message_of(TypeError, cls, **others, **{name: value})
        assert message.startswith(f"{name}: expected {expected}")
        assert message.endswith(f", received {type(value).__name__} {value!r}")


def test_every_scalar_parameter_is_in_the_table():
    tuples = {(MultiStep, "milestones"), (Sequence, "milestones"), (Sequence, "schedules")}
    parameters = {(x, f.name) for x in classes() for f in dataclasses.fields(x) if f.init}
    assert {(cls, name) for cls, _, name, _ in REFUSED} | tuples == parameters


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: MultiStep(1, [5, 2]),
            ValueError,
            "milestones: expected integers in ascending order, received [5, 2]",
        ),
        (
            lambda: MultiStep(1, [-1, 2]),
            ValueError,
            "milestones: expected an integer >= 0, received -1",
        ),
        (
            lambda: MultiStep(1, [1, 2.0]),
            TypeError,
            "milestones: expected an integer >= 0, received float 2.0",
        ),
        (
            lambda: MultiStep(1, 5),
            TypeError,
            "milestones: expected integers in ascending order, received int 5",
        ),
        (
            lambda: Sequence([Constant(1)] * 3, [5, 2]),
            ValueError,
            "milestones: expected integers in ascending order, received [5, 2]",
        ),
        (
            lambda: Sequence([Constant(1)] * 3, [5]),
            ValueError,
            "milestones: expected 2, one fewer than schedules, received 1: (5,)",
        ),
        (
            lambda: Sequence([], []),
            ValueError,
            "schedules: expected at least one callable, received []",
        ),
        (
            lambda: Sequence(Constant(1), []),
            TypeError,
            "schedules: expected at least one callable, received Constant Constant(lr=1.0)",
        ),
        (
            lambda: Sequence([0.1, Constant(1)], [5]),
            TypeError,
            "schedules: expected a callable, step -> float; "
            "Constant(x) makes one of a number x, received float 0.1",
        ),
    ],
)
def test_refused_collection(make, error, message):
    assert message_of(error, make) == message


@pytest.mark.parametrize("example", EXAMPLES, ids=name_of)
def test_refused_step(example):
    for t in (-1, -(2**70), np.int64(-1), np.int8(-128)):
        message = message_of(ValueError, example, t)
        assert message == f"step: expected an integer >= 0, received {t!r}"
    for t in (1.0, -1.0, math.nan, np.float32(1), "1", None, True, np.True_, 1j, [1]):
        message = message_of(TypeError, example, t)
        assert message == f"step: expected an integer >= 0, received {type(t).__name__} {t!r}"


@pytest.mark.parametrize("example", EXAMPLES, ids=name_of)
@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int64, np.uint64])
def test_numpy_steps_are_steps(example, dtype):
    for t in (0, 3, 127):
        value = example(dtype(t))
        assert type(value) is float
        assert value == example(t)


def test_growth_beyond_a_float_raises():
    for schedule in (Exponential(1, 2), Step(1, 1, 2), Warmup(Exponential(1, 2), 3)):
        assert schedule(1023) == 2.0**1023
        with pytest.raises(OverflowError):
            schedule(1024)


def trajectory(opt, w, set_options, steps=16):
    rng = np.random.default_rng(7)
    path = []
    for t in range(steps):
        set_options(opt.param_groups[0], t)
        assert opt.step(rng.standard_normal(w.shape).astype(w.dtype))
        path.append(w.copy())
    return np.array(path)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("rule", ["SGD", "Adagrad"])
@pytest.mark.parametrize("example", EXAMPLES, ids=name_of)
def test_optimizer_follows_the_schedule(example, rule, dtype):
    """Bit for bit as when the number is set before each step."""
    scheduled = {"lr": example, "weight_decay": CosineRestarts(0.1, 3)}
    if rule == "SGD":
        scheduled["momentum"] = Warmup(Constant(0.9), 5, start=0.5)
    make = getattr(tw, rule)
    w = np.linspace(-1, 1, 9, dtype=dtype)
    array = w.copy()
    by_hand = make(array, **{name: schedule(0) for name, schedule in scheduled.items()})

    def set_numbers(group, t):
        for name, schedule in scheduled.items():
            group[name] = schedule(t)

    expected = trajectory(by_hand, array, set_numbers)
    opt = make(w, **scheduled)
    np.testing.assert_array_equal(trajectory(opt, w, lambda group, t: None), expected)
    assert opt.step_count == 16
    assert opt.lr is example


def test_optimizer_counts_from_zero():
    seen = []
    schedule = Sequence([lambda t: seen.append(t) or 0.5, lambda t: seen.append(-t) or 0.5], [2])
    w = np.zeros(1)
    opt = tw.SGD(w, lr=schedule)
    for _ in range(4):
        opt.step(np.ones(1))
    assert seen == [0, 1, 0, -1]
    assert w == -2.0


def test_lr_decay_of_adagrad_is_inverse_time():
    decayed, scheduled = np.ones(9), np.ones(9)
    ours = tw.Adagrad(decayed, lr=0.3, lr_decay=0.07)
    twin = tw.Adagrad(scheduled, lr=InverseTime(0.3, 0.07))
    path = trajectory(ours, decayed, lambda group, t: None)
    np.testing.assert_array_equal(path, trajectory(twin, scheduled, lambda group, t: None))


@pytest.mark.parametrize(
    ("option", "schedule", "error", "complaint"),
    [
        ("momentum", Sequence([Constant(0.5), Constant(2)], [2]), ValueError, "^momentum"),
        ("lr", Sequence([Constant(0.5), lambda t: math.nan], [2]), ValueError, "^lr"),
        ("weight_decay", Sequence([Constant(0), lambda t: -1], [2]), ValueError, "^weight_decay"),
        ("lr", Sequence([Constant(0.5), Step(1, 1, 1e200)], [0]), OverflowError, "out of range"),
    ],
)
def test_refused_value_changes_nothing(option, schedule, error, complaint):
    w = np.ones(3)
    opt = tw.SGD(w, **{"lr": 0.1, "momentum": 0.5} | {option: schedule})
    opt.step(np.ones(3))
    opt.step(np.ones(3))
    before, velocity = w.copy(), opt.state[""]["velocity"].copy()
    with pytest.raises(error, match=complaint):
        opt.step(np.ones(3))
    np.testing.assert_array_equal(w, before)
    np.testing.assert_array_equal(opt.state[""]["velocity"], velocity)
    assert opt.step_count == 2


def test_optimizer_keeps_its_schedule_through_pickle():
    w = np.ones(3)
    opt = tw.SGD(w, lr=EXAMPLES[-1], momentum=Warmup(Constant(0.9), 5))
    opt.step(np.ones(3))
    twin = pickle.loads(pickle.dumps(opt))
    assert twin.lr == opt.lr
    assert twin.param_groups[0]["momentum"] == opt.param_groups[0]["momentum"]
    assert repr(EXAMPLES[-1]) in repr(opt)


def test_picture(tmp_path):
    script = Path(__file__).parents[2] / "examples" / "schedules.py"
    if not script.exists():
        pytest.skip("needs the sources: examples/ is not beside tests/")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what matplotlib's own imports deprecate is not ours
        pytest.importorskip("matplotlib", reason="needs matplotlib: the extra 'examples'")
    result = subprocess.run(
        [sys.executable, str(script), "--output", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"MPLBACKEND": "Agg"},
    )
    assert result.returncode == 0, result.stderr
    assert all(cls.__name__ in result.stdout for cls in classes())
    picture = (tmp_path / "schedules.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert 10_000 < len(picture) < 100_000
