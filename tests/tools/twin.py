"""A whole step in NumPy: the reference's rules behind what all gradients of a step decide."""

from functools import partial

import numpy as np

import reference
import thalweg as tw
from bits import assert_same_bits


class Twin:
    """Copies of named params and their state, stepped as an optimizer with groups steps them.

    ``options`` holds the options of each array by its name; a callable is a schedule.
    """

    def __init__(
        self,
        rule,
        params,
        options,
        *,
        max_norm=None,
        max_array_norm=None,
        norm_eps=1e-6,
        max_value=None,
        weight_average=None,
        on_nonfinite="propagate",
    ):
        self.rule, self.options = rule, options
        self.max_norm, self.max_value, self.on_nonfinite = max_norm, max_value, on_nonfinite
        self.max_array_norm = max_array_norm
        self.norm_eps, self.weight_average = norm_eps, weight_average
        self.params = {name: np.array(w, order="K") for name, w in params.items()}
        self.states = {
            name: rule.state(w, options[name].get("initial_accumulator_value", 0.0))
            for name, w in self.params.items()
        }
        self.averages = {name: w.copy() for name, w in self.params.items()}
        self.steps, self.averaged = dict.fromkeys(params, 0), dict.fromkeys(params, 0)
        self.step_count = self.skipped_steps = 0
        self.grad_norm = None

    def step(self, grads, scale=1.0, clip=1.0):
        """``grads`` by name; a name may be missing; ``clip`` is by a norm over more than this.

        False: the step was skipped.
        """
        active = {
            name: grads[name]
            for name in self.params
            if grads.get(name) is not None and not self.options[name].get("frozen", False)
        }
        dtypes = [self.params[name].dtype for name in active]
        sums = list(map(summed, active.values(), dtypes))
        if self.on_nonfinite != "propagate":
            judged = map(reference.scaled, sums, dtypes, [scale] * len(sums))
            if not all(np.isfinite(g).all() for g in judged):
                self.skipped_steps += self.on_nonfinite == "skip"
                return False
        norm = self.grad_norm
        if self.max_norm is not None:
            norm = reference.grad_norm(sums, dtypes, scale=scale, max_value=self.max_value)
            clip = reference.clip_factor(self.max_norm, norm, self.norm_eps)
        if self.on_nonfinite != "propagate" and self._overflows(sums, dtypes, norm, scale, clip):
            self.skipped_steps += self.on_nonfinite == "skip"
            return False
        self.grad_norm = norm
        for (name, grad), summed_grad in zip(active.items(), sums, strict=True):
            if self.max_array_norm is not None:
                own = reference.grad_norm(
                    [summed_grad],
                    [self.params[name].dtype],
                    scale=scale,
                    max_value=self.max_value,
                )
                clip = reference.clip_factor(self.max_array_norm, own)
            numbers = {
                key: value(self.step_count) if callable(value) else value
                for key, value in self.options[name].items()
                if key not in ("frozen", "initial_accumulator_value")
            }
            before = {"scale": scale, "max_value": self.max_value, "clip": clip}
            given = [grad, self.states[name], self.steps[name]]
            step = self.rule.twin
            if isinstance(grad, tw.RowGrad):
                given[:1] = grad.rows, grad.values
                step = partial(reference.by_rows, step)
            step(self.params[name], *given, **numbers, **before)
            self.steps[name] += 1
            if self.weight_average is not None:
                average = self.averages[name], self.params[name], self.averaged[name]
                reference.average(*average, weight_average=self.weight_average)
                self.averaged[name] += 1
        self.step_count += 1
        return True

    def _overflows(self, sums, dtypes, norm, scale, clip):
        """Whether the norm, or what Adagrad squares, is no finite number."""
        if self.max_norm is not None and not np.isfinite(norm):
            return True
        if self.rule.slot != "accumulator":
            return False
        per = self.rule.choices.get("accumulator", "element")
        limits = {"scale": scale, "max_value": self.max_value, "clip": clip, "per": per}
        return any(
            reference.overflown(g, dtype, **limits).any()
            for g, dtype in zip(sums, dtypes, strict=True)
        )

    def assert_equals(self, opt, params, context=""):
        """Every bit of params, state and norm, and every counter."""
        for name, w in params.items():
            assert_same_bits(w, self.params[name], f"param {name!r} {context}")
            assert opt.state[name]["step"] == self.steps[name], (name, context)
            if self.rule.slot:
                state = opt.state[name][self.rule.slot]
                assert_same_bits(state, self.states[name], f"state of {name!r} {context}")
            if self.weight_average is not None:
                where = f"average of {name!r} {context}"
                assert_same_bits(opt.averages[name], self.averages[name], where)
        assert_same_norm(opt.grad_norm, self.grad_norm, context)
        assert opt.step_count == self.step_count, context
        assert opt.skipped_steps == self.skipped_steps, context


def summed(grad, dtype):
    """A gradient as it is judged and measured: of a RowGrad, the sums of its distinct rows."""
    if isinstance(grad, tw.RowGrad):
        return reference.summed_rows(grad.rows, grad.values, dtype)[1]
    return grad


def assert_same_norm(actual, expected, context=""):
    """The bits of a norm, or None on both sides."""
    if actual is None or expected is None:
        assert actual is expected, context
    else:
        assert type(actual) is float
        assert_same_bits(np.float64(actual), np.float64(expected), f"norm {context}")
