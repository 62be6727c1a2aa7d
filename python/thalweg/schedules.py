"""Learning rates that change with the step: frozen dataclasses, callable, step -> float.

Pass one as ``lr``, ``momentum`` or ``weight_decay``: the optimizer calls it with its step_count, so
t, the steps taken before, counts from 0. What is said of lr below holds for the other two. They
keep no state: any step may be asked for at any time, and equal ones compare equal.

Parameters are checked when a schedule is made and t when it is called: TypeError for what is no
number, no integer or no callable, ValueError for one out of range. Beyond its last step a schedule
stays at its last value. Values agree with torch.optim.lr_scheduler where it has the same schedule.
"""

from bisect import bisect_right
from collections import abc
from dataclasses import dataclass, field
from math import inf, pi, sin, sqrt
from numbers import Integral, Real
from typing import Annotated, Any, NamedTuple, get_type_hints

import numpy as np

from thalweg._types import Schedule

# Half a cosine wave, (1 + cos(pi x)) / 2, cancels near x = 1; sin(pi/2 (1 - x))^2 is the same and
# does not.
_HALF_PI = pi / 2


class _Range(NamedTuple):
    """What a parameter must be; ``plain`` makes a float, int or tuple of it."""

    expected: str
    kind: Any
    plain: abc.Callable[[Any], Any] = lambda value: value
    accepts: abc.Callable[[Any], bool] = lambda value: True

    def __repr__(self) -> str:
        return self.expected

    def check(self, name: str, value: object) -> Any:
        value = value[()] if isinstance(value, np.ndarray) and value.ndim == 0 else value
        if not isinstance(value, self.kind) or isinstance(value, (bool, type)):
            received = f"{type(value).__name__} {value!r}"
            raise TypeError(f"{name}: expected {self}, received {received}")
        try:
            plain = self.plain(value)
        except OverflowError:  # 10**400
            plain = inf
        if not self.accepts(plain):
            raise ValueError(f"{name}: expected {self}, received {value!r}")
        return plain


class _Checked:
    """A dataclass whose parameters must be in the ranges that their annotations name."""

    __slots__ = ()

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(type(self), include_extras=True).items():
            for wanted in getattr(hint, "__metadata__", ()):
                object.__setattr__(self, name, wanted.check(name, getattr(self, name)))


_INDEX = _Range("an integer >= 0", Integral, int, lambda n: n >= 0)
_CALLABLE = _Range("a callable, step -> float; Constant(x) makes one of a number x", abc.Callable)
_MILESTONES = _Range(
    "integers in ascending order",
    abc.Iterable,
    lambda values: tuple(_INDEX.check("milestones", n) for n in values),
    lambda steps: list(steps) == sorted(steps),
)
_CALLABLES = _Range(
    "at least one callable",
    abc.Iterable,
    lambda values: tuple(_CALLABLE.check("schedules", each) for each in values),
    lambda schedules: len(schedules) > 0,
)
_Rate = Annotated[float, _Range("a finite number >= 0", Real, float, lambda x: 0 <= x < inf)]
_Positive = Annotated[float, _Range("a finite number > 0", Real, float, lambda x: 0 < x < inf)]
_Fraction = Annotated[float, _Range("a number from 0 to 1", Real, float, lambda x: 0 <= x <= 1)]
_Index = Annotated[int, _INDEX]
_Count = Annotated[int, _Range("an integer >= 1", Integral, int, lambda n: n >= 1)]
_Milestones = Annotated[abc.Sequence[int], _MILESTONES]
_Schedule = Annotated[Schedule, _CALLABLE]
_Schedules = Annotated[abc.Sequence[Schedule], _CALLABLES]


def _step(t: object) -> int:
    """The step as an int; only those that are not plainly one already come here."""
    return int(_INDEX.check("step", t))


