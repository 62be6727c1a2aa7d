"""What the ranks compare before a step, in a few bytes, and in words where these differ."""

import hashlib
import struct
from typing import Any

from thalweg._optimizer.groups import LIMITS
from thalweg._optimizer.options import plain
from thalweg._optimizer.tree import label

HEADER = 32  # bytes of the number of the step, of whether it may be taken, and of a digest

REFUSED = bytes(HEADER)

KINDS = {"-": "no gradient", "r": "a RowGrad", "d": "an array"}


class Agreement:
    """The words and digests of one optimizer."""

    def __init__(self, opt: Any) -> None:
        self._opt = opt
        self.forget()

    def forget(self) -> None:
        """Options may have changed."""
        self._options = ""
        self._known: dict[Any, bytes] = {}

    def words(self) -> dict[str, Any]:
        """What must be the same on all ranks, by what messages call it."""
        opt = self._opt
        told: dict[str, Any] = {
            "params": repr(opt._tree),
            "rule": [type(opt).__name__, *opt._kernels],
            "average": opt._average,
            "groups": opt._group_of,
        }
        for name, array in zip(opt._names, opt._shown, strict=True):
            told[label("params", name)] = f"{array.dtype} of shape {array.shape}"
        for i, group in enumerate(opt.param_groups):
            for name, value in group.items():
                if name != "params":
                    told[f"param_groups[{i}][{name!r}]"] = repr(plain(value))
        for name in LIMITS:
            told[name] = repr(getattr(opt, name))
        return told

    def options(self) -> str:
        """The same in one line, until something changes."""
        if not self._options:
            self._options = repr(self.words())
        return self._options

    def header(self, told: tuple[Any, ...]) -> bytes:
        """``told``: the options, the factor of the sum, whether it is partial, the kinds of
        gradients, and schedules' numbers."""
        digest = self._known.get(told)
        if digest is None:
            digest = hashlib.blake2b(repr(told).encode(), digest_size=23).digest()
            if len(self._known) < 64:
                self._known[told] = digest
        return struct.pack("<Qb", self._opt.step_count, 1) + digest

    def of_step(self, told: tuple[Any, ...]) -> dict[str, Any]:
        """The same in words."""
        opt = self._opt
        factor, partial, kinds, *numbers = told
        step: dict[str, Any] = {"step_count": opt.step_count, "scale": factor, "partial": partial}
        for name, kind in zip(opt._names, kinds, strict=True):
            step[label("grads", name)] = KINDS[kind]
        for (group, name, _), number in zip(opt._scheduled, numbers, strict=True):
            step[f"param_groups[{group}][{name!r}] of this step"] = number
        return step | self.words()
