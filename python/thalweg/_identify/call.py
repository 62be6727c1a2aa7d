"""A call of an optimizer, as text and run on what was asked; how near it comes to the answers."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from thalweg._identify.probe import LARGE, SMALL, Array, Record
from thalweg.optimizers import SGD, Adagrad

RULES: dict[str, Any] = {"SGD": SGD, "Adagrad": Adagrad}


@dataclass(frozen=True)
class Comparison:
    same: bool  # every bit, at every step
    eps: float  # the largest distance, in eps of the largest that the element has been
    first: int | None  # the first step, from 1, that is more than LIMIT eps away


@dataclass(frozen=True)
class Call:
    """An optimizer's class and its options."""

    rule: str
    options: dict[str, Any]

    def __str__(self) -> str:
        given = (f"{name}={_told(value)}" for name, value in self.options.items())
        return f"tw.{self.rule}({', '.join(('params', *given))})"

    def make(self, params: Any, **overrides: Any) -> Any:
        return RULES[self.rule](params, **(self.options | overrides))

    def run(self, record: Record, rate: float | None = None) -> list[list[Array]]:
        """On what was asked; ``rate`` is the one that holds in the last steps."""
        params = [array.copy() for array in record.params[0]]
        opt = self.make(params)
        rows = [[array.copy() for array in params]]
        for t, grads in enumerate(record.grads):
            if t == SMALL + LARGE and rate is not None:
                opt.lr = rate
            opt.step(grads)
            rows.append([array.copy() for array in params])
        return rows


def _told(value: Any) -> str:
    return f"tw.schedules.{value!r}" if callable(value) else repr(value)


def compared(made: list[list[Array]], record: Record, limit: float) -> Comparison:
    same, worst, first = True, 0.0, None
    size = [np.abs(np.nan_to_num(array)) for array in record.params[0]]
    last = [np.abs(np.nan_to_num(array)) for array in record.params[-1]]
    for t, (row, answer) in enumerate(zip(made, record.params, strict=True)):
        for i, (a, b) in enumerate(zip(row, answer, strict=True)):
            kind = f"u{b.dtype.itemsize}"
            alike = (a.view(kind) == b.view(kind)) | (np.isnan(a) & np.isnan(b))
            size[i] = np.fmax(size[i], np.abs(b))
            if alike.all():
                continue
            same = False
            with np.errstate(all="ignore"):
                unit = np.finfo(b.dtype).eps * np.fmax(size[i], 1e-6 * last[i])
                away = np.where(alike, 0.0, np.abs(a.astype(np.float64) - b) / unit)
            distance = float(np.nan_to_num(away, nan=np.inf, posinf=np.inf).max())
            worst = max(worst, distance)
            if distance > limit and first is None:
                first = t
    return Comparison(same, worst, first)
