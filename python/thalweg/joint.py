"""Optimizers stepped as one: Adagrad for the sparse half of a model, momentum for the dense one."""

import copyreg
import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal, Self

import numpy as np

from thalweg import _core
from thalweg._optimizer import options as option
from thalweg._optimizer import snapshot
from thalweg._optimizer.base import Optimizer
from thalweg._optimizer.copies import paused

__all__ = ["Joint"]

VERSION = 1


class Joint(_core.Joint):
    """Several optimizers stepped as one: one norm, one decision, all or nothing across them.

    ::

        N <- sqrt(sum of float64(g)^2 over all gradients of all optimizers that take part)
        g <- c * g                       max_norm, c = max_norm / (N + 1e-6) where it is below 1

    and then each optimizer's own rule. The sum is one running sum, optimizers in the order given.
    Where nothing is clipped or left out, the bits are those of the optimizers by themselves.

    Parameters
    ----------
    **optimizers : SGD or Adagrad
        By name, held, not copied; names have no dot. Each may still be stepped alone:
        ``joint["emb"].step(...)``. In messages of an optimizer in a joint, its name stands before
        the array's: ``params["emb.W"]``.
    max_norm : float > 0 or None
        The norm over all that gradients are scaled down to; see ``grad_norm``. An optimizer's own
        holds for its part, if the joint has none.
    on_nonfinite : "propagate", "skip" or "raise"
        What a gradient that is not finite, in whichever optimizer, does to the whole step; judged
        as the optimizers do. An optimizer's own holds for its part, if the joint propagates:
        "skip" then leaves out that optimizer alone, "raise" refuses the whole step.

    Raises
    ------
    TypeError, ValueError
        Something else than optimizers, one that is in another Joint or here twice, arrays shared
        by two of them, a limit that the joint and an optimizer both set.

    Example
    -------
    >>> import numpy as np, thalweg as tw
    >>> table, head = np.zeros((5, 2)), {"W": np.ones(2)}
    >>> joint = tw.Joint(emb=tw.Adagrad(table, lr=0.1), head=tw.SGD(head, lr=0.5), max_norm=1.0)
    >>> rows = tw.RowGrad(np.array([3]), np.full((1, 2), 2.0))
    >>> joint.step({"emb": rows, "head": {"W": np.ones(2)}})
    True
    >>> round(joint.grad_norm, 6), joint.step_count
    (3.162278, 1)
    """

    _optimizers: dict[str, Optimizer]

    def __init__(
        self,
        *,
        max_norm: float | None = None,
        on_nonfinite: str = "propagate",
        **optimizers: Optimizer,
    ) -> None:
        for name, opt in optimizers.items():
            if "." in name:
                raise ValueError(
                    f"Joint: expected names without a dot, which parts them from the arrays', "
                    f"received {name!r}"
                )
            if not isinstance(opt, Optimizer):
                raise TypeError(
                    f"Joint: expected optimizers by name, received {name}={type(opt).__name__}; "
                    "pass name=tw.SGD(params, ...)"
                )
        super().__init__(optimizers)
        self._optimizers = optimizers
        self.max_norm = max_norm
        self.on_nonfinite = on_nonfinite

    def __getitem__(self, name: str) -> Optimizer:
        return self._optimizers[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._optimizers)

    def __len__(self) -> int:
        return len(self._optimizers)

    @property
    def step_count(self) -> int:
        """That of the optimizer that has taken the most steps."""
        return max(opt.step_count for opt in self._optimizers.values())

    def state_dict(self) -> dict[str, Any]:
        """The optimizers' by name, and the joint's own limits and counters; all of one moment."""
        with paused(self):
            return {
                "version": VERSION,
                "skipped_steps": self.skipped_steps,
                "grad_norm": self.grad_norm,
                "limits": {"max_norm": self.max_norm, "on_nonfinite": self.on_nonfinite},
                "optimizers": {name: snapshot.taken(opt) for name, opt in self._optimizers.items()},
            }

    def load_state_dict(
        self, state_dict: Mapping[str, Any], *, options: Literal["file", "live"] | None = None
    ) -> None:
        """Put a ``state_dict`` back into all optimizers, or into none: see theirs.

        With options="live" the joint's own limits stay, too. Raises ValueError, with all that does
        not fit in one message and nothing changed.
        """
        option.check_whose(options)
        with paused(self):
            if wrong := list(self._problems(state_dict)):
                raise ValueError(f"load_state_dict: {'; '.join(wrong)}")
            found = state_dict["optimizers"]
            before = {name: snapshot.taken(opt) for name, opt in self._optimizers.items()}
            limits = self.max_norm, self.on_nonfinite
            done = []
            try:
                chosen = {
                    name: option.choose(opt, found[name], options)
                    for name, opt in self._optimizers.items()
                }
                for name, each in chosen.items():
                    each.warn(f"load_state_dict, {name}", stacklevel=2)
                if options != "live":
                    self.max_norm, self.on_nonfinite = None, "propagate"
                for name, opt in self._optimizers.items():
                    done.append(name)
                    why = "load_state_dict"
                    snapshot.restore(opt, found[name], chosen[name], why, np.copyto, ())
                if options != "live":
                    self.max_norm = state_dict["limits"]["max_norm"]
                    self.on_nonfinite = state_dict["limits"]["on_nonfinite"]
            except BaseException as error:
                self.max_norm, self.on_nonfinite = None, "propagate"
                for name in done:
                    opt = self._optimizers[name]
                    old = option.choose(opt, before[name], "file")
                    why = "load_state_dict"
                    snapshot.restore(opt, before[name], old, why, np.copyto, ())
                self.max_norm, self.on_nonfinite = limits
                if isinstance(error, (TypeError, ValueError)):
                    raise ValueError(f"load_state_dict: {error}") from None
                raise
            self._set_counters(int(state_dict["skipped_steps"]), state_dict["grad_norm"])

    def _problems(self, found: Any) -> Iterator[str]:
        keys = ("version", "skipped_steps", "grad_norm", "limits", "optimizers")
        if not isinstance(found, Mapping) or set(found) != set(keys):
            yield f"expected a mapping with {', '.join(keys)}, as state_dict() gives"
            return
        if not option.same(VERSION, found["version"]):
            yield f"version: expected {VERSION}, received {found['version']!r}"
        skipped, norm = found["skipped_steps"], found["grad_norm"]
        if type(skipped) is not int or not 0 <= skipped < 2**63:
            yield f"skipped_steps: expected a whole number >= 0, received {skipped!r}"
        if norm is not None and not (isinstance(norm, float) and (norm >= 0 or math.isnan(norm))):
            yield f"grad_norm: expected a number >= 0 or None, received {norm!r}"
        limits, optimizers = found["limits"], found["optimizers"]
        if not isinstance(limits, Mapping) or set(limits) != {"max_norm", "on_nonfinite"}:
            yield f"limits: expected max_norm and on_nonfinite, received {limits!r}"
        if not isinstance(optimizers, Mapping) or set(optimizers) != set(self._optimizers):
            names = [*optimizers] if isinstance(optimizers, Mapping) else optimizers
            yield f"optimizers: expected {', '.join(self._optimizers)}, received {names!r}"
            return
        for name, opt in self._optimizers.items():
            for problem in snapshot.problems(opt, optimizers[name]):
                yield f"{name}: {problem}"

    def __repr__(self) -> str:
        own = [f"{name}={opt!r}" for name, opt in self._optimizers.items()]
        if self.max_norm is not None:
            own.append(f"max_norm={self.max_norm!r}")
        if self.on_nonfinite != "propagate":
            own.append(f"on_nonfinite={self.on_nonfinite!r}")
        return f"{type(self).__name__}({', '.join(own)})"

    def __copy__(self) -> Self:
        raise TypeError(
            "copy.copy: an optimizer is in one Joint at a time; use copy.deepcopy((params, joint)),"
            " which keeps their arrays together"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        state = {
            "optimizers": self._optimizers,
            "limits": {"max_norm": self.max_norm, "on_nonfinite": self.on_nonfinite},
            "counters": (self.skipped_steps, self.grad_norm),
            "own": {name: value for name, value in vars(self).items() if name != "_optimizers"},
        }
        return copyreg.__newobj__, (type(self),), state  # type: ignore[attr-defined]

    def __setstate__(self, state: dict[str, Any]) -> None:
        Joint.__init__(self, **state["limits"], **state["optimizers"])
        self._set_counters(*state["counters"])
        vars(self).update(state["own"])
