"""Every kernel by name: the two ways into the core and the twin beside them."""

from dataclasses import dataclass
from typing import Any

import reference
import thalweg as tw
from thalweg import _core

LR = {"lr": 0.1}


@dataclass(frozen=True)
class Rule:
    """One kernel; ``choices`` are the options that select it, and usual values for its numbers."""

    kernel: str
    optimizer: type
    slot: str | None
    choices: dict[str, Any]

    def make(self, params, level, **options):
        """An optimizer that runs at this ISA level."""
        opt = self.optimizer(params, **LR | self.choices | options)
        opt._use_level(level)
        return opt

    def apply(self, params, grads, states, level, **options):
        """One update of lists of arrays, past the Python classes."""
        chosen = LR | self.choices | options
        numbers = {k: x for k, x in chosen.items() if k not in self.optimizer._fixed}
        states = states if self.slot else None
        _core.apply(
            self.kernel, params, grads, states, self.slot or "velocity", numbers, True, level
        )

    def twin(self, param, grad, state, t, **options):
        """The same in NumPy. ``t`` is 1 beside ``apply``, which counts no steps."""
        step = getattr(reference, self.optimizer.__name__.lower())
        step(param, grad, state if self.slot else None, t, **LR | self.choices | options)


def _sgd(kernel, **choices):
    return Rule(kernel, tw.SGD, "velocity" if choices else None, choices)


def _adagrad(kernel, **choices):
    return Rule(kernel, tw.Adagrad, "accumulator", {"eps": 1e-3} | choices)


RULES = {
    rule.kernel: rule
    for rule in (
        _sgd("sgd"),
        _sgd("heavy_ball", momentum=0.9),
        _sgd("heavy_ball_nesterov", momentum=0.9, nesterov=True),
        _sgd("classic", momentum=0.9, form="classic"),
        _sgd("classic_nesterov", momentum=0.9, form="classic", nesterov=True),
        _sgd("ema", momentum=0.9, form="ema"),
        _adagrad("adagrad_inside"),
        _adagrad("adagrad_outside", eps_placement="outside"),
    )
}