@dataclass(frozen=True, slots=True)
class Constant(_Checked):
    """The same at every step.

    Equation: lr
    Parameters: lr >= 0.
    Raises: TypeError, ValueError.
    Source: a plain number does the same; this one has a place in a Warmup or a Sequence.

    >>> Constant(0.5)(1000)
    0.5
    """

    lr: _Rate

    def __call__(self, t: int) -> float:
        t = t if type(t) is int and t >= 0 else _step(t)
        return self.lr


@dataclass(frozen=True, slots=True)
class Exponential(_Checked):
    """Multiplied by gamma at every step.

    Equation: lr gamma^t
    Parameters: lr >= 0, the first value; gamma >= 0, the factor per step.
    Raises: TypeError, ValueError; OverflowError where gamma > 1 has grown beyond a float.
    Source: D2L 11.4; torch's ExponentialLR.

    >>> [Exponential(0.8, 0.5)(t) for t in range(4)]
    [0.8, 0.4, 0.2, 0.1]
    """

    lr: _Rate
    gamma: _Rate

    def __call__(self, t: int) -> float:
        t = t if type(t) is int and t >= 0 else _step(t)
        return self.lr * self.gamma**t


@dataclass(frozen=True, slots=True)
class InverseSqrt(_Checked):
    """Falls with the root of the steps, as theory asks of convex problems.

    Equation: lr / sqrt(t + 1)
    Parameters: lr >= 0, the first value.
    Raises: TypeError, ValueError.
    Source: Zinkevich, Online Convex Programming, 2003; SquareRootScheduler of D2L 11.11.

    >>> [InverseSqrt(0.5)(t) for t in (0, 3, 15)]
    [0.5, 0.25, 0.125]
    """

    lr: _Rate

    def __call__(self, t: int) -> float:
        t = t if type(t) is int and t >= 0 else _step(t)
        return self.lr / sqrt(t + 1)


@dataclass(frozen=True, slots=True)
class InverseTime(_Checked):
    """Falls with the steps, as stochastic approximation asks.

    Equation: lr / (1 + decay t)
    Parameters: lr >= 0, the first value; decay >= 0 per step: at t = 1/decay half of lr is left.
    Raises: TypeError, ValueError.
    Source: Robbins and Monro, 1951; D2L 11.4; the lr_decay of Adagrad.

    >>> [InverseTime(0.5, decay=0.5)(t) for t in (0, 2, 6)]
    [0.5, 0.25, 0.125]
    """

    lr: _Rate
    decay: _Rate

    def __call__(self, t: int) -> float:
        t = t if type(t) is int and t >= 0 else _step(t)
        return self.lr / (1 + self.decay * t)


