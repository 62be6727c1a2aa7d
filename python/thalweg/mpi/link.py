"""The ranks of a job: one duplicate of their communicator, agreement, pieces of arrays."""

import builtins
import signal
import threading
from collections.abc import Iterator, Sequence
from importlib import import_module
from typing import Any

import numpy as np
from mpi4py import MPI

Array = np.ndarray[Any, Any]

# Bytes of one message; MPI counts in an int. Small enough that what is received is still in cache
# when it is added.
PIECE = 512 << 10

_DUPLICATES = MPI.Comm.Create_keyval()


class Link:
    """What the optimizers need of MPI."""

    def __init__(self, comm: Any) -> None:
        if comm is None:
            comm = MPI.COMM_WORLD
        if not isinstance(comm, MPI.Intracomm) or comm == MPI.COMM_NULL:
            raise TypeError(
                f"comm: expected an intracommunicator of mpi4py, received {type(comm).__name__}"
            )
        # One for each communicator, kept with it: freeing one is collective, which no destructor
        # can be.
        duplicate: Any = comm.Get_attr(_DUPLICATES)
        if duplicate is None:
            duplicate = comm.Dup()
            comm.Set_attr(_DUPLICATES, duplicate)
        self.comm: Any = duplicate
        self.rank: int = duplicate.rank
        self.size: int = duplicate.size
        self.others = [rank for rank in range(self.size) if rank != self.rank]

    def agree(self, error: BaseException | None, told: dict[str, Any] | None) -> None:
        """Raise on all ranks if one has an error, or if what the ranks tell differs.

        ``told`` maps what a message calls a thing to what can be compared and shown.
        """
        mine = (None if error is None else (type(error).__name__, str(error)), told)
        everyone = self.comm.allgather(mine)
        for rank, (wrong, _) in enumerate(everyone):
            if wrong is None:
                continue
            if rank == self.rank:
                assert error is not None
                raise error
            kind, words = wrong
            raise _of_another(kind, words, rank) from error
        for rank, (_, other) in enumerate(everyone):
            first = everyone[0][1]
            if other == first:
                continue
            for name in {**first, **other}:
                if first.get(name) != other.get(name):
                    raise ValueError(
                        f"{name}: expected the same on all ranks, received {_shown(first, name)} "
                        f"on rank 0 and {_shown(other, name)} on rank {rank}; nothing has changed"
                    )

    def exchange(
        self, sends: Sequence[tuple[int, Array]], into: Sequence[tuple[int, Array]]
    ) -> None:
        """Send dense arrays to ranks and receive into dense ones, in pieces, in order."""
        self.wait(self.start(sends, into))

    def start(
        self, sends: Sequence[tuple[int, Array]], into: Sequence[tuple[int, Array]], tag: int = 0
    ) -> list[Any]:
        """The same, not waited for."""
        requests = [
            self.comm.Irecv([piece, MPI.BYTE], rank, tag)
            for rank, array in into
            for piece in pieces(array)
        ]
        return requests + [
            self.comm.Isend([piece, MPI.BYTE], rank, tag)
            for rank, array in sends
            for piece in pieces(array)
        ]

    def wait(self, requests: list[Any]) -> None:
        MPI.Request.Waitall(requests)

    def gather_counts(self, counts: Array) -> Array:
        """The int64 counts of each rank, a row a rank."""
        everyone = np.empty((self.size, counts.size), np.int64)
        self.comm.Allgather(counts, everyone)
        return everyone

    def gather_parts(self, part: Array) -> list[Array]:
        """A dense array of each rank, which differ in their first axis alone."""
        lengths = self.gather_counts(np.array([len(part)], np.int64))[:, 0]
        parts = [
            part if rank == self.rank else np.empty((length, *part.shape[1:]), part.dtype)
            for rank, length in enumerate(lengths)
        ]
        self.exchange(
            [(rank, part) for rank in self.others], [(rank, parts[rank]) for rank in self.others]
        )
        return parts


def pieces(array: Array) -> Iterator[Array]:
    """A dense array's bytes in messages of at most PIECE."""
    if array.size == 0:
        return
    flat = array.reshape(-1).view(np.uint8)
    for at in range(0, flat.size, PIECE):
        yield flat[at : at + PIECE]


class SignalsWait:
    """Handlers of Python's run once the block is done: a step is never left half-way."""

    def __init__(self) -> None:
        self._came: list[tuple[int, Any]] = []
        self._handlers: list[tuple[int, Any]] = []

    def __enter__(self) -> None:
        self._handlers = []
        if threading.get_ident() != _MAIN.ident:
            return
        for number in _SIGNALS:
            handler = _native.getsignal(number)
            if callable(handler):
                self._handlers.append((number, handler))
                _native.signal(number, self._note)

    def _note(self, *args: Any) -> None:
        self._came.append(args)

    def __exit__(self, *_: object) -> None:
        for number, handler in self._handlers:
            _native.signal(number, handler)
        if self._came:
            came, self._came = self._came, []
            for number, frame in came:
                dict(self._handlers)[number](number, frame)


# Without the enum that the module makes of each number: a small step is as long as that takes.
_native: Any = import_module("_signal")

_MAIN = threading.main_thread()

_SIGNALS = [
    int(getattr(signal, name))
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGALRM", "SIGUSR1", "SIGUSR2")
    if hasattr(signal, name)
]


def _of_another(kind: str, words: str, rank: int) -> Exception:
    made = getattr(builtins, kind, RuntimeError)
    plain = (
        *(TypeError, ValueError, IndexError, FloatingPointError, MemoryError, RuntimeError),
        *(OSError, FileNotFoundError, PermissionError),
    )
    prefix = f"rank {rank}: " if made in plain else f"rank {rank}: {kind}: "
    return (made if made in plain else RuntimeError)(prefix + words)


def _shown(told: dict[str, Any], name: str) -> str:
    return repr(told[name]) if name in told else "none"
