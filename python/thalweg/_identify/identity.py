"""What ``identify`` has found, to be read and to be made."""

import math
from dataclasses import dataclass
from typing import Any, Literal

from thalweg._identify.call import Call


@dataclass(frozen=True, eq=False)
class Identity:
    """Which call an update is: ``print`` it, or ``make`` the optimizer.

    ``verdict`` is "same" (the same bits at every step), "close" (the same formula, ``eps`` apart in
    units of the dtype's eps, for the ``reason`` given) or "none" (another formula; ``first`` is the
    first step, from 1, at which it differs from ``call``, which comes nearest, and ``reason`` the
    probable cause). ``rule`` and ``options`` are those of ``call``. ``unknown`` is what the answers
    do not tell, ``notes`` what else was seen.
    """

    verdict: Literal["same", "close", "none"]
    call: Call | None
    reason: str
    eps: float
    first: int | None
    asked: str
    unknown: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def rule(self) -> str | None:
        return None if self.call is None else self.call.rule

    @property
    def options(self) -> dict[str, Any]:
        return {} if self.call is None else dict(self.call.options)

    def make(self, params: Any, **overrides: Any) -> Any:
        """The optimizer, for your params; ValueError where the update is none of them."""
        if self.verdict == "none" or self.call is None:
            nearest = f"; the nearest is {self.call}" if self.call else ""
            raise ValueError(f"make: expected an update that is one of these, {self}{nearest}")
        return self.call.make(params, **overrides)

    def __str__(self) -> str:
        return repr(self).partition("\n")[0]

    def __repr__(self) -> str:
        if self.verdict == "same":
            lines = [f"{self.call}: same bits"]
        elif self.verdict == "close":
            lines = [f"{self.call}: to {math.ceil(self.eps)} eps"]
            lines.append(f"  because {self.reason}")
        else:
            lines = ["none of these"]
            if self.call is not None and self.first is not None:
                lines[0] += f": first differs at step {self.first}"
                lines.append(f"  the nearest is {self.call}")
            if self.reason:
                lines.append(f"  probable cause: {self.reason}")
        lines += [f"  not known: {text}" for text in self.unknown]
        lines += [f"  note: {text}" for text in self.notes]
        lines.append(f"  asked: {self.asked}")
        return "\n".join(lines)
