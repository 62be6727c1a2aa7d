"""The schedules: their formulas, torch's values, what they refuse, and an optimizer that uses them.

``python tests/test_schedules.py --record`` writes torch_schedules.npz, which keeps the comparison
with torch alive where torch is not installed.
"""

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

ROOT = Path(__file__).parent.parent
RECORD = Path(__file__).with_name("torch_schedules.npz")

EXAMPLES = [
    Constant(0.1),
    Exponential(0.1, 0.9),
    InverseSqrt(0.1),
    InverseTime(0.1, decay=0.5),
    Step(0.1, every=3, gamma=0.5),
    MultiStep(0.1, milestones=[2, 5, 5, 9], gamma=0.5),
    Polynomial(0.1, steps=12, power=2.0, end=0.01),
    Cosine(0.1, steps=12, end=0.01),
    CosineRestarts(0.1, period=3, mult=2, end=0.01),
    OneCycle(0.1, steps=12),
    Warmup(Cosine(0.1, steps=12), steps=4, start=0.25),
    Sequence([Warmup(Constant(0.1), steps=3), Exponential(0.1, 0.5), Cosine(0.05, 4)], [3, 7]),
    Warmup(Sequence([CosineRestarts(0.1, 2), Warmup(InverseSqrt(0.1), 3)], [5]), 8),
]


def name_of(schedule):
    return type(schedule).__name__


def classes():
    found = [x for x in vars(schedules).values() if dataclasses.is_dataclass(x)]
    return [x for x in found if not x.__name__.startswith("_")]


def test_every_schedule_has_an_example():
    assert {type(example) for example in EXAMPLES} == set(classes())
    assert len(classes()) == 12


# The formulas, each as the issue or the paper writes it: (schedule, value at t, steps).
def half_cosine(x):
    return (1 + math.cos(math.pi * x)) / 2


