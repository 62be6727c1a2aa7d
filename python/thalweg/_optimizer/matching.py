"""What of a snapshot fits other optimizers than its own: names that were changed, and what is left
when all else is."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from thalweg._optimizer import snapshot
from thalweg._optimizer.options import Whose, same
from thalweg._optimizer.whole import (
    Choice,
    describe,
    form_problems,
    is_joint,
    joined,
    parts,
    problems,
    restore,
    with_parts,
)


@dataclass
class LoadReport:
    """What a load with strict=False has taken, by name of the array; "emb.W" in a Joint.

    Attributes
    ----------
    loaded : list of str
        All there is of them: the state and the step and, from a checkpoint, the param.
    params_only : dict
        The param, not the state; and why.
    kept : dict
        Live arrays that are as they were; and why.
    unused : dict
        What no live array was given; and why.
    counters : bool
        Whether step_count and what goes with it was loaded, of every optimizer.
    """

    loaded: list[str] = field(default_factory=list)
    params_only: dict[str, str] = field(default_factory=dict)
    kept: dict[str, str] = field(default_factory=dict)
    unused: dict[str, str] = field(default_factory=dict)
    counters: bool = True


class Entry(NamedTuple):
    """An array of a snapshot: the description of its optimizer, and its own part of it."""

    described: Mapping[str, Any]
    own: Mapping[str, Any]


Flat = dict[str, Entry]


def check_words(strict: Any, options: Whose, rename: Any) -> None:
    if not isinstance(strict, (bool, np.bool_)):
        raise TypeError(f"strict: expected True or False, received {strict!r}")
    if not strict and options == "file":
        raise ValueError(
            'options: expected "live" or None with strict=False, received "file"; the live options '
            "stay where groups may not be the same"
        )
    if rename is None:
        return
    if not isinstance(rename, Mapping) or not all(
        isinstance(name, str) for item in rename.items() for name in item
    ):
        raise TypeError(
            f"rename: expected a dict from names there to names here, received {rename!r}"
        )


def flattened(found: Mapping[str, Any]) -> Flat:
    return {
        joined(member, name): Entry(each, own)
        for member, each in parts(found).items()
        for name, own in each["arrays"].items()
    }


def new_names(names: list[str], rename: Mapping[str, str]) -> dict[str, str]:
    """From old to new; a name in ``rename`` is an array's, or of all that is below it."""
    made = {}
    used = set()
    for name in names:
        above = [key for key in rename if key in ("", name) or name.startswith(key + ".")]
        made[name] = name
        if above:
            key = max(above, key=len)
            used.add(key)
            rest = name if key == "" else name[len(key) + 1 :]
            made[name] = joined(rename[key], rest)
    for key in rename:
        if key not in used:
            raise ValueError(
                f"rename: expected names of {', '.join(map(repr, names))}, or what stands before a "
                f"dot in them, received {key!r}"
            )
    for old, new in made.items():
        twin = next(name for name in made if made[name] == new)
        if twin != old:
            raise ValueError(
                f"rename: expected a name of its own for each, received {new!r} for {twin!r} and "
                f"{old!r}"
            )
    return made


def renamed(found: Mapping[str, Any], rename: Mapping[str, str]) -> dict[str, Any]:
    """The description with these names; those of a Joint's optimizers change with them."""
    names = new_names([*flattened(found)], rename)
    made: dict[str, Any] = {}
    for member, each in parts(found).items():
        for name, own in each["arrays"].items():
            new = names[joined(member, name)]
            to, _, rest = new.partition(".") if "optimizers" in found else ("", "", new)
            target = made.setdefault(to, (member, {**each, "arrays": {}}))
            if target[0] != member:
                raise ValueError(
                    f"rename: expected the arrays of one optimizer below {to!r}, received those of "
                    f"{target[0]!r} and {member!r}"
                )
            target[1]["arrays"][rest] = own
    return with_parts(found, {name: each for name, (_, each) in made.items()})


def state_problems(
    live: Mapping[str, Any], name: str, param: Any, entry: Entry, kind: Any
) -> Iterator[str]:
    """What keeps an array's state from being the live one's."""
    described, other = entry
    if not same(live["rule"], described["rule"]):
        yield f"rule: expected {live['rule']}, received {described['rule']!r}"
        return
    mine = live["arrays"][name]
    groups = live["groups"][mine["group"]], described["groups"][other["group"]]
    yield from snapshot.kept_problems("its group", *groups)
    if snapshot.slots_of(mine) != snapshot.slots_of(other):
        yield f"expected {', '.join(mine)}, received {', '.join(map(str, other))}"
        return
    yield from snapshot.slot_problems("state", mine, other, kind)
    if live["limits"].get("weight_average") is not None and "average" in other:
        yield from snapshot.fit("average", param, other["average"], kind)


class Match:
    """What fits by name, shape and rule, ready for ``restore``; the rest stays."""

    def __init__(
        self,
        opt: Any,
        found: Mapping[str, Any],
        kind: Any = np.ndarray,
        params: Mapping[str, Any] | None = None,
    ) -> None:
        self.report = report = LoadReport()
        self.pairs: list[tuple[Any, Any]] = []
        flat, live = flattened(found), describe(opt)
        if not is_joint(opt) or "optimizers" not in found:
            counted = live
        else:
            counted = {**live, **{key: found[key] for key in ("skipped_steps", "grad_norm")}}
        made = {}
        for member, each in parts(live).items():
            arrays, sources = {}, []
            for name in each["arrays"]:
                full = joined(member, name)
                entry = flat.pop(full, None)
                if entry is None:
                    report.kept[full] = "there is none of this name"
                    continue
                param = np.asarray(opt._members()[member]._arrays[name])
                if params is not None:
                    wrong = "; ".join(snapshot.fit("param", param, params[full], kind))
                    if wrong:
                        report.kept[full] = wrong
                        continue
                    self.pairs.append((param, params[full]))
                wrong = "; ".join(state_problems(each, name, param, entry, kind))
                if not wrong:
                    report.loaded.append(full)
                    arrays[name] = entry.own
                    sources.append(entry.described)
                elif params is None:
                    report.kept[full] = wrong
                else:
                    report.params_only[full] = wrong
            made[member] = {**each, "arrays": arrays}
            if sources and all(source is sources[0] for source in sources):
                keys = ("step_count", "skipped_steps", "grad_norm")
                made[member] |= {key: sources[0][key] for key in keys}
                rates = sources[0].get("last_lr")
                if rates is not None and len(rates) == len(each["groups"]):
                    made[member]["last_lr"] = rates
            else:
                report.counters = False
        report.unused.update(dict.fromkeys(flat, "no live array has this name"))
        self.found = with_parts(counted, made)
        self.choice = Choice(opt, {}, "live")


def load_state_dict(
    opt: Any, found: Any, options: Whose, strict: bool, rename: Mapping[str, str] | None
) -> LoadReport | None:
    """Of an optimizer or a Joint that is paused; for its caller's caller."""
    source = "load_state_dict"
    try:
        if (rename or not strict) and (wrong := [*form_problems(found)]):
            raise ValueError("; ".join(wrong))
        if rename:
            found = renamed(found, rename)
        if not strict:
            match = Match(opt, found)
            restore(opt, match.found, match.choice, source, opt._copy, ())
            return match.report
        if wrong := [*problems(opt, found)]:
            raise ValueError("; ".join(wrong))
        choice = Choice(opt, found, options)
        choice.warn(source, stacklevel=3)
        restore(opt, found, choice, source, opt._copy, ())
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None
    return None
