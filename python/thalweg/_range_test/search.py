"""The search: rates that rise until the loss explodes, then constant rates around that point."""

import math
from collections.abc import Callable
from numbers import Integral, Real
from typing import Any

import numpy as np

from thalweg._optimizer.base import Optimizer
from thalweg._range_test.kept import KeptAll
from thalweg._range_test.result import Array, RateTest, Trial
from thalweg.joint import Joint

LossAndGrads = Callable[[], tuple[Any, Any]]

# The suggestion keeps this far from the rate of divergence: curvature changes as training goes on.
MARGIN = 0.5
# A range test ends when its smoothed loss has risen by this many times what it had fallen.
EXPLODED = 4.0
# Lower rates are tried until the loss has fallen less, by this part, than with the best.
WORSE = 0.2
# A run ends early when its loss has risen by this many times what it began with.
HOPELESS = 1e6


def find_rate(
    opt: Optimizer | Joint,
    loss_and_grads: LossAndGrads,
    *,
    low: float = 1e-6,
    high: float = 10.0,
    steps: int = 200,
    tolerance: float = 0.02,
    smoothing: float = 0.9,
    rng: Any = None,
) -> RateTest:
    """Find a learning rate for an optimizer, its loss and its data; nothing stays changed.

    First a range test: the rate rises geometrically from ``low`` to ``high`` over ``steps``
    batches, until the smoothed loss explodes. Then constant rates, each over ``steps`` batches from
    the optimizer's present state: they bisect the rate from which on steps diverge, and look for
    the one at whose end the loss is lowest, no higher than half of that. In all about twenty times
    ``steps`` batches.

    Params, state, counters, rates and ``rng`` are put back bit for bit, also after an exception or
    Ctrl-C. One copy of params and state is held meanwhile.

    Parameters
    ----------
    opt : SGD, Adagrad or Joint
        Its other options hold as they are. Groups, and the optimizers of a Joint, keep the ratios
        of their rates; the rate that is reported is the first one's.
    loss_and_grads : callable, () -> (loss, grads)
        The loss of the next batch and what ``opt.step`` takes; None for bound gradients.
    low, high : float, 0 < low < high
        Where to look.
    steps : int >= 20
        Batches of a run. The suggestion is one for about as many.
    tolerance : float, 0 < tolerance < 1
        How closely, as a factor, the rate of divergence is bisected.
    smoothing : float, 0 <= smoothing < 1
        Of the range test's moving average.
    rng : numpy.random.Generator, RandomState, random.Random, or a list of them
        What ``loss_and_grads`` draws its batches with: every run has the same ones then.

    Raises
    ------
    TypeError, ValueError
        Arguments do not fit, or no rate does: the loss diverges at ``low``, too.

    References
    ----------
    Smith, Cyclical Learning Rates for Training Neural Networks, 2017.

    Example
    -------
    >>> import numpy as np, thalweg as tw
    >>> x = np.array([-5.0, -2.0])
    >>> curvature = np.array([0.2, 4.0])
    >>> found = tw.find_rate(tw.SGD(x), lambda: ((curvature * x * x).sum() / 2, curvature * x))
    >>> round(found.diverged, 2)  # 2 / L = 0.5
    0.5
    >>> x
    array([-5., -2.])
    """
    if not isinstance(opt, (Optimizer, Joint)):
        raise TypeError(f"opt: expected SGD, Adagrad or Joint, received {type(opt).__name__}")
    if not callable(loss_and_grads):
        raise TypeError(
            "loss_and_grads: expected a callable, () -> (loss, grads), received "
            f"{type(loss_and_grads).__name__}"
        )
    low, high = _number("low", low), _number("high", high)
    if not 0 < low < high < math.inf:
        raise ValueError(f"low, high: expected 0 < low < high, received {low!r}, {high!r}")
    if not isinstance(steps, Integral) or isinstance(steps, bool) or steps < 20:
        raise ValueError(f"steps: expected a whole number >= 20, received {steps!r}")
    for name, value, least in ("tolerance", tolerance, 0), ("smoothing", smoothing, -1):
        if not (least < _number(name, value) < 1 and value >= 0):
            raise ValueError(f"{name}: expected a number from 0 to 1, received {value!r}")
    kept = KeptAll(opt, rng)
    try:
        search = _Search(opt, loss_and_grads, kept, int(steps))
        return search.run(low, high, float(tolerance), float(smoothing))
    finally:
        # Not in a function of its own: Ctrl-C is raised at the entry of one, too.
        interrupt: KeyboardInterrupt | None = None
        while True:
            try:
                kept.put_back()
                break
            except KeyboardInterrupt as error:
                interrupt = error
        if interrupt is not None:
            raise interrupt


def _number(name: str, value: Any) -> float:
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(f"{name}: expected a number, received {value!r}")
    return float(value)


