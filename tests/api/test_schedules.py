"""The schedules: their formulas, and the values that torch gives.

``python tests/test_schedules.py --record`` writes torch_schedules.npz, which keeps the comparison
with torch alive where torch is not installed.
"""

import dataclasses
import math
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

from conftest import told
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


@pytest.mark.parametrize(("schedule", "formula", "steps"), FORMULAS, ids=told)
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


def test_restarts_have_a_last_step():
    schedule = CosineRestarts(0.1, 3, 2)
    assert 0 <= schedule(2**64 - 1) <= 0.1
    with pytest.raises(ValueError, match="t: expected a step below 2"):
        schedule(2**70)


@pytest.mark.parametrize(("schedule", "values"), EDGES, ids=told)
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
