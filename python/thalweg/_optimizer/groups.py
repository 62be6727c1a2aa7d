"""Groups: which options hold for which arrays, and what ``opt.param_groups`` and ``state`` give."""

from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from fnmatch import fnmatchcase
from numbers import Real
from types import MappingProxyType
from typing import Any

from thalweg._optimizer.averages import index_of
from thalweg._optimizer.spelling import hint
from thalweg._optimizer.tree import Flat, count, fill

# What holds for all groups, with what it is when nothing is said.
LIMITS = {
    "max_norm": None,
    "max_array_norm": None,
    "norm_eps": 1e-6,
    "max_value": None,
    "weight_average": None,
    "on_nonfinite": "propagate",
}


class Grouping:
    """The arrays of all groups and their options, ready for the core.

    ``params`` is a tree, or a list of groups: mappings with "params" and options, which hold for
    these arrays, and mappings with "match" and options, which hold on top of that for the arrays
    whose name the pattern matches, the last word being the last match's.
    """

    def __init__(self, params: Any, options: Mapping[str, Any]) -> None:
        self.grouped = is_grouped(params, options)
        groups = params if self.grouped else [{"params": params}]
        bodies = [group for group in groups if "params" in group]
        containers = [body["params"] for body in bodies]
        self.containers = containers if self.grouped else params
        rules = [group for group in groups if "params" not in group]
        flat = Flat()
        self.trees: list[Any] = []
        self.options = [dict(options) | _without(body, "params") for body in bodies]
        self.group_of: list[int] = []
        check_names(group["name"] for group in groups if self.grouped and "name" in group)
        matched: dict[tuple[int, ...], int] = {}
        for i, body in enumerate(bodies):
            self.trees.append(flat.add(body["params"], str(i) if self.grouped else ""))
            for name in list(flat.leaves)[len(self.group_of) :]:
                found = [k for k, rule in enumerate(rules) if fnmatchcase(name, rule["match"])]
                if not found:
                    self.group_of.append(i)
                    continue
                group = matched.setdefault((i, *found), len(self.options))
                if group == len(self.options):
                    made = dict(self.options[i])
                    for k in found:
                        made.update(_without(rules[k], "match"))
                    self.options.append(
                        made | _name_of(self.options[i], *(rules[k] for k in found))
                    )
                self.group_of.append(group)
        if not flat.leaves:
            raise ValueError("params: expected at least one array, received none")
        for k, rule in enumerate(rules):
            if not any(k in key[1:] for key in matched):
                cure = "; a [ in a name is [[] in a pattern" if "[" in rule["match"] else ""
                raise ValueError(
                    f"match: expected a pattern that matches one of {', '.join(flat.leaves)}, "
                    f"received {rule['match']!r}{cure}"
                )
        self.arrays = flat.leaves


def check_names(names: Iterable[Any], taken: Iterable[str] = ()) -> None:
    seen = set(taken)
    for name in names:
        if not name:
            raise ValueError("name: expected one with a letter or more, received ''")
        if name in seen:
            raise ValueError(f"name: expected one for each group, received {name!r} twice")
        seen.add(name)


def _name_of(body: Mapping[str, Any], *rules: Mapping[str, Any]) -> dict[str, Any]:
    """That of a group whose arrays some patterns took out of another one's."""
    names = [rule["name"] for rule in rules if "name" in rule]
    return {"name": ".".join([body["name"], *names] if "name" in body else names) or None}


def _without(group: Mapping[str, Any], kind: str) -> dict[str, Any]:
    return {name: value for name, value in group.items() if name != kind}


