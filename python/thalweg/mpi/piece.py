"""A rule on a piece of an array's rows, with the numbers of one step of an optimizer."""

from typing import Any

import numpy as np

from thalweg import _core
from thalweg._optimizer.base import Optimizer

Array = np.ndarray[Any, Any]


class PieceRule:
    """One array's rule as it is at this step; the core counts the step when all pieces are done."""

    def __init__(self, opt: Any, leaf: int, scale: float) -> None:
        group = opt._group_of[leaf]
        options = opt._numbers(opt.param_groups[group])
        steps = opt._steps_of(leaf)
        # What the core's kernels without an object do not count.
        if steps == 0 and "dampening" in options:
            options["dampening"] = 0.0
        if "lr_decay" in options:
            options["lr"] = options["lr"] / (1.0 + steps * options.pop("lr_decay"))
        options.pop("initial_accumulator_value", None)
        self._kernel, self._slot = opt._kernels[group], opt._slot
        self._state = Optimizer._state_of(opt, leaf)
        self._options = options | {"scale": scale, "max_value": opt.max_value}

    def step(self, own: Array, grad: Array, at: int) -> None:
        """``own`` are rows of the array, from row ``at`` of the rank's part on."""
        states = None if self._state is None else (self._state[at : at + len(own)],)
        _core.apply(self._kernel, (own,), (grad,), states, self._slot, self._options, True)
