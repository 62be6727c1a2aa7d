"""One optimizer, or those of a Joint by name: described, compared and put back, all or nothing."""

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import numpy as np

from thalweg._optimizer import averages, snapshot
from thalweg._optimizer.options import (
    JOINT_LIMITS,
    Chosen,
    Whose,
    choose,
    choose_limits,
    limits_of,
    put,
    same,
    set_limits,
)

VERSION = 1  # of what a Joint adds

Copy = Callable[[Any, Any], None]


def is_joint(opt: Any) -> bool:
    return "" not in opt._members()


def joined(member: str, name: str) -> str:
    """An array's name behind that of its optimizer, as messages have it."""
    return f"{member}.{name}" if member and name else member or name


def params(opt: Any) -> dict[str, Any]:
    """By name."""
    return {
        joined(member, name): array
        for member, each in opt._members().items()
        for name, array in each._arrays.items()
    }


def check_whole(opt: Any) -> None:
    for each in opt._members().values():
        each._check_whole()


def describe(opt: Any) -> dict[str, Any]:
    """All but the params. The arrays are views of the live state."""
    made = {name: snapshot.describe(each) for name, each in opt._members().items()}
    if not is_joint(opt):
        return made[""]
    return {
        "version": VERSION,
        "rule": "Joint",
        "skipped_steps": opt.skipped_steps,
        "grad_norm": opt.grad_norm,
        "limits": limits_of(opt, JOINT_LIMITS),
        "optimizers": made,
    }


def taken(opt: Any) -> dict[str, Any]:
    """The description of what is paused, with copies of its arrays."""
    check_whole(opt)
    return mapped(describe(opt), lambda array: array.copy(order="K"))


def parts(found: Mapping[str, Any]) -> dict[str, Any]:
    """The descriptions of the optimizers by name."""
    made: dict[str, Any] = found.get("optimizers", {"": found})
    return made


def with_parts(found: Mapping[str, Any], made: dict[str, Any]) -> dict[str, Any]:
    return {**found, "optimizers": made} if "optimizers" in found else made[""]


def mapped(found: Mapping[str, Any], change: Callable[[Any], Any]) -> dict[str, Any]:
    """The description with each array, or what stands for it, changed."""
    made = {name: snapshot.mapped(each, change) for name, each in parts(found).items()}
    return with_parts(found, made)


def with_norms(found: Mapping[str, Any], change: Callable[[Any], Any]) -> dict[str, Any]:
    """The description with each norm changed."""
    made = {
        name: {**each, "grad_norm": change(each["grad_norm"])}
        for name, each in parts(found).items()
    }
    whole = with_parts(found, made)
    return {**whole, "grad_norm": change(found["grad_norm"])} if "optimizers" in found else whole


def _broken(found: Mapping[str, Any]) -> Iterator[str]:
    """What a Joint adds, as far as it is wrong."""
    if not same(VERSION, found.get("version")):
        yield f"version: expected {VERSION}, received {found.get('version')!r}"
        return
    keys = ("rule", "skipped_steps", "grad_norm", "limits", "optimizers")
    if missing := [key for key in keys if key not in found]:
        yield f"expected the keys {', '.join(keys)}, received none called {', '.join(missing)}"
        return
    yield from snapshot.count_problems("skipped_steps", found["skipped_steps"])
    yield from snapshot.norm_problems(found["grad_norm"])
    optimizers = found["optimizers"]
    if not isinstance(optimizers, Mapping) or not all(isinstance(key, str) for key in optimizers):
        yield f"optimizers: expected a mapping by name, received {optimizers!r}"


def form_problems(found: Any) -> Iterator[str]:
    """What keeps this from being a description, whatever it is to be put into."""
    if not isinstance(found, Mapping) or "optimizers" not in found:
        yield from snapshot.form_problems(found)
        return
    broken = [*_broken(found)]
    yield from broken
    if broken:
        return
    for name, each in found["optimizers"].items():
        yield from (f"{name}: {problem}" for problem in snapshot.form_problems(each))


def problems(opt: Any, found: Any, kind: Any = np.ndarray) -> Iterator[str]:
    """What keeps these optimizers from taking this description; nothing if it fits."""
    joint_found = isinstance(found, Mapping) and "optimizers" in found
    if not is_joint(opt):
        if joint_found:
            yield "expected the state of one optimizer, received that of a Joint"
        else:
            yield from snapshot.problems(opt, found, kind)
        return
    if not joint_found:
        yield "expected the state of a Joint, received another"
        return
    broken = [*_broken(found)]
    yield from broken
    if broken:
        return
    members, optimizers = opt._members(), found["optimizers"]
    if set(optimizers) != set(members):
        yield f"optimizers: expected {', '.join(members)}, received {', '.join(optimizers)}"
        return
    for name, each in members.items():
        for problem in snapshot.problems(each, optimizers[name], kind):
            yield f"{name}: {problem}"