class _Search:
    def __init__(
        self,
        opt: Optimizer | Joint,
        loss_and_grads: LossAndGrads,
        kept: KeptAll,
        steps: int,
    ) -> None:
        self._opt, self._loss_and_grads, self._kept, self._steps = opt, loss_and_grads, kept, steps
        groups = [(each, i) for each in kept.optimizers for i in range(len(each.param_groups))]
        rates = [
            rate(each.step_count) if callable(rate) else rate
            for (each, _), rate in zip(groups, kept.rates, strict=True)
        ]
        first = rates[0]
        ratios = [rate / first if first > 0 else 1.0 for rate in rates]
        self._groups = [(*group, ratio) for group, ratio in zip(groups, ratios, strict=True)]
        self._trials: dict[float, Trial] = {}

    def run(self, low: float, high: float, tolerance: float, smoothing: float) -> RateTest:
        rates, losses, smoothed = self._range(low, high, smoothing)
        diverged = self._divergence(float(rates[-1]), low, high, tolerance)
        highest = high if diverged is None else MARGIN * diverged
        best = self._lowest(losses[: self._steps // 20].mean(), low, highest)
        trials = sorted(self._trials.values(), key=lambda trial: trial.rate)
        calm = sum(not trial.diverged for trial in trials)
        reason = (
            f"of {calm} constant rates its loss is the lowest, {best.loss:.4g} over the second "
            f"half of {self._steps} steps"
        )
        if diverged is None:
            reason += f"; none diverges up to {high:.4g}"
        elif best.rate > 0.99 * highest:
            reason += "; it is half of the rate from which on steps diverge, and no more is tried"
        return RateTest(best.rate, reason, diverged, rates, losses, smoothed, tuple(trials))

    def _step(self, rate: float) -> tuple[float, bool]:
        """The loss before a step, and whether the step was one."""
        # What overflows here is what is looked for, and no warning.
        with np.errstate(all="ignore"):
            pair = self._loss_and_grads()
            if not isinstance(pair, tuple) or len(pair) != 2:
                raise TypeError(
                    "loss_and_grads: expected a pair, (loss, grads), received "
                    f"{type(pair).__name__}"
                )
            try:
                loss = float(pair[0])
            except (TypeError, ValueError):
                raise TypeError(
                    f"loss_and_grads: expected a number as loss, received {type(pair[0]).__name__}"
                ) from None
            if not math.isfinite(loss):
                return loss, False
            for opt, i, ratio in self._groups:
                opt._set_option(i, "lr", rate * ratio)
            try:
                bound = pair[1] is None and self._kept.is_bound
                return loss, self._opt.step() if bound else self._opt.step(pair[1])
            except FloatingPointError:  # on_nonfinite="raise"
                return loss, False

    def _range(self, low: float, high: float, smoothing: float) -> tuple[Array, Array, Array]:
        rates = np.geomspace(low, high, self._steps)
        losses: list[float] = []
        smoothed: list[float] = []
        average = 0.0
        for i, rate in enumerate(rates):
            loss, stepped = self._step(float(rate))
            if not losses and not math.isfinite(loss):
                raise ValueError(f"loss_and_grads: expected a finite loss, received {loss!r}")
            average = smoothing * average + (1 - smoothing) * loss
            losses.append(loss)
            smoothed.append(average / (1 - smoothing ** (i + 1)))
            best = min(smoothed)
            fall = max(smoothed[0] - best, abs(best))
            if not stepped or not smoothed[-1] <= best + EXPLODED * fall:
                break
        seen = [rates[: len(losses)], np.array(losses), np.array(smoothed)]
        finite = np.isfinite(seen[1])
        return seen[0][finite], seen[1][finite], seen[2][finite]

    def _try(self, rate: float) -> Trial:
        if rate not in self._trials:
            self._kept.put_back()
            losses: list[float] = []
            stepped = True
            while stepped and len(losses) < self._steps:
                loss, stepped = self._step(rate)
                losses.append(loss)
                stepped = stepped and loss - losses[0] <= HOPELESS * abs(losses[0])
            seen = np.array(losses)
            diverged = not stepped or _grows(seen)
            end = math.inf if diverged else float(seen[self._steps // 2 :].mean())
            self._trials[rate] = Trial(rate, seen, diverged, end)
        return self._trials[rate]

    def _divergence(self, rate: float, low: float, high: float, tolerance: float) -> float | None:
        """Between the last rate that does not and the first that does; None: not up to ``high``."""
        while not self._try(rate).diverged:
            if rate >= high:
                return None
            rate = min(2 * rate, high)
        above, below = rate, rate
        while self._try(below).diverged:
            if below <= low:
                raise ValueError(
                    f"low: expected a rate at which the loss does not diverge, received {low!r}; "
                    "take a lower one, or look at the gradients' sign"
                )
            above, below = below, max(below / 2, low)
        while above > (1 + tolerance) * below:
            middle = math.sqrt(above * below)
            if self._try(middle).diverged:
                above = middle
            else:
                below = middle
        return math.sqrt(above * below)

    def _lowest(self, start: float, low: float, high: float) -> Trial:
        """By factors of 2 from ``high`` down until the loss is clearly worse, then by a root of 2.

        Every rate on the way is looked at: noise makes hollows where a descent would end.
        """
        rate = high
        best = self._try(rate)
        while rate > low:
            rate = max(rate / 2, low)
            other = self._try(rate)
            if other.loss < best.loss:
                best = other
            elif best.loss < start and other.loss > best.loss + WORSE * (start - best.loss):
                break
        for factor in (math.sqrt(2.0), 1 / math.sqrt(2.0)):
            other = self._try(min(max(best.rate * factor, low), high))
            if other.loss < best.loss:
                best = other
                break
        return best


def _grows(losses: Array) -> bool:
    """Whether the end of a run is above its beginning and doubles from one half to the other."""
    quarter = len(losses) // 4
    floor = losses.min()
    before, after = np.median(losses[quarter : 2 * quarter]), np.median(losses[-quarter:])
    rises = after - floor > 2 * (before - floor)
    return bool(rises and losses[-quarter:].max() > losses[: max(1, quarter // 4)].mean())
