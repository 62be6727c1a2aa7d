"""Every kernel by name: the two ways into the core and the twin beside them."""

from dataclasses import dataclass
from typing import Any

import numpy as np

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
            self.kernel, params, grads, states, self.slot or "velocity", numbers, True, level=level
        )

    def twin(self, param, grad, state, t, **options):
        """The same in NumPy. ``t`` is 1 beside ``apply``, which counts no steps."""
        if param.size == 0:  # a row without elements has no mean
            return
        step = getattr(reference, self.optimizer.__name__.lower())
        chosen = LR | self.choices | options
        if (per := chosen.pop("accumulator", "element")) != "element":
            chosen["per"] = per
        step(param, grad, state if self.slot else None, t, **chosen)

    def state(self, param, value=0.0):
        """What the state of such a param starts from."""
        by_row = self.choices.get("accumulator") == "row"
        return np.full(param.shape[: 1 if by_row else None], value, param.dtype)


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
        _adagrad("adagrad_row_inside", accumulator="row"),
        _adagrad("adagrad_row_outside", accumulator="row", eps_placement="outside"),
    )
}
