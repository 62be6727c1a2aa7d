"""What rank 0 does for all while the others serve it: checkpoints, and params sent to all."""

import pickle
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from thalweg._optimizer.base import Optimizer
from thalweg._optimizer.groups import LIMITS
from thalweg.mpi.layout import rows_of
from thalweg.mpi.link import Link

Array = np.ndarray[Any, Any]
Result = TypeVar("Result")


class Together:
    """The ranks' side of one optimizer."""

    def __init__(self, opt: Any, link: Link) -> None:
        self._opt, self._link, self._acting = opt, link, False

    def act(self, act: Callable[[], Result], changes: bool = False) -> Result:
        """Run ``act`` on rank 0 and return its result, or raise its error, on all.

        ``changes``: params, counters and options are sent to all after it, whatever has come of it.
        """
        if self._acting:
            return act()
        told = self._lead(act) if self._link.rank == 0 else self._serve()
        if changes:
            self.share()
        error, found = told
        if error is not None:
            raise error
        result: Result = found
        return result

    def _lead(self, act: Callable[[], Any]) -> tuple[BaseException | None, Any]:
        error: BaseException | None = None
        result = None
        self._acting = True
        try:
            result = act()
            pickle.dumps(result)
        except BaseException as wrong:
            error = wrong
        finally:
            self._acting = False
        sent = error
        if error is not None:
            try:
                pickle.loads(pickle.dumps(error))
            except Exception:
                sent = RuntimeError(f"rank 0: {type(error).__name__}: {error}")
        self._link.comm.bcast(("done", sent, result))
        return error, result

    def _serve(self) -> tuple[BaseException | None, Any]:
        while True:
            what, *rest = self._link.comm.bcast(None)
            if what == "done":
                return rest[0], rest[1]
            own = Optimizer._state_of(self._opt, rest[0])
            if what == "gather":
                self._link.exchange([(0, np.ascontiguousarray(own))], [])
            else:
                dense = np.empty(own.shape, own.dtype)
                self._link.exchange([], [(0, dense)])
                own[...] = dense

    def gather(self, leaf: int, whole: Array, own: Array) -> Array:
        """On rank 0: all rows of a state, of which it holds ``own``."""
        self._check()
        self._link.comm.bcast(("gather", leaf))
        cut = self._opt._cuts[leaf]
        whole[: cut[1]] = own
        others = range(1, self._link.size)
        self._link.exchange([], [(rank, whole[cut[rank] : cut[rank + 1]]) for rank in others])
        return whole

    def deal(self, leaf: int, whole: Array, own: Array) -> None:
        """On rank 0: rows of a state to those who hold them."""
        self._check()
        self._link.comm.bcast(("deal", leaf))
        cut = self._opt._cuts[leaf]
        others = range(1, self._link.size)
        self._link.exchange([(rank, whole[cut[rank] : cut[rank + 1]]) for rank in others], [])
        own[...] = whole[: cut[1]]

    def _check(self) -> None:
        if not self._acting:
            raise RuntimeError(
                "state: each rank holds a part of it, opt.state[name]; state_dict() and "
                "save_checkpoint, which all ranks call, gather it"
            )

    def share(self) -> None:
        """Params, counters, numbers and limits of rank 0, to all."""
        opt, link = self._opt, self._link
        count = range(len(opt._names))
        told = None
        if link.rank == 0:
            told = {
                "counters": (
                    opt.step_count,
                    [opt._steps_of(i) for i in count],
                    opt.skipped_steps,
                    opt.grad_norm,
                    opt.last_lr,
                ),
                "numbers": [_sendable(opt._numbers(group)) for group in opt.param_groups],
                "limits": {name: getattr(opt, name) for name in LIMITS},
                "refusal": opt._refusal,
            }
        told = link.comm.bcast(told)
        if link.rank != 0:
            for i, numbers in enumerate(told["numbers"]):
                for name, value in numbers.items():
                    opt._set_option(i, name, value)
            # First without any: some exclude each other.
            for name, value in (*LIMITS.items(), *told["limits"].items()):
                setattr(opt, name, value)
            opt._set_counters(*told["counters"])
            opt._refuse_steps(told["refusal"])
        if opt._is_whole:
            self._share_arrays([a for i in count if (a := opt._state_of(i)) is not None])
        self._share_arrays(opt._replicated())

    def _share_arrays(self, arrays: list[Array]) -> None:
        link = self._link
        others = range(1, link.size)
        for array in map(rows_of, arrays):
            dense = array if array.flags.c_contiguous else np.ascontiguousarray(array)
            if link.rank == 0:
                link.exchange([(rank, dense) for rank in others], [])
            else:
                link.exchange([], [(0, dense)])
                if dense is not array:
                    array[...] = dense


def _sendable(numbers: dict[str, Any]) -> dict[str, Any]:
    """Without callables that cannot be sent: each rank keeps its own of those."""
    found = {}
    for name, value in numbers.items():
        try:
            pickle.dumps(value)
        except Exception:
            continue
        found[name] = value
    return found
