"""What the optimizers share: construction, groups, state, pickling."""

import itertools
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from numbers import Real
from types import MappingProxyType
from typing import Any, ClassVar, Self

from thalweg import _core
from thalweg._tree import Flat
from thalweg.presets import preset

Schedule = Callable[[int], float]


class Optimizer(_core.Optimizer):
    """What SGD and Adagrad have in common; ``step`` is native and inherited.

    A rule is a subclass with ``_slot``, the name of its state; ``_fixed``, the options that choose
    the kernel and so stay as they were made; and ``_kernel``, which checks how options combine and
    names the kernel.
    """

    _slot: ClassVar[str]
    _fixed: ClassVar[tuple[str, ...]]
    _presets: ClassVar[dict[str, dict[str, Any]]]

    @staticmethod
    def _kernel(options: Mapping[str, Any], kernel: str = "") -> str:
        """Refuse options that exclude each other; ``kernel`` is the one already chosen, if any."""
        raise TypeError("Optimizer: expected SGD or Adagrad, received the base class")

    def __init__(self, params: Any, options: dict[str, Any], grads: Any = None) -> None:
        if "param_groups" in vars(self):
            raise TypeError("__init__: this optimizer holds arrays already; make a new one")
        grouped = _is_grouped(params, options)
        groups = params if grouped else [{"params": params}]
        flat = Flat()
        trees, self._options, members, plans = [], [], [], []
        for i, group in enumerate(groups):
            first = len(flat.leaves)
            trees.append(flat.add(group["params"], str(i) if grouped else ""))
            members.append(range(first, len(flat.leaves)))
            chosen = options | {name: x for name, x in group.items() if name != "params"}
            plans.append((self._kernel(chosen), self._numbers(chosen)))
            self._options.append({name: chosen[name] for name in self._fixed})
        if not flat.leaves:
            raise ValueError("params: expected at least one array, received none")
        self._trees, self._grouped, self._names = trees, grouped, tuple(options)
        self._arrays = flat.leaves
        group_of = itertools.chain.from_iterable([i] * len(m) for i, m in enumerate(members))
        leaves = [(*leaf, group) for leaf, group in zip(flat.leaves.items(), group_of, strict=True)]
        super().__init__(trees if grouped else trees[0], leaves, plans, grads)
        self._kernels = tuple(kernel for kernel, _ in plans)
        self.param_groups = tuple(Group(self, i) for i in range(len(plans)))

    @classmethod
    def _numbers(cls, options: Mapping[str, Any]) -> dict[str, Any]:
        """The options that the core keeps; it knows their ranges."""
        return {name: value for name, value in options.items() if name not in cls._fixed}

    @classmethod
    def like(cls, source: str, params: Any, **overrides: Any) -> Self:
        """Make an optimizer with the defaults of another library or book.

        The sources are the keys of ``thalweg.presets``; any option may be overridden except form
        and eps_placement, which make a source what it is.

        Example
        -------
        >>> import numpy as np, thalweg as tw
        >>> tw.Adagrad.like("keras", np.zeros(3), lr=0.01).param_groups[0]["eps"]
        1e-07
        """
        return cls(params, **preset(cls._presets, source, overrides))

    @property
    def lr(self) -> float | Schedule:
        """The learning rate of all groups; assigning sets it for all."""
        rates = [group["lr"] for group in self.param_groups]
        if any(rate != rates[0] for rate in rates):
            raise ValueError(
                f"lr: expected one for all groups, received {rates}; read param_groups[i]['lr']"
            )
        rate: float | Schedule = rates[0]
        return rate

    @lr.setter
    def lr(self, value: float | Schedule) -> None:
        before = [group["lr"] for group in self.param_groups]
        try:
            for group in self.param_groups:
                group["lr"] = value
        except BaseException:
            for group, rate in zip(self.param_groups, before, strict=True):
                group["lr"] = rate
            raise

    @property
    def state(self) -> Mapping[str, Mapping[str, Any]]:
        """By name of the array: views of its live state, and "step", the steps it has taken."""
        return State(self)

    def __repr__(self) -> str:
        described = ", ".join(f"{k}={v!r}" for k, v in self.param_groups[0].items())
        if len(self.param_groups) > 1:
            described = f"{len(self.param_groups)} groups"
        arrays = self._arrays.values()
        dtypes = " and ".join(sorted({str(array.dtype) for array in arrays}))
        count, size = len(arrays), sum(array.size for array in arrays)
        many = "" if count == 1 else "s"
        return (
            f"{type(self).__name__}({described}; {count} array{many}, {size:,} elements, {dtypes})"
        )

    def __copy__(self) -> Self:
        raise TypeError(
            "copy.copy: two optimizers cannot share one state; "
            "use copy.deepcopy((params, opt)), which keeps their arrays together"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        own = {"_arrays", "_grouped", "_kernels", "_names", "_options", "_trees", "param_groups"}
        count = range(len(self._arrays))
        return (
            _rebuild,
            (
                type(self),
                self._grouped,
                self._trees,
                [group.options() for group in self.param_groups],
                list(self._arrays.values()),
                [self._state_of(i) for i in count],
                [self._steps_of(i) for i in count],
                self.step_count,
                [self._bound_of(i) for i in count] if self._is_bound else None,
            ),
            {name: value for name, value in vars(self).items() if name not in own} or None,
        )


def _rebuild(
    cls: type[Optimizer],
    grouped: bool,
    trees: list[Any],
    options: list[dict[str, Any]],
    arrays: list[Any],
    states: list[Any],
    steps: list[int],
    step_count: int,
    bound: list[Any] | None,
) -> Optimizer:
    opt = cls.__new__(cls)
    groups = [
        {"params": _fill(tree, arrays)} | group for tree, group in zip(trees, options, strict=True)
    ]
    grads = None if bound is None else [_fill(tree, bound) for tree in trees]
    if not grouped:
        grads = grads and grads[0]
    Optimizer.__init__(opt, groups if grouped else groups[0]["params"], options[0], grads)
    for i, state in enumerate(states):
        if state is not None:
            opt._state_of(i)[...] = state
    opt._set_counters(step_count, steps)
    return opt


def _fill(tree: Any, leaves: list[Any]) -> Any:
    if isinstance(tree, dict):
        return {key: _fill(child, leaves) for key, child in tree.items()}
    if isinstance(tree, list):
        return [_fill(child, leaves) for child in tree]
    return leaves[tree]


def _is_grouped(params: Any, options: Mapping[str, Any]) -> bool:
    if not (isinstance(params, (list, tuple)) and params):
        return False
    if not all(isinstance(item, Mapping) and "params" in item for item in params):
        return False
    others = [
        (i, key, value)
        for i, item in enumerate(params)
        for key, value in item.items()
        if key != "params" and key not in options
    ]
    for i, key, value in others:
        if isinstance(value, (Real, str)):
            raise TypeError(
                f'params["{i}.{key}"]: expected an array, or for a group one of the options '
                f"{', '.join(options)}, received {key}={value!r}"
            )
    return not others


class Group(MutableMapping[str, Any]):
    """The options of one group of params; assignment is checked and holds from the next step."""

    def __init__(self, optimizer: Optimizer, index: int) -> None:
        self._optimizer, self._index = optimizer, index

    def options(self) -> dict[str, Any]:
        """A copy."""
        return {name: self[name] for name in self}

    def __getitem__(self, name: str) -> Any:
        opt = self._optimizer
        if name == "params":
            return _fill(opt._trees[self._index], list(opt._arrays.values()))
        if name in opt._fixed:
            return opt._options[self._index][name]
        if name not in opt._names:
            raise KeyError(name)
        return opt._get_option(self._index, name)

    def __setitem__(self, name: str, value: Any) -> None:
        opt = self._optimizer
        if name not in opt._names:
            raise KeyError(f"{name!r}: expected one of {', '.join(opt._names)}")
        kernel = opt._kernels[self._index]
        if name in (*opt._fixed, "initial_accumulator_value"):
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
        return iter(self._optimizer._names)

    def __len__(self) -> int:
        return len(self._optimizer._names)

    def __repr__(self) -> str:
        return f"Group({self.options()})"


class State(Mapping[str, Mapping[str, Any]]):
    """What ``opt.state`` gives: by name of the array, its state and its number of steps."""

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        self._index = {name: i for i, name in enumerate(optimizer._arrays)}

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