def is_grouped(params: Any, options: Mapping[str, Any], first: int = 0) -> bool:
    """Whether params is a list of groups; a misspelt option of a group is refused by its name.

    ``first`` is the number that the first group has in messages.
    """
    if isinstance(params, Mapping) and "params" in params:
        for key, value in params.items():
            if key in options and (isinstance(value, (Real, str)) or callable(value)):
                raise TypeError(
                    f'params["{key}"]: expected an array, received {value!r}; '
                    "groups stand in a list, one of them too: [params]"
                )
    if not (isinstance(params, (list, tuple)) and params):
        return False
    if not all(
        isinstance(item, Mapping)
        and ("params" in item or isinstance(item.get("match"), (Real, str)))
        for item in params
    ):
        return False
    if not any("params" in item for item in params):
        return False
    others = [
        (i, key, value)
        for i, item in enumerate(params, first)
        for key, value in item.items()
        if key != ("params" if "params" in item else "match")
        and key not in options
        and not (key == "name" and isinstance(value, str))
    ]
    for i, key, value in others:
        if isinstance(value, (Real, str)) or callable(value):
            raise TypeError(
                f'params["{i}.{key}"]: expected an array, or for a group one of the options '
                f"{', '.join(options)}, received {key}={value!r}{hint(key, options)}"
            )
    for item in params:
        if "params" not in item and not isinstance(item["match"], str):
            raise TypeError(f"match: expected a pattern, a str, received {item['match']!r}")
    return not others


class Group(MutableMapping[str, Any]):
    """The options of one group of params; assignment is checked and holds from the next step.

    "name" is what the group was called, if it was. "params" is the tree that the group was made
    with or, where patterns ("match") took arrays out of it, a dict by name of those that are left;
    of a pattern's own group, too.
    """

    def __init__(self, optimizer: Any, index: int) -> None:
        self._optimizer, self._index = optimizer, index

    def options(self) -> dict[str, Any]:
        """A copy."""
        return {name: self[name] for name in self}

    @property
    def name(self) -> str | None:
        name: str | None = self._optimizer._options[self._index].get("name")
        return name

    def __getitem__(self, name: str) -> Any:
        opt = self._optimizer
        if name == "params":
            # Another thread may be adding a group: its arrays are there before their numbers.
            named = zip(opt._arrays.items(), list(opt._group_of), strict=False)
            own = dict(item for item, group in named if group == self._index)
            if self._index not in opt._bodies:
                return own
            tree = opt._trees[opt._bodies.index(self._index)]
            return fill(tree, list(opt._arrays.values())) if count(tree) == len(own) else own
        if name in opt._fixed or (name == "name" and self.name is not None):
            return opt._options[self._index][name]
        if name not in opt._defaults:
            raise KeyError(name)
        return opt._get_option(self._index, name)

    def __setitem__(self, name: str, value: Any) -> None:
        opt = self._optimizer
        if name == "lr":  # which excludes no other option
            opt._set_option(self._index, name, value)
            return
        if name not in opt._defaults and name != "name":
            known = opt._defaults
            raise KeyError(f"{name!r}: expected one of {', '.join(known)}{hint(name, known)}")
        kernel = opt._kernels[self._index]
        if name in (*opt._fixed, "initial_accumulator_value", "name"):
            raise ValueError(
                f"{name}: fixed when the optimizer was made, received {value!r}; "
                "make a new optimizer"
            )
        if name == "momentum" and kernel == "sgd":
            raise ValueError(
                f"momentum: this optimizer was made with momentum=0 and holds no velocity, "
                f"received {value!r}; make a new optimizer with momentum > 0"
            )
        opt._kernel(self.options() | {name: value}, kernel)
        opt._set_option(self._index, name, value)

    def __delitem__(self, name: str) -> None:
        raise TypeError(f"{name}: an option cannot be deleted; assign its default")

    def __iter__(self) -> Iterator[str]:
        return iter(self._optimizer._defaults)

    def __len__(self) -> int:
        return len(self._optimizer._defaults)

    def __repr__(self) -> str:
        named = "" if self.name is None else f"{self.name!r}, "
        return f"Group({named}{self.options()})"


class State(Mapping[str, Mapping[str, Any]]):
    """What ``opt.state`` gives: by name of the array, its state and its number of steps."""

    def __init__(self, optimizer: Any) -> None:
        self._optimizer = optimizer
        self._index = index_of(optimizer)

    def __getitem__(self, name: str) -> Mapping[str, Any]:
        i = self._index[name]
        state = self._optimizer._state_of(i)
        slots = {} if state is None else {self._optimizer._slot: state}
        return MappingProxyType(slots | {"step": self._optimizer._steps_of(i)})

    def __iter__(self) -> Iterator[str]:
        return iter(self._index)

    def __len__(self) -> int:
        return len(self._index)

    def __repr__(self) -> str:
        return f"State({', '.join(map(repr, self))})"
