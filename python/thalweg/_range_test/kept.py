"""All that trial steps change, kept and put back: bit for bit."""

import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from thalweg._optimizer import averages
from thalweg._optimizer.base import Optimizer
from thalweg.joint import Joint

Generator = np.random.Generator | np.random.RandomState | random.Random


class Kept:
    """An optimizer's params, state, counters and rates, as they are now."""

    def __init__(self, opt: Optimizer) -> None:
        self._opt = opt
        arrays: list[Any] = [*opt._arrays.values()]
        states = [opt._state_of(i) for i in range(len(arrays))]
        arrays += [state for state in states if state is not None]
        self._arrays = [(array, array.copy(order="K")) for array in arrays]
        self._counters = (
            opt.step_count,
            [opt._steps_of(i) for i in range(len(opt._arrays))],
            opt.skipped_steps,
            opt.grad_norm,
            opt.last_lr,
        )
        self._averages = averages.kept(opt)
        # The objects themselves: a schedule comes back as the same one.
        self.rates = [opt._get_option(i, "lr") for i in range(len(opt.param_groups))]

    def put_back(self) -> None:
        for live, kept in self._arrays:
            np.copyto(live, kept)
        averages.put_kept(self._opt, self._averages)
        for i, rate in enumerate(self.rates):
            self._opt._set_option(i, "lr", rate)
        self._opt._set_counters(*self._counters)


class KeptAll:
    """An optimizer or those of a Joint, and random generators."""

    def __init__(self, opt: Optimizer | Joint, rng: Any) -> None:
        self.optimizers = [*opt._optimizers.values()] if isinstance(opt, Joint) else [opt]
        self._rewinds = [*map(_rewind, _generators(rng))]
        if isinstance(opt, Joint):
            counters = opt.skipped_steps, opt.grad_norm
            self._rewinds.append(lambda: opt._set_counters(*counters))
        self._kept = [*map(Kept, self.optimizers)]
        self.rates = [rate for kept in self._kept for rate in kept.rates]

    @property
    def is_bound(self) -> bool:
        return all(opt._is_bound for opt in self.optimizers)

    def put_back(self) -> None:
        """As often as wanted: every trial starts from here."""
        for kept in self._kept:
            kept.put_back()
        for rewind in self._rewinds:
            rewind()


def _generators(rng: Any) -> Iterator[Any]:
    if rng is not None:
        yield from rng if isinstance(rng, (list, tuple)) else [rng]


def _rewind(rng: Generator) -> Callable[[], None]:
    """What makes a generator draw again what it is about to draw."""
    if isinstance(rng, np.random.Generator):
        bits, state = rng.bit_generator, rng.bit_generator.state
        return lambda: setattr(bits, "state", state)
    if isinstance(rng, np.random.RandomState):
        legacy = rng.get_state(legacy=False)
        return lambda: rng.set_state(legacy)
    if isinstance(rng, random.Random):
        python = rng.getstate()
        return lambda: rng.setstate(python)
    raise TypeError(
        "rng: expected numpy.random.Generator, numpy.random.RandomState or random.Random, or a "
        f"list of them, received {type(rng).__name__}"
    )
