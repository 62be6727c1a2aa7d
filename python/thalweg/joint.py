"""Optimizers stepped as one: Adagrad for the sparse half of a model, momentum for the dense one."""

import copyreg
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, Self

from thalweg import _core
from thalweg._optimizer import matching, whole
from thalweg._optimizer import options as option
from thalweg._optimizer.base import Optimizer, Result
from thalweg._optimizer.copies import paused
from thalweg._optimizer.groups import Group

__all__ = ["Joint"]

OWN = ("_loaded", "_optimizers")


class Joint(_core.Joint):
    """Several optimizers stepped as one: one norm, one decision, all or nothing across them.

    ::

        N <- sqrt(sum of float64(g)^2 over all gradients of all optimizers that take part)
        g <- c * g                       max_norm, c = max_norm / (N + norm_eps) if below 1

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
    norm_eps : float >= 0
        Added to the norm that the joint's max_norm is divided by.
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
        norm_eps: float = 1e-6,
        on_nonfinite: str = "propagate",
        **optimizers: Optimizer,
    ) -> None:
        for name, opt in optimizers.items():
            if "." in name or not name:
                raise ValueError(
                    f"Joint: expected names with a letter or more, without the dot that parts them "
                    f"from the arrays', received {name!r}"
                )
            if not isinstance(opt, Optimizer):
                raise TypeError(
                    f"Joint: expected optimizers by name, received {name}={type(opt).__name__}; "
                    "pass name=tw.SGD(params, ...)"
                )
            if type(opt).step is not _core.Optimizer.step:
                raise TypeError(
                    f"Joint: expected optimizers with thalweg's own step, received {name}="
                    f"{type(opt).__name__}, whose step is another one and would not be called"
                )
        super().__init__(optimizers)
        self._optimizers = optimizers
        try:
            self.max_norm = max_norm
            self.norm_eps = norm_eps
            self.on_nonfinite = on_nonfinite
        except BaseException:
            self._let_go()  # a traceback may hold this object, and it must not hold them
            raise

    def __setattr__(self, name: str, value: Any) -> None:
        if type(self) is Joint and not name.startswith("_") and not hasattr(Joint, name):
            known = ", ".join(option.JOINT_LIMITS)
            raise AttributeError(
                f"{name}: expected one of what can be set, {known}, received a name that no step "
                'would read; what is an optimizer\'s own is set there: joint["name"].'
                f"{name}"
            )
        super().__setattr__(name, value)

    def _members(self) -> dict[str, Optimizer]:
        return self._optimizers

    def _by_writer(self, act: Callable[[], Result], changes: bool = False) -> Result:
        return act()

    _copy = staticmethod(Optimizer._copy)

    def __getitem__(self, name: str) -> Optimizer:
        if name not in self._optimizers:
            known = ", ".join(map(repr, self._optimizers))
            raise KeyError(f"{name!r}: expected one of the optimizers {known}")
        return self._optimizers[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._optimizers)

    def __len__(self) -> int:
        return len(self._optimizers)

    @property
    def step_count(self) -> int:
        """That of the optimizer that has taken the most steps."""
        return max(opt.step_count for opt in self._optimizers.values())

    @property
    def params(self) -> dict[str, Any]:
        """By name of the optimizer: its ``params``."""
        return {name: opt.params for name, opt in self._optimizers.items()}

    @property
    def param_groups(self) -> tuple[Group, ...]:
        """The groups of all optimizers, in the order given; see ``SGD.param_groups``."""
        return tuple(group for opt in self._optimizers.values() for group in opt.param_groups)

    @property
    def lr(self) -> dict[str, Any]:
        """By name of the optimizer: its ``lr``, which is set there: ``joint["emb"].lr = 0.1``."""
        return {name: opt.lr for name, opt in self._optimizers.items()}

    @lr.setter
    def lr(self, value: Any) -> None:
        first = next(iter(self._optimizers))
        raise AttributeError(
            f"lr: expected a rate for each optimizer, received {value!r} for all; assign "
            f"joint[{first!r}].lr, or the rates of groups: for group in joint.param_groups: "
            'group["lr"] *= 0.5'
        )

    def state_dict(self) -> dict[str, Any]:
        """The optimizers' by name, and the joint's own limits and counters; all of one moment."""
        with paused(self):
            return whole.taken(self)

    def load_state_dict(
        self,
        state_dict: Mapping[str, Any],
        *,
        options: Literal["file", "live"] | None = None,
        strict: bool = True,
        rename: Mapping[str, str] | None = None,
    ) -> Any:
        """Put a ``state_dict`` back into all optimizers, or into none: see theirs.

        With options="live" the joint's own limits stay, too. With ``strict=False`` or ``rename``
        arrays are called by their optimizer's name and their own, "emb.W"; ``rename={"": "emb"}``
        puts the state of one optimizer into that of the Joint. Raises ValueError, with all that
        does not fit in one message and nothing changed.
        """
        option.check_whose(options)
        matching.check_words(strict, options, rename)
        with paused(self):
            return matching.load_state_dict(self, state_dict, options, strict, rename)

    def __repr__(self) -> str:
        own = [f"{name}={opt!r}" for name, opt in self._optimizers.items()]
        if self.max_norm is not None:
            own.append(f"max_norm={self.max_norm!r}")
        if self.norm_eps != 1e-6:
            own.append(f"norm_eps={self.norm_eps!r}")
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
            "limits": option.limits_of(self, option.JOINT_LIMITS),
            "counters": (self.skipped_steps, self.grad_norm),
            "own": {name: value for name, value in vars(self).items() if name not in OWN},
        }
        return copyreg.__newobj__, (type(self),), state  # type: ignore[attr-defined]

    def __setstate__(self, state: dict[str, Any]) -> None:
        Joint.__init__(self, **state["limits"], **state["optimizers"])
        self._set_counters(*state["counters"])
        vars(self).update(state["own"])
