"""Whose options hold when a snapshot is put back: those in it, or the live ones."""

import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Literal

from thalweg import schedules
from thalweg._optimizer.groups import LIMITS

CALLABLE = "callable"

SCHEDULES: dict[str, Any] = {
    name: made
    for name, made in vars(schedules).items()
    if is_dataclass(made) and made.__module__ == schedules.__name__
}

# Those of a Joint, which are over all of its optimizers.
JOINT_LIMITS = {name: LIMITS[name] for name in ("max_norm", "norm_eps", "on_nonfinite")}

# Limits that snapshots did not name at first, and what held without them.
LATER = {"norm_eps": 1e-6, "max_array_norm": None, "weight_average": None}

Whose = Literal["file", "live"] | None


def plain(value: Any) -> Any:
    """An option as numbers, words, lists and dicts."""
    if not callable(value):
        return value
    name = type(value).__name__
    if type(value) is not SCHEDULES.get(name):
        return CALLABLE
    made = {}
    for field in fields(value):
        if field.init:
            part = getattr(value, field.name)
            made[field.name] = [*map(plain, part)] if isinstance(part, tuple) else plain(part)
    return {"schedule": name, "fields": made}


def _live(value: Any, before: Any) -> Any:
    """The option that ``plain`` made this of; ``before`` is what the optimizer has."""
    if isinstance(value, str) and value == CALLABLE:
        if not callable(before):
            raise ValueError(
                f"expected a number, as the live one is ({before!r}), received a callable that "
                'cannot be stored; set a callable first, or keep the live options: options="live"'
            )
        return before
    if _has_callable(value):
        # A schedule around a callable of the caller's: the live one, if it has the same form.
        if plain(before) != value:
            raise ValueError(
                "expected the live schedule around a callable to be of the same form; make it so, "
                'or keep the live options: options="live"'
            )
        return before
    return _schedule(value)


def _has_callable(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(map(_has_callable, value.values()))
    if isinstance(value, list):
        return any(map(_has_callable, value))
    return isinstance(value, str) and value == CALLABLE


def _schedule(value: Any) -> Any:
    """The schedule, or the number, that this describes."""
    if not isinstance(value, Mapping):
        return value
    name, given = value.get("schedule"), value.get("fields")
    if name not in SCHEDULES or not isinstance(given, Mapping):
        raise ValueError(f"expected a schedule of thalweg.schedules, received {str(name)[:80]!r}")
    parts = {
        key: [*map(_schedule, part)] if isinstance(part, list) else _schedule(part)
        for key, part in given.items()
    }
    return SCHEDULES[name](**parts)


def same(mine: Any, other: Any) -> bool:
    """Whether they are equal, whatever the other one is."""
    try:
        return isinstance(other, bool) == isinstance(mine, bool) and bool(mine == other)
    except Exception:
        return False


@dataclass
class Chosen:
    """The options and limits that are to hold, and a line for each that the snapshot has otherwise
    than the optimizer."""

    groups: list[dict[str, Any]]
    limits: dict[str, Any]
    differing: list[str]

    def warn(self, source: str, stacklevel: int) -> None:
        """Say whose options hold, where nobody has said so; nothing has changed yet."""
        if self.differing:
            warnings.warn(
                f"{source}: its options hold from now on, and differ from the live ones: "
                f'{"; ".join(self.differing)}. To keep the live ones, pass options="live"; to take '
                'these without this warning, options="file"',
                UserWarning,
                stacklevel=stacklevel + 1,
            )


def check_whose(whose: Any) -> None:
    if not (whose is None or (isinstance(whose, str) and whose in ("file", "live"))):
        raise ValueError(f'options: expected "file" or "live", received {whose!r}')


def choose(opt: Any, found: Mapping[str, Any], whose: Whose) -> Chosen:
    """ValueError: the snapshot's cannot be had."""
    groups = [group.options() for group in opt.param_groups]
    if whose == "live":
        return Chosen(groups, limits_of(opt, LIMITS), [])
    made: list[dict[str, Any]] = []
    differing = []
    for i, (live, stored) in enumerate(zip(groups, found["groups"], strict=True)):
        made.append({})
        for name, before in live.items():
            place = f"groups[{i}].{name}"
            try:
                made[i][name] = value = _live(stored[name], before)
            except (TypeError, ValueError, RecursionError) as error:
                raise ValueError(f"{place}: {error}") from None
            if not same(plain(before), stored[name]):
                stays = value is before
                there = "a callable that cannot be" if stays else _told(value)
                differing.append(_line(place, there, before) + (", which stays" if stays else ""))
    chosen = choose_limits(opt, found, whose, LIMITS)
    return Chosen(made, chosen.limits, [*differing, *chosen.differing] if whose is None else [])


def limits_of(opt: Any, names: Iterable[str]) -> dict[str, Any]:
    return {name: getattr(opt, name) for name in names}


def choose_limits(opt: Any, found: Mapping[str, Any], whose: Whose, names: Iterable[str]) -> Chosen:
    limits = limits_of(opt, names)
    if whose == "live":
        return Chosen([], limits, [])
    try:
        stored = {name: ({**LATER, **found["limits"]})[name] for name in names}
    except (KeyError, TypeError) as error:
        raise ValueError(f"limits: {type(error).__name__}: {error}") from None
    differing = [
        _line(name, _told(stored[name]), before)
        for name, before in limits.items()
        if not same(before, stored[name])
    ]
    return Chosen([], stored, differing if whose is None else [])


def set_limits(opt: Any, limits: Mapping[str, Any]) -> None:
    """But for weight_average, which cannot be undone."""
    # What is not set any more first: two norms would exclude each other on the way.
    for name, value in sorted(limits.items(), key=lambda item: item[1] is not None):
        if name != "weight_average":
            setattr(opt, name, value)


def _line(name: str, stored: str, live: Any) -> str:
    return f"{name}: {stored} stored, {_told(live)} live"


def _told(value: Any) -> str:
    told = repr(value)
    return told if len(told) <= 300 else f"{told[:300]}..."


def put(opt: Any, chosen: Chosen) -> Callable[[], None]:
    """Set options and limits, or none of them: ValueError. Returns what puts the old ones back."""
    before = choose(opt, {}, "live")

    def set_all(options: Chosen) -> None:
        for i, values in enumerate(options.groups):
            if opt._kernel(values, opt._kernels[i]) != opt._kernels[i]:
                raise ValueError(
                    f"groups[{i}].momentum: expected 0, as the live group holds no velocity, "
                    f"received {values['momentum']!r}"
                )
            for name, value in opt._numbers(values).items():
                opt._set_option(i, name, value)
        set_limits(opt, options.limits)

    def undo() -> None:
        set_all(before)

    try:
        set_all(chosen)
    except BaseException as error:
        undo()
        if isinstance(error, Exception) and not isinstance(error, ValueError):
            raise ValueError(f"{type(error).__name__}: {error}") from error
        raise
    return undo
