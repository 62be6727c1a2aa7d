"""What the optimizers over ranks share: who holds what, and what all ranks do together."""

import hashlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Self, TypeVar

import numpy as np

from thalweg import _core
from thalweg._optimizer.base import Optimizer
from thalweg._optimizer.tree import label
from thalweg.mpi.agreement import REFUSED, Agreement
from thalweg.mpi.collect import Gradients
from thalweg.mpi.layout import cut, rows_of
from thalweg.mpi.limits import Limited
from thalweg.mpi.link import Link, SignalsWait
from thalweg.mpi.parts import Parts
from thalweg.mpi.sharded import Sharded
from thalweg.mpi.together import Together
from thalweg.mpi.whole import Whole
from thalweg.presets import check_kept, preset
from thalweg.rows import RowGrad

# Params of so many bytes in all are stepped whole on every rank: one exchange instead of two.
SMALL = 1 << 20

_BOUND: Any = object()  # the gradients bound when the optimizer was made

Array = np.ndarray[Any, Any]
Result = TypeVar("Result")


class Distributed(Limited):
    """Every rank holds all params and the state of its rows of them."""

    def __init__(
        self,
        params: Any,
        *args: Any,
        comm: Any = None,
        average: bool = True,
        broadcast: bool = True,
        **options: Any,
    ) -> None:
        if "_kernels" in vars(self):
            raise TypeError("__init__: this optimizer holds arrays already; make a new one")
        self._link = Link(comm)
        self._lock = threading.RLock()
        self._stepping = False
        self._signals = SignalsWait()
        error = None
        try:
            for name, value in (("average", average), ("broadcast", broadcast)):
                if not isinstance(value, (bool, np.bool_)):
                    raise TypeError(f"{name}: expected True or False, received {value!r}")
            self._average = bool(average)
            super().__init__(params, *args, **options)
        except BaseException as wrong:
            error = wrong
        self._link.agree(error, None if error else self._agreement.words())
        self._together = Together(self, self._link)
        if broadcast:
            self.sync()

    def _lay(self, arrays: list[Array]) -> None:
        """Decide who owns what, and what of it the core holds here."""
        self._is_whole = sum(array.nbytes for array in arrays) <= SMALL
        self._cuts = cut(arrays, self._link.size)
        # Views of our own: what is done to the caller's array objects cannot reach one rank's step.
        self._shown = [array.view() for array in arrays]
        self._held = self._shown if self._is_whole else list(self._own())

    def _own(self) -> Iterator[Array]:
        rank = self._link.rank
        for array, rows in zip(map(rows_of, self._shown), self._cuts, strict=True):
            yield array[rows[rank] : rows[rank + 1]]

    def _way(self) -> Any:
        return Whole(self, self._link) if self._is_whole else Sharded(self, self._link)

    def _build(self, grouped: bool, trees: Any, arrays: dict[str, Any], *rest: Any) -> None:
        for name, array in arrays.items():
            if not isinstance(array, np.ndarray):
                raise TypeError(
                    f"{label('params', name)}: expected an array of float32 or float64, received "
                    f"{type(array).__name__}"
                )
        self._lay(list(arrays.values()))
        group_of, options, defaults, grads, kernels, given = rest
        if any(array is not None for array in given):
            raise TypeError(
                "state: an optimizer over ranks makes its own, of which each rank holds a part; "
                "load_state_dict, which all ranks call, takes one that is there"
            )
        held = dict(zip(arrays, self._held, strict=True))
        super()._build(grouped, trees, held, group_of, options, defaults, None, kernels, given)
        self._arrays = arrays
        self._bound_tree = grads
        self._tree = list(trees) if grouped else trees[0]
        self._names = list(arrays)
        self._agreement = Agreement(self)
        self._gradients = Gradients(self)
        self._steps = self._way()
        self._forget()

    def _watch(self, params: Any, grads: Any = None) -> None:
        """Python's part of a step looks, so that all ranks refuse."""
        self._gradients.watched = params

    @property
    def _is_watching(self) -> bool:
        return self._gradients.watched is not None

    def _forget(self) -> None:
        self._agreement.forget()
        groups = self.param_groups
        self._scheduled = [
            (i, name, group[name])
            for i, group in enumerate(groups)
            for name in self._defaults
            if callable(group[name])
        ]
        frozen = [bool(group["frozen"]) for group in groups]
        self._frozen = [frozen[group] for group in self._group_of]

    def _set_option(self, group: int, name: str, value: Any) -> None:
        super()._set_option(group, name, value)
        self._forget()

    @property
    def lr(self) -> Any:
        """The learning rate of all groups."""
        return super().lr

    @lr.setter
    def lr(self, value: Any) -> None:
        vars(_core.Optimizer)["lr"].__set__(self, value)
        self._forget()

    def step(self, grads: Any = _BOUND, *, scale: float = 1.0, partial: bool = False) -> bool:
        """One step with the sum of all ranks' gradients; all ranks call it, and all or none write.

        Returns False for a skipped step. If one rank's gradients do not fit, or the ranks differ in
        what they step or with which numbers, all raise the same error and nothing has changed.
        """
        with self._lock:
            if self._stepping:
                raise RuntimeError("step: called from within a step; call it when that is done")
            self._stepping = True
            try:
                with self._signals:
                    return self._step(grads, scale, partial)
            finally:
                self._stepping = False

    def _step(self, grads: Any, scale: Any, partial: Any) -> bool:
        error: BaseException | None = None
        told: tuple[Any, ...] = ()
        found: list[Any] = []
        numbers: list[float] = []
        header, factor = REFUSED, 1.0
        try:
            if self._refusal:
                raise RuntimeError(self._refusal)
            if grads is _BOUND:
                grads = self._bound()
            found = self._found(grads, partial)
            factor = self._factor(scale)
            kinds = "".join(["d" if type(g) is np.ndarray else _kind(g) for g in found])
            options = self._agreement.options()  # with schedules, not with what these give now
            if self._scheduled:
                numbers = self._ask()
            told = (factor, bool(partial), kinds, *numbers)
            self._steps.put(found)
            header = self._agreement.header((options, *told))
        except BaseException as wrong:
            error = wrong
        try:
            if not self._steps.is_same(header):
                self._link.agree(error, None if error else self._agreement.of_step(told))
                raise RuntimeError("step: the ranks differ; opt.check_synced() says in what")
            applied: bool = self._steps.step(found, factor)
            return applied
        finally:
            for group, name, value in self._scheduled:
                Optimizer._set_option(self, group, name, value)

    def _bound(self) -> Any:
        if self._bound_tree is None:
            raise TypeError(
                "step: expected gradients, received none, and no buffers are bound; call "
                "step(grads), or bind buffers once with grads=... when the optimizer is made"
            )
        return self._bound_tree

    def _found(self, grads: Any, partial: Any) -> list[Any]:
        return self._gradients.found(grads, bool(partial))

    def _factor(self, scale: Any) -> float:
        if type(scale) is not float:
            if isinstance(scale, (bool, np.bool_)) or not hasattr(scale, "__float__"):
                raise TypeError(f"scale: expected a number, received {scale!r}")
            scale = float(scale)
        if not 0.0 < scale < float("inf"):
            raise ValueError(f"scale: expected a number > 0, received {scale!r}")
        factor: float = scale / self._link.size if self._average else scale
        if not factor <= 3.4028234663852886e38 and any(p.itemsize == 4 for p in self._shown):
            raise ValueError(f"scale: expected a number that float32 can hold, received {scale!r}")
        return factor

    def _ask(self) -> list[float]:
        """The schedules' numbers of this step, which the core is given as numbers."""
        numbers = []
        for group, name, schedule in self._scheduled:
            value = schedule(self.step_count)
            super()._set_option(group, name, value)
            numbers.append(float(value))
        return numbers

    def _squared(self, leaf: int) -> str | None:
        """What a rule squares and keeps: an element, a row, or nothing."""
        chosen: str | None = self._options[self._group_of[leaf]].get("accumulator")
        return chosen

    def _count(
        self, *, stepped: Sequence[int] = (), skipped: int = 0, grad_norm: Any = None
    ) -> None:
        """Count what the core has not: arrays stepped by pieces, and what all ranks decided."""
        steps = [self._steps_of(i) for i in range(len(self._names))]
        for i in stepped:
            steps[i] += 1
        norm = self.grad_norm if grad_norm is None else float(grad_norm)
        skips = self.skipped_steps + skipped
        self._set_counters(self.step_count, steps, skips, norm, self.last_lr)

    def _replicated(self) -> list[Array]:
        """What every rank holds whole."""
        return self._shown

    @property
    def state(self) -> Mapping[str, Mapping[str, Any]]:
        """By name of the array: this rank's state, "range", its rows, and "step"."""
        found: dict[str, Mapping[str, Any]] = {}
        for i, name in enumerate(self._names):
            state = Optimizer._state_of(self, i)
            slots: dict[str, Any] = {} if state is None else {self._slot: state}
            first, last = 0, self._cuts[i][-1]
            if not self._is_whole:
                first, last = self._cuts[i][self._link.rank : self._link.rank + 2]
            slots |= {"range": (first, last), "step": self._steps_of(i)}
            found[name] = MappingProxyType(slots)
        return MappingProxyType(found)

    def _state_of(self, leaf: int) -> Any:
        state = super()._state_of(leaf)
        if state is None or self._is_whole:
            return state
        return Parts(self._together, leaf, state, self._shown[leaf], self._cuts[leaf])

    def sync(self) -> None:
        """Give all ranks the params, counters and numbers of rank 0; all ranks call it."""
        with self._lock, SignalsWait():
            self._together.share()

    def check_synced(self) -> None:
        """Raise ValueError on all ranks, naming the first array that differs; all ranks call it."""
        with self._lock:
            told = self._agreement.words() | {"step_count": self.step_count}
            for name, param in zip(self._names, self._shown, strict=True):
                digest = hashlib.blake2b(digest_size=16)
                for row in _stretches(param):
                    digest.update(row)
                told[label("params", name)] = f"bytes of digest {digest.hexdigest()}"
            self._link.agree(None, told)

    def _by_writer(self, act: Callable[[], Result], changes: bool = False) -> Result:
        """What one rank does for all, as writing a checkpoint; the others serve their parts."""
        with self._lock, SignalsWait():
            return self._together.act(act, changes)

    @staticmethod
    def _copy(live: Any, other: Any) -> None:
        """Into the live state, whoever holds it."""
        if isinstance(live, Parts):
            live.fill(other)
        else:
            np.copyto(live, other)

    def state_dict(self) -> dict[str, Any]:
        """All ranks' state, gathered on each rank; all ranks call it."""
        return self._by_writer(super().state_dict)

    def load_state_dict(self, state_dict: Mapping[str, Any], **words: Any) -> Any:
        """Put rank 0's ``state_dict`` back, each rank its part; all ranks call it."""
        load = super().load_state_dict
        return self._by_writer(lambda: load(state_dict, **words), changes=True)

    def replace(self, name: str, array: Any, state: Any = None) -> None:
        """Refused: who owns what was cut when the optimizer was made."""
        raise TypeError(
            "replace: an optimizer over ranks is cut when it is made; make a new one with the new "
            "array"
        )

    def add_group(self, group: Mapping[str, Any]) -> None:
        """Refused: who owns what was cut when the optimizer was made."""
        raise TypeError(
            "add_group: an optimizer over ranks is cut when it is made; make a new one with all "
            "groups"
        )

    @classmethod
    def like(
        cls,
        source: str,
        params: Any,
        *,
        comm: Any = None,
        average: bool = True,
        broadcast: bool = True,
        **overrides: Any,
    ) -> Self:
        """An optimizer with the defaults of another library; see its namesake."""
        chosen = preset(cls._presets, source, overrides)
        opt = cls(params, comm=comm, average=average, broadcast=broadcast, **chosen)
        for group in opt.param_groups:
            check_kept(cls._presets, source, group)
        return opt

    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError(
            f"{type(self).__name__}: an optimizer over ranks cannot be pickled or copied, as its "
            "communicator cannot; use tw.save_checkpoint, which all ranks call"
        )

    def __deepcopy__(self, memo: Any) -> Self:
        self.__reduce__()
        raise AssertionError


def _kind(grad: Any) -> str:
    return "-" if grad is None else "r" if isinstance(grad, RowGrad) else "d"


def _stretches(param: Array) -> Iterator[Any]:
    """A param's bytes in C order, without a copy of all."""
    rows = rows_of(param)
    if rows.flags.c_contiguous:
        yield rows.reshape(-1).view(np.uint8)
        return
    for row in rows:
        yield np.ascontiguousarray(row).tobytes()