@dataclass(frozen=True, slots=True)
class Step(_Checked):
    """Multiplied by gamma once in so many steps.

    Equation: lr gamma^floor(t / every)
    Parameters: lr >= 0, the first value; every >= 1 steps; gamma >= 0, the factor.
    Raises: TypeError, ValueError; OverflowError where gamma > 1 has grown beyond a float.
    Source: torch's StepLR.

    >>> [Step(0.8, every=2, gamma=0.5)(t) for t in range(5)]
    [0.8, 0.8, 0.4, 0.4, 0.2]
    """

    lr: _Rate
    every: _Count
    gamma: _Rate = 0.1

    def __call__(self, t: int) -> float:
        t = t if type(t) is int and t >= 0 else _step(t)
        return self.lr * self.gamma ** (t // self.every)


@dataclass(frozen=True, slots=True)
class MultiStep(_Checked):
    """Multiplied by gamma at each milestone.

    Equation: lr gamma^(number of milestones <= t)
    Parameters: lr >= 0, the first value; milestones, steps in ascending order, one named twice
        counting twice; gamma >= 0, the factor.
    Raises: TypeError, ValueError; OverflowError where gamma > 1 has grown beyond a float.
    Source: torch's MultiStepLR; the piecewise constant one of D2L 11.4.

    >>> [MultiStep(0.8, milestones=[1, 4], gamma=0.5)(t) for t in range(5)]
    [0.8, 0.4, 0.4, 0.4, 0.2]
    """

    lr: _Rate
    milestones: _Milestones
    gamma: _Rate = 0.1

    def __call__(self, t: int) -> float:
        t = t if type(t) is int and t >= 0 else _step(t)
        return self.lr * self.gamma ** bisect_right(self.milestones, t)


@dataclass(frozen=True, slots=True)
class Polynomial(_Checked):
    """From lr to end along a power of the steps left, a straight line by default.

    Equation: end + (lr - end) (1 - min(t, steps) / steps)^power
    Parameters: lr >= 0, the first value; steps >= 1, when end is reached; power > 0; end >= 0.
    Raises: TypeError, ValueError.
    Source: torch's PolynomialLR; Keras' PolynomialDecay.

    >>> [Polynomial(0.5, steps=4)(t) for t in range(6)]
    [0.5, 0.375, 0.25, 0.125, 0.0, 0.0]
    """

    lr: _Rate
    steps: _Count
    power: _Positive = 1.0
    end: _Rate = 0.0

    def __call__(self, t: int) -> float:
        t = t if type(t) is int and t >= 0 else _step(t)
        if t >= self.steps:
            return self.end
        left: float = ((self.steps - t) / self.steps) ** self.power
        return self.end + (self.lr - self.end) * left


@dataclass(frozen=True, slots=True)
class Cosine(_Checked):
    """From lr to end along half a cosine wave; stays at end.

    Equation: end + (lr - end) (1 + cos(pi min(t, steps) / steps)) / 2
    Parameters: lr >= 0, the first value; steps >= 1, when end is reached; end >= 0.
    Raises: TypeError, ValueError.
    Source: Loshchilov and Hutter, SGDR, 2017; torch's CosineAnnealingLR (which rises again).

    >>> [round(Cosine(0.8, steps=4)(t), 6) for t in range(6)]
    [0.8, 0.682843, 0.4, 0.117157, 0.0, 0.0]
    """

    lr: _Rate
    steps: _Count
    end: _Rate = 0.0

    def __call__(self, t: int) -> float:
        t = t if type(t) is int and t >= 0 else _step(t)
        if t >= self.steps:
            return self.end
        s = sin(_HALF_PI * ((self.steps - t) / self.steps))
        return self.end + (self.lr - self.end) * (s * s)


@dataclass(frozen=True, slots=True)
class CosineRestarts(_Checked):
    """From lr towards end along half a cosine wave, again and again.

    Equation: end + (lr - end) (1 + cos(pi s / n)) / 2 at step s of a cycle of n steps
    Parameters: lr >= 0, what each cycle starts from; period >= 1, the steps of the first cycle;
        mult >= 1, an integer: how many times longer each next cycle is; end >= 0, never reached.
    Raises: TypeError, ValueError.
    Source: Loshchilov and Hutter, SGDR, 2017; torch's CosineAnnealingWarmRestarts.

    >>> [round(CosineRestarts(0.8, period=2, mult=2)(t), 6) for t in range(7)]
    [0.8, 0.4, 0.8, 0.682843, 0.4, 0.117157, 0.8]
    """

    lr: _Rate
    period: _Count
    mult: _Count = 1
    end: _Rate = 0.0
    # The step at which each cycle ends, up to the largest step_count; of no use with mult = 1.
    _ends: tuple[int, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        _Checked.__post_init__(self)  # super() does not survive slots=True
        ends = [self.period]
        while self.mult > 1 and ends[-1] < 2**64:
            ends.append(self.period + self.mult * ends[-1])
        object.__setattr__(self, "_ends", tuple(ends))

    def __call__(self, t: int) -> float:
        t = t if type(t) is int and t >= 0 else _step(t)
        if self.mult == 1:
            length, left = self.period, self.period - t % self.period
        else:
            cycle = bisect_right(self._ends, t)
            if cycle == len(self._ends):
                raise ValueError(f"t: expected a step below 2**64, received {t}")
            length = self.period * self.mult**cycle
            left = self._ends[cycle] - t
        s = sin(_HALF_PI * (left / length))
        return self.end + (self.lr - self.end) * (s * s)


@dataclass(frozen=True, slots=True)
class OneCycle(_Checked):
    """Up to max_lr and down to almost nothing, on half cosine waves; stays there.

    Equation: max_lr / div at t = 0, max_lr at t = pct_start steps - 1 (or, if that is below 0,
        before the first step), max_lr / (div final_div) from t = steps - 1 on
    Parameters: max_lr >= 0; steps >= 1; 0 <= pct_start <= 1, the share of the rise; div > 0;
        final_div > 0.
    Raises: TypeError, ValueError.
    Source: Smith and Topin, Super-Convergence, 2018; torch's OneCycleLR.

    >>> [round(OneCycle(0.8, steps=5, pct_start=0.6)(t), 6) for t in range(6)]
    [0.032, 0.416, 0.8, 0.400002, 3e-06, 3e-06]
    """

    max_lr: _Rate
    steps: _Count
    pct_start: _Fraction = 0.3
    div: _Positive = 25.0
    final_div: _Positive = 1e4

    def __call__(self, t: int) -> float:
        t = t if type(t) is int and t >= 0 else _step(t)
        peak, last = self.pct_start * self.steps - 1, self.steps - 1
        low = self.max_lr / self.div
        if t <= peak > 0:
            left = t / peak
        else:
            low /= self.final_div
            left = (last - t) / (last - peak) if t < last else 0.0
        s = sin(_HALF_PI * left)
        return low + (self.max_lr - low) * (s * s)


@dataclass(frozen=True, slots=True)
class Warmup(_Checked):
    """Another schedule, scaled up to its full size over the first steps.

    Equation: schedule(t) (start + (1 - start) min(1, t / steps))
    Parameters: schedule, a callable step -> float, which does not wait: at t = steps it is at its
        own step t (a Sequence starts it after a warm-up); steps >= 0; 0 <= start <= 1, the factor
        at t = 0. With start = 0 the first step is one of size 0.
    Raises: TypeError, ValueError, and what the schedule raises.
    Source: Goyal et al., Accurate, Large Minibatch SGD, 2017; torch's LinearLR.

    >>> [Warmup(Constant(0.5), steps=4)(t) for t in range(6)]
    [0.0, 0.125, 0.25, 0.375, 0.5, 0.5]
    """

    schedule: _Schedule
    steps: _Index
    start: _Fraction = 0.0

    def __call__(self, t: int) -> float:
        t = t if type(t) is int and t >= 0 else _step(t)
        if t >= self.steps:
            return self.schedule(t)
        return self.schedule(t) * (self.start + (1 - self.start) * (t / self.steps))


@dataclass(frozen=True, slots=True)
class Sequence(_Checked):
    """One schedule after the other, each from its own step 0.

    Equation: schedules[i](t - milestones[i - 1]) with i = number of milestones <= t
    Parameters: schedules, callables step -> float; milestones, the steps at which the second and
        each further one begins, in ascending order, one fewer than schedules.
    Raises: TypeError, ValueError, and what the schedules raise.
    Source: torch's SequentialLR.

    >>> warm = Warmup(Constant(0.8), steps=2, start=0.5)
    >>> [round(Sequence([warm, Cosine(0.8, steps=4)], [2])(t), 6) for t in range(7)]
    [0.4, 0.6, 0.8, 0.682843, 0.4, 0.117157, 0.0]
    """

    schedules: _Schedules
    milestones: _Milestones

    def __post_init__(self) -> None:
        _Checked.__post_init__(self)  # super() does not survive slots=True
        wanted = len(self.schedules) - 1
        if len(self.milestones) != wanted:
            raise ValueError(
                f"milestones: expected {wanted}, one fewer than schedules, "
                f"received {len(self.milestones)}: {self.milestones!r}"
            )

    def __call__(self, t: int) -> float:
        t = t if type(t) is int and t >= 0 else _step(t)
        i = bisect_right(self.milestones, t)
        return self.schedules[i](t - self.milestones[i - 1] if i else t)
