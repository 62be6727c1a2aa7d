"""The averages of the weights: what ``opt.averages`` gives, and how a snapshot is put back."""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np


class Averages(Mapping[str, Any]):
    """By name of the array: a view of its live average. Empty where weights are not averaged."""

    def __init__(self, optimizer: Any) -> None:
        self._optimizer = optimizer

    @property
    def _names(self) -> Collection[str]:
        return () if self._optimizer.weight_average is None else self._optimizer._arrays

    def __getitem__(self, name: str) -> Any:
        if name in self._names:
            average = self._optimizer._average_of(index_of(self._optimizer)[name])
            if average is not None:  # another thread may have let it go
                return average
        if self._names:
            raise KeyError(name)
        raise KeyError(
            f"averages: expected an optimizer with weight_average, received {name!r}, and "
            "there are none; make it with weight_average=0.999, or assign it between steps"
        )

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __repr__(self) -> str:
        return f"Averages({', '.join(map(repr, self))})"


def index_of(optimizer: Any) -> dict[str, int]:
    """From the names of arrays to their numbers, kept until a group is added."""
    arrays = optimizer._arrays
    index: dict[str, int] | None = vars(optimizer).get("_index")
    if index is None or len(index) != len(arrays):
        index = optimizer._index = {name: i for i, name in enumerate(arrays)}
    return index


def kept(opt: Any) -> list[tuple[Any, bool]]:
    """Copies of all averages, and whether each has taken a step."""
    averages = map(opt._average_of, range(len(opt._arrays)))
    return [
        (None if average is None else average.copy(order="K"), started)
        for average, started in zip(averages, opt._averages_started, strict=True)
    ]


def put_kept(opt: Any, averages: list[tuple[Any, bool]]) -> None:
    for i, (average, _) in enumerate(averages):
        if average is not None:
            np.copyto(opt._average_of(i), average)
    opt._averages_started = [started for _, started in averages]


def turn(members: Mapping[str, Any], wanted: Mapping[str, float | None]) -> None:
    """Give each optimizer its weight_average, or none of them: what fails comes before what lets
    averages go, which cannot be undone."""
    before = {name: opt.weight_average for name, opt in members.items()}
    numbers_first = sorted(wanted, key=lambda name: wanted[name] is None)
    done = []
    try:
        for name in numbers_first:
            members[name].weight_average = wanted[name]
            done.append(name)
    except BaseException as error:
        for name in done:
            members[name].weight_average = before[name]
        if isinstance(error, Exception) and not isinstance(error, ValueError):
            raise ValueError(f"{type(error).__name__}: {error}") from error
        raise


def stored(opt: Any, entries: Mapping[str, Any], fresh: Collection[str]) -> Iterator[Any]:
    """The number and the stored average, or None, of each array whose average is not to go on: it
    is named in the snapshot, or its param is ``fresh``."""
    if opt.weight_average is not None:
        for i, name in enumerate(opt._arrays):
            if name in entries or name in fresh:
                yield i, entries.get(name, {}).get("average")