FORMULAS = [
    (Constant(0.3), lambda t: 0.3, 9),
    (Exponential(0.3, 0.8), lambda t: 0.3 * math.exp(t * math.log(0.8)), 50),
    (InverseSqrt(0.3), lambda t: 0.3 * (t + 1) ** -0.5, 50),
    (InverseTime(0.3, 0.07), lambda t: 0.3 * (0.07 * t + 1) ** -1, 50),
    (Step(0.3, 4, 0.5), lambda t: math.ldexp(0.3, -(t // 4)), 50),
    (Step(0.3, 7), lambda t: 0.3 / 10 ** (t // 7), 30),
    (MultiStep(0.3, [2, 11], 0.5), lambda t: 0.3 / (1 + (t >= 2) + 2 * (t >= 11)), 20),
    (MultiStep(0.3, [4, 4]), lambda t: 0.3 if t < 4 else 0.003, 20),
    (MultiStep(0.3, []), lambda t: 0.3, 20),
    (Polynomial(0.3, 20), lambda t: 0.3 * max(20 - t, 0) / 20, 30),
    (Polynomial(0.3, 20, 2.0, 0.1), lambda t: 0.1 + 0.2 * (1 - min(t, 20) / 20) ** 2, 30),
    (Polynomial(0.1, 20, 0.5, 0.3), lambda t: 0.3 - 0.2 * math.sqrt(1 - min(t, 20) / 20), 30),
    (Cosine(0.3, 20), lambda t: 0.3 * half_cosine(t / 20) if t < 20 else 0.0, 30),
    (Cosine(0.3, 7, 0.1), lambda t: 0.1 + 0.2 * half_cosine(min(t / 7, 1)), 30),
    (CosineRestarts(0.3, 6, end=0.1), lambda t: 0.1 + 0.2 * half_cosine(t % 6 / 6), 30),
    (Warmup(Constant(0.3), 8), lambda t: 0.3 * min(t / 8, 1), 20),
    (Warmup(Constant(0.3), 8, 0.25), lambda t: 0.3 * (0.25 + 0.75 * min(t / 8, 1)), 20),
    (Warmup(Exponential(0.3, 0.5), 4), lambda t: 0.3 * 0.5**t * min(t / 4, 1), 20),
    (Warmup(Constant(0.3), 0), lambda t: 0.3, 5),
    (Sequence([Exponential(0.3, 0.5)], []), lambda t: 0.3 * 0.5**t, 20),
    (
        Sequence([Constant(0.3), Exponential(0.2, 0.5), Polynomial(0.1, 5)], [4, 9]),
        lambda t: 0.3 if t < 4 else 0.2 * 0.5 ** (t - 4) if t < 9 else max(0.1 - 0.02 * (t - 9), 0),
        20,
    ),
]


@pytest.mark.parametrize(("schedule", "formula", "steps"), FORMULAS, ids=lambda x: str(x)[:60])
def test_formula(schedule, formula, steps):
    for t in range(steps):
        assert schedule(t) == pytest.approx(formula(t), rel=1e-13, abs=1e-16), t


@pytest.mark.parametrize("mult", [1, 2, 3, 10])
@pytest.mark.parametrize("period", [1, 2, 7])
def test_restarts_are_cosines_in_a_row(period, mult):
    schedule = CosineRestarts(0.3, period, mult, 0.1)
    t, length = 0, period
    while t < 200:
        cycle = Cosine(0.3, length, 0.1)
        for s in range(length):
            assert schedule(t + s) == cycle(s)
        t, length = t + length, length * mult


@pytest.mark.parametrize("mult", [2, 3, 5, 10])
def test_restarts_find_late_cycles_exactly(mult):
    schedule = CosineRestarts(0.3, 7, mult)
    start, length = 0, 7
    while start + length < 2**64:
        start, length = start + length, length * mult
        assert schedule(start) == 0.3
        assert schedule(start - 1) < 0.1 * 0.3
    assert 0 <= schedule(2**64 - 1) <= 0.3


@pytest.mark.parametrize(
    "schedule",
    [Cosine(0.3, 10**6), CosineRestarts(0.3, 10**6), OneCycle(0.3, 10**6 + 1, 0.0, 1.0, 1e300)],
    ids=name_of,
)
def test_cosines_keep_their_last_digits_near_the_end(schedule):
    """The textbook form has lost eleven of them there."""
    n = 10**6 + isinstance(schedule, OneCycle)  # whose wave began at step -1
    x = math.pi / 2 / n
    assert schedule(10**6 - 1) == pytest.approx(0.3 * x**2 * (1 - x**2 / 3), rel=1e-14, abs=0)


# Steps at which something changes, in numbers that need no rounding: (schedule, {t: value}).
EDGES = [
    (Step(1, 4, 0.5), {0: 1, 3: 1, 4: 0.5, 7: 0.5, 8: 0.25}),
    (MultiStep(1, [0, 3], 0.5), {0: 0.5, 2: 0.5, 3: 0.25, 10**9: 0.25}),
    (Exponential(1, 0), {0: 1, 1: 0}),
    (Exponential(1, 0.5), {0: 1, 10: 2**-10, 10**6: 0}),
    (InverseSqrt(1), {0: 1, 3: 0.5, 2**40 - 1: 2**-20}),
    (InverseTime(1, 0), {0: 1, 10**9: 1}),
    (Polynomial(1, 4, 2), {0: 1, 3: 1 / 16, 4: 0, 5: 0, 10**9: 0}),
    (Polynomial(1, 1, end=0.5), {0: 1, 1: 0.5, 2: 0.5}),
    (Cosine(1, 4, 0.5), {0: 1, 2: 0.75, 4: 0.5, 5: 0.5, 8: 0.5, 10**9: 0.5}),
    (Cosine(1, 1), {0: 1, 1: 0, 2: 0}),
    (CosineRestarts(1, 2, end=0.5), {0: 1, 1: 0.75, 2: 1, 3: 0.75, 10**9: 1}),
    (CosineRestarts(1, 2, 3), {0: 1, 1: 0.5, 2: 1, 5: 0.5, 8: 1, 17: 0.5, 26: 1}),
    (OneCycle(1, 5, 0.6, 4, 8), {0: 0.25, 2: 1, 4: 1 / 32, 5: 1 / 32, 10**9: 1 / 32}),
    (OneCycle(1, 2, 0.5, 4, 8), {0: 1, 1: 1 / 32}),  # torch divides by zero
    (OneCycle(1, 1, 0.5, 4, 8), {0: 1 / 32, 1: 1 / 32}),
    (OneCycle(1, 3, 1, 4, 8), {0: 0.25, 2: 1, 3: 1 / 32}),
    (Warmup(Constant(1), 4), {0: 0, 1: 0.25, 4: 1, 5: 1, 10**9: 1}),
    (Warmup(Constant(1), 4, 1), {0: 1, 2: 1, 4: 1}),
    (Warmup(Exponential(1, 0.5), 2, 0.5), {0: 0.5, 1: 0.375, 2: 0.25, 3: 0.125}),
    (Warmup(lambda t: t, 4), {0: 0, 2: 1, 4: 4, 9: 9}),
    (Sequence([lambda t: t, lambda t: -t], [3]), {0: 0, 2: 2, 3: 0, 4: -1}),
    (Sequence([Constant(1), Constant(2), Constant(3)], [2, 2]), {0: 1, 1: 1, 2: 3}),
    (Sequence([Constant(1), Constant(2)], [0]), {0: 2, 1: 2}),
]


@pytest.mark.parametrize(("schedule", "values"), EDGES, ids=lambda x: str(x)[:60])
def test_edges(schedule, values):
    assert {t: schedule(t) for t in values} == pytest.approx(values, rel=4e-16, abs=0)


class Torch:
    """torch's scheduler of a name, not made before it is called with an optimizer."""

    def __init__(self, name, *arguments, **options):
        self.name, self.arguments, self.options = name, arguments, options

    def __call__(self, optimizer):
        from torch.optim import lr_scheduler

        if self.name == "SequentialLR":
            parts, milestones = self.arguments
            schedulers = [part(optimizer) for part in parts]
            return lr_scheduler.SequentialLR(optimizer, schedulers, milestones=milestones)
        if self.name == "ChainedScheduler":
            return lr_scheduler.ChainedScheduler([part(optimizer) for part in self.arguments])
        return getattr(lr_scheduler, self.name)(optimizer, *self.arguments, **self.options)

    def run(self, lr, steps):
        """The learning rates of so many steps."""
        import torch

        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # older torch warns of SequentialLR's own calls
            scheduler = self(optimizer)
            rates = []
            for _ in range(steps):
                rates.append(optimizer.param_groups[0]["lr"])
                optimizer.step()
                if len(rates) < steps:
                    scheduler.step()
        return rates


def one_cycle(*arguments):
    max_lr, steps, *rest = arguments
    names = "pct_start", "div_factor", "final_div_factor"
    options = dict(zip(names, rest, strict=False))
    return OneCycle(*arguments), Torch("OneCycleLR", max_lr, steps, **options, cycle_momentum=False)


# (ours, torch's, the lr torch starts from, steps). torch's chainable forms multiply from step to
# step, and CosineAnnealingLR divides by what has cancelled; all stay within 1e-12 over 60 steps.
# CosineAnnealingLR rises after T_max, OneCycleLR raises after its steps: compared up to there.
TORCH = [
    (Exponential(0.1, 0.9), Torch("ExponentialLR", 0.9), 0.1, 60),
    (Exponential(3.0, 0.5), Torch("ExponentialLR", 0.5), 3.0, 60),
    (Exponential(1e-4, 1.1), Torch("ExponentialLR", 1.1), 1e-4, 60),
    (Step(0.1, 7), Torch("StepLR", 7), 0.1, 60),
    (Step(0.5, 1, 0.8), Torch("StepLR", 1, 0.8), 0.5, 60),
    (MultiStep(0.1, [3, 10, 30], 0.5), Torch("MultiStepLR", [3, 10, 30], 0.5), 0.1, 60),
    (MultiStep(0.1, [0, 5, 5]), Torch("MultiStepLR", [0, 5, 5]), 0.1, 60),
    (Polynomial(0.1, 20), Torch("PolynomialLR", 20), 0.1, 60),
    (Polynomial(0.1, 59, 2.0), Torch("PolynomialLR", 59, 2.0), 0.1, 60),
    (Polynomial(0.3, 7, 0.9), Torch("PolynomialLR", 7, 0.9), 0.3, 60),
    (Cosine(0.1, 59), Torch("CosineAnnealingLR", 59), 0.1, 60),
    (Cosine(0.1, 13, 0.01), Torch("CosineAnnealingLR", 13, 0.01), 0.1, 14),
    (Cosine(0.1, 1, 0.01), Torch("CosineAnnealingLR", 1, 0.01), 0.1, 2),
    (CosineRestarts(0.1, 5), Torch("CosineAnnealingWarmRestarts", 5), 0.1, 60),
    (CosineRestarts(0.1, 1), Torch("CosineAnnealingWarmRestarts", 1), 0.1, 60),
    (CosineRestarts(0.1, 3, 2, 0.01), Torch("CosineAnnealingWarmRestarts", 3, 2, 0.01), 0.1, 60),
    (CosineRestarts(0.7, 4, 3), Torch("CosineAnnealingWarmRestarts", 4, 3), 0.7, 60),
    (*one_cycle(0.1, 60), 0.1, 60),
    (*one_cycle(1.0, 41, 0.25, 10.0, 100.0), 1.0, 41),
    (*one_cycle(0.1, 10, 0.0), 0.1, 10),
    (*one_cycle(0.1, 10, 1.0), 0.1, 10),
    (*one_cycle(0.1, 3), 0.1, 3),
    (Warmup(Constant(0.1), 5, 1 / 3), Torch("LinearLR"), 0.1, 60),
    (Warmup(Constant(0.1), 20, 0.01), Torch("LinearLR", 0.01, total_iters=20), 0.1, 60),
    (
        Warmup(Exponential(0.1, 0.95), 10, 0.1),
        Torch("ChainedScheduler", Torch("LinearLR", 0.1, 1.0, 10), Torch("ExponentialLR", 0.95)),
        0.1,
        60,
    ),
    (
        Warmup(Cosine(0.1, 59), 10, 0.1),
        Torch("ChainedScheduler", Torch("LinearLR", 0.1, 1.0, 10), Torch("CosineAnnealingLR", 59)),
        0.1,
        60,
    ),
    (
        Sequence([Warmup(Constant(0.1), 10, 0.1), Cosine(0.1, 49, 0.001)], [10]),
        Torch(
            "SequentialLR",
            [Torch("LinearLR", 0.1, 1.0, 10), Torch("CosineAnnealingLR", 49, 0.001)],
            [10],
        ),
        0.1,
        60,
    ),
    (
        Sequence([Step(0.1, 2, 0.5), Exponential(0.1, 0.9), CosineRestarts(0.1, 4)], [6, 15]),
        Torch(
            "SequentialLR",
            [
                Torch("StepLR", 2, 0.5),
                Torch("ExponentialLR", 0.9),
                Torch("CosineAnnealingWarmRestarts", 4),
            ],
            [6, 15],
        ),
        0.1,
        60,
    ),
]
KEYS = [f"{ours!r} {steps}" for ours, _, _, steps in TORCH]


def check_against_torch(ours, values):
    mine = [ours(t) for t in range(len(values))]
    np.testing.assert_allclose(mine, values, rtol=1e-12, atol=0, err_msg=repr(ours))


@pytest.mark.parametrize("case", range(len(TORCH)), ids=KEYS)
def test_torch_recorded(case):
    with np.load(RECORD) as record:
        keys, values = record["keys"].tolist(), record["values"]
    assert keys == KEYS, "the cases have changed; record them: see the top of this file"
    steps = TORCH[case][3]
    assert not np.isnan(values[case, :steps]).any()
    check_against_torch(TORCH[case][0], values[case, :steps])


@pytest.mark.parametrize("case", range(len(TORCH)), ids=KEYS)
def test_torch_live(case):
    pytest.importorskip("torch", reason="torch is not installed; the recorded values were checked")
    ours, scheduler, lr, steps = TORCH[case]
    check_against_torch(ours, scheduler.run(lr, steps))


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
        ("momentum", Sequence([Constant(0.5), Constant(1)], [2]), ValueError, "^momentum"),
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
    script = ROOT / "examples" / "schedules.py"
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


def record():
    import torch

    values = np.full((len(TORCH), max(steps for *_, steps in TORCH)), np.nan)
    for row, (_, scheduler, lr, steps) in zip(values, TORCH, strict=True):
        row[:steps] = scheduler.run(lr, steps)
    arrays = {"keys": np.array(KEYS), "values": values, "torch": np.array(torch.__version__)}
    np.savez_compressed(RECORD, **arrays)
    print(f"{RECORD.name}: {RECORD.stat().st_size:,} bytes, torch {torch.__version__}")


if __name__ == "__main__":
    if sys.argv[1:] != ["--record"]:
        sys.exit("usage: python tests/test_schedules.py --record")
    record()
