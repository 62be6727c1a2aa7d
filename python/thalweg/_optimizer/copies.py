"""What a copy of an optimizer takes along, and the peace to make one in."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Self

import numpy as np

from thalweg._optimizer import averages
from thalweg._optimizer.groups import LIMITS
from thalweg._optimizer.tree import fill

# Attributes that are made anew, not taken along as the user's.
OWN = {
    "_arrays",
    "_bodies",
    "_defaults",
    "_given",
    "_group_of",
    "_grouped",
    "_index",
    "_kernels",
    "_loaded",
    "_options",
    "_trees",
    "_watching",
}


@contextmanager
def paused(opt: Any) -> Iterator[None]:
    """No other thread steps the optimizer meanwhile."""
    opt._enter()
    try:
        yield
    finally:
        opt._leave()


class Containers:
    """What an optimizer watches, for its copy: copy.deepcopy finds the copies of the containers.

    A pickle takes none along.
    """

    def __init__(self, optimizer: Any = None, memo: Mapping[Any, Any] | None = None) -> None:
        self._optimizer, self._memo = optimizer, memo

    def __reduce__(self) -> tuple[Any, ...]:
        return Containers, ()

    def __deepcopy__(self, memo: Mapping[Any, Any]) -> Self:
        return type(self)(self._optimizer, memo)

    def hand_to(self, copy: Any) -> None:
        if self._memo is not None:
            copy._watch_copies(self._optimizer, self._memo)


def writeable(array: Any) -> Any:
    """The array, or a copy where its memory is read-only: joblib's, Ray's and Dask's workers get
    such, and so does ``joblib.load(mmap_mode="r")``."""
    if array.flags.writeable:
        return array
    return np.array(array, order="K", subok=not isinstance(array, np.memmap))


def state_of(opt: Any) -> dict[str, Any]:
    """What a copy or a pickle of an optimizer takes along."""
    # Copies of the state: pickle reads what it is given later, when another thread may step.
    # Params are the live arrays all the same, or a pickle of both would have two of each.
    count = range(len(opt._arrays))
    states = [opt._state_of(i) for i in count]
    return {
        "layout": (opt._grouped, opt._trees, opt._arrays, opt._group_of),
        "options": [group.options() | {"name": group.name} for group in opt.param_groups],
        "defaults": opt._defaults,
        "bound": [opt._bound_of(i) for i in count] if opt._is_bound else None,
        "unbound": opt._unbound,
        "kernels": opt._kernels,
        "given": opt._given,
        "bodies": opt._bodies,
        "states": [None if x is None else x.copy(order="K") for x in states],
        "steps": [opt._steps_of(i) for i in count],
        "counters": (opt.step_count, opt.skipped_steps, opt.grad_norm, opt.last_lr),
        "limits": {name: getattr(opt, name) for name in LIMITS},
        "averages": averages.kept(opt),
        "zero_grads": opt.zero_grads,
        "watching": opt._watching,
        "containers": Containers(opt),
        "own": {name: value for name, value in vars(opt).items() if name not in OWN},
    }


def put_state(opt: Any, state: dict[str, Any]) -> None:
    """Make an optimizer of it."""
    grouped, trees, arrays, group_of = state["layout"]
    arrays = {name: writeable(array) for name, array in arrays.items()}
    grads = None
    if state["bound"] is not None:
        grads = [fill(tree, state["bound"]) for tree in trees]
        grads = grads if grouped else grads[0]
    layout = grouped, trees, arrays, group_of
    given = [None if array is None else writeable(array) for array in state["given"]]
    made = state["kernels"], given
    opt._build(*layout, state["options"], state["defaults"], grads, *made)
    opt._bodies = state["bodies"]
    opt._unbound = state["unbound"]
    for i, array in enumerate(state["states"]):
        if array is not None:
            opt._state_of(i)[...] = array
    step_count, *others = state["counters"]
    opt._set_counters(step_count, state["steps"], *others)
    for name, value in state["limits"].items():
        setattr(opt, name, value)
    averages.put_kept(opt, state["averages"])
    opt.zero_grads = state["zero_grads"]
    opt._watching = state["watching"]
    state["containers"].hand_to(opt)
    vars(opt).update(state["own"])