class Choice:
    """Whose options and limits are to hold, for each optimizer and for the Joint."""

    def __init__(self, opt: Any, found: Mapping[str, Any], whose: Whose) -> None:
        self.members: dict[str, Chosen] = {}
        self.own: Chosen | None = None
        differing = []
        stored = {} if whose == "live" else parts(found)
        for name, each in opt._members().items():
            try:
                self.members[name] = made = choose(each, stored.get(name, {}), whose)
            except ValueError as error:
                raise ValueError(f"{name}: {error}" if name else str(error)) from None
            differing += [f"{name}: {line}" if name else line for line in made.differing]
        if is_joint(opt):
            self.own = choose_limits(opt, found, whose, JOINT_LIMITS)
            differing += self.own.differing
        self._all = Chosen([], {}, differing)

    def warn(self, source: str, stacklevel: int) -> None:
        self._all.warn(source, stacklevel + 1)

    def averages(self) -> dict[str, float | None]:
        """The weight_average of each optimizer."""
        return {name: chosen.limits["weight_average"] for name, chosen in self.members.items()}

    def put(self, opt: Any) -> Callable[[], None]:
        """Set all of it, or none: ValueError. Returns what puts the old ones back."""
        undoes: list[Callable[[], None]] = []

        def undo() -> None:
            for each in reversed(undoes):
                each()

        def limit(values: Mapping[str, Any]) -> None:
            before = limits_of(opt, JOINT_LIMITS)
            undoes.append(lambda: set_limits(opt, before))
            set_limits(opt, values)

        try:
            if self.own:
                limit(JOINT_LIMITS)  # those of the optimizers may be what it does not allow now
            for name, each in opt._members().items():
                undoes.append(put(each, self.members[name]))
            if self.own:
                limit(self.own.limits)
        except BaseException as error:
            undo()
            if isinstance(error, TypeError):
                raise ValueError(str(error)) from error
            raise
        return undo


def restore(
    opt: Any,
    found: Mapping[str, Any],
    choice: Choice,
    why: str,
    copy: Copy,
    pairs: Any,
    params_only: Collection[str] = (),
) -> None:
    """Set the options, copy ``pairs`` (params) and state by ``copy(live, other)``, and count.

    The description fits; arrays that it does not name stay. An average that is not in it, of an
    array that is or of which ``params_only`` are loaded, begins anew. ValueError, with nothing
    changed, if the options are out of range. Should anything fail later, the optimizers refuse
    steps, saying why.
    """
    members, stored = opt._members(), parts(found)
    states = [
        (state, stored[member]["arrays"][name][each._slot])
        for member, each in members.items()
        for i, name in enumerate(each._arrays)
        if name in stored[member]["arrays"] and (state := each._state_of(i)) is not None
    ]
    before = [each._refusal for each in members.values()]
    for each in members.values():
        each._refuse_steps(
            f"step: {why} ended half-way, and what is live is neither old nor new; "
            "load a checkpoint"
        )
    try:
        undo = choice.put(opt)
        try:
            averages.turn(members, choice.averages())
        except BaseException:
            undo()
            raise
    except BaseException:
        for each, refusal in zip(members.values(), before, strict=True):
            each._refuse_steps(refusal)
        raise
    try:
        kept = {name: each._averages_started for name, each in members.items()}
        for member, each in members.items():
            fresh = [name for name in each._arrays if joined(member, name) in params_only]
            for i, average in averages.stored(each, stored[member]["arrays"], fresh):
                kept[member][i] = average is not None
                if average is not None:
                    states.append((each._average_of(i), average))
        live = [state for state, _ in states]
        # All copies are made before the first write.
        for mine, other in [*pairs, *[(x, _apart(y, live)) for x, y in states]]:
            copy(mine, other)
        for member, each in members.items():
            _count(each, stored[member])
            each._averages_started = kept[member]
        if choice.own:
            opt._set_counters(int(found["skipped_steps"]), found["grad_norm"])
    except BaseException:
        undo()
        raise
    for each in members.values():
        each._refuse_steps("")
        each._loaded = [each.step_count]  # another one each time: a keeper sees that
    opt._loaded = [opt.step_count]


def _count(opt: Any, found: Mapping[str, Any]) -> None:
    steps = [
        int(found["arrays"][name]["step"]) if name in found["arrays"] else opt._steps_of(i)
        for i, name in enumerate(opt._arrays)
    ]
    rates = found.get("last_lr")
    rates = None if rates is None else tuple(rates)
    norm = found["grad_norm"]
    opt._set_counters(int(found["step_count"]), steps, int(found["skipped_steps"]), norm, rates)


def _apart(array: Any, live: list[Any]) -> Any:
    """The array, or a copy where it shares memory with what is written before it is read."""
    shared = isinstance(array, np.ndarray) and any(
        isinstance(x, np.ndarray) and np.may_share_memory(array, x) for x in live
    )
    return array.copy() if shared else array
