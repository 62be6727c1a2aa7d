"""A table that no rank holds whole."""

import json
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from thalweg import optimizers
from thalweg._checkpoint.replacing import replacing
from thalweg._optimizer.base import Optimizer
from thalweg.mpi import optimizers as distributed
from thalweg.mpi.base import Distributed
from thalweg.mpi.collect import checked
from thalweg.mpi.layout import blocks
from thalweg.mpi.link import Link
from thalweg.mpi.sharded import Sharded
from thalweg.mpi.shards import Buffers, route
from thalweg.rows import RowGrad

Array = np.ndarray[Any, Any]
PathLike = str | os.PathLike[str]

FORMAT, VERSION = "thalweg table", 1


class _Block(Distributed):
    """The optimizer of a table of which the params, too, lie in parts."""

    _table_rows: int

    def _lay(self, arrays: list[Array]) -> None:
        (block,) = arrays
        self._is_whole = False
        self._cuts = [blocks(self._table_rows, self._link.size)]
        shape = (self._table_rows, *block.shape[1:])
        self._shown = [np.broadcast_to(np.zeros((), block.dtype), shape)]
        self._held = arrays

    def _way(self) -> Any:
        return Sharded(self, self._link, returns=False)

    def _replicated(self) -> list[Array]:
        return []

    def _found(self, grads: Any, partial: Any) -> list[Any]:
        return [checked(grads(), self._shown[0], "")]


class Table:
    """A table of ``rows`` rows in N blocks, one a rank, with the rule that steps it.

    ::

        table = thalweg.mpi.Table(10**8, 64, rule=tw.Adagrad, lr=0.1)
        vectors = table.lookup(ids)         # all ranks, each with its own ids
        table.step(ids, gradients)          # those of all ranks; rows by their owner

    A step is that of one process with the whole table and one ``RowGrad``: the ranks' ids and
    values, concatenated in order of rank, and times 1/N with ``average``.

    Parameters
    ----------
    rows : int >= 1
    row_shape : int or tuple of int
    rule : thalweg.SGD or thalweg.Adagrad
    comm : mpi4py.MPI.Intracomm, default COMM_WORLD
    dtype : np.float32 or np.float64
    fill : callable, (first row, row after the last) -> array, or None
        What the rows begin as; asked on each rank for the rows it holds. None: zeros.
    average : bool
    **options : those of the rule, ``max_norm`` and ``on_nonfinite`` among them

    Raises
    ------
    TypeError, ValueError, IndexError
        Arguments do not fit, or differ between ranks: on all ranks, with nothing changed.

    Example
    -------
    >>> import numpy as np, thalweg as tw, thalweg.mpi
    >>> table = thalweg.mpi.Table(10, 2, rule=tw.SGD, lr=1.0)
    >>> table.step(np.array([3, 3]), np.ones((2, 2)))
    True
    >>> table.lookup(np.array([3, 4]))
    array([[-2., -2.],
           [ 0.,  0.]], dtype=float32)
    """

    def __init__(
        self,
        rows: int,
        row_shape: int | tuple[int, ...],
        rule: type[Optimizer] = optimizers.Adagrad,
        comm: Any = None,
        *,
        dtype: Any = np.float32,
        fill: Callable[[int, int], Any] | None = None,
        average: bool = True,
        **options: Any,
    ) -> None:
        link = self._link = Link(comm)
        error: Exception | None = None
        told: dict[str, Any] = {}
        try:
            base = next((r for r in _RULES if isinstance(rule, type) and issubclass(rule, r)), None)
            if base is None:
                raise TypeError(f"rule: expected thalweg.SGD or thalweg.Adagrad, received {rule!r}")
            if isinstance(rows, bool) or not isinstance(rows, (int, np.integer)) or rows < 1:
                raise ValueError(f"rows: expected a whole number >= 1, received {rows!r}")
            self.rows = int(rows)
            shape = (row_shape,) if isinstance(row_shape, (int, np.integer)) else tuple(row_shape)
            cut = blocks(self.rows, link.size)
            self.range = cut[link.rank], cut[link.rank + 1]
            first, last = self.range
            self.block = np.zeros((last - first, *shape), dtype)
            if fill is not None:
                self.block[...] = fill(first, last)
            told = {
                "rule": base.__name__,
                "rows": self.rows,
                "row_shape": shape,
                "dtype": str(self.block.dtype),
            }
        except Exception as wrong:
            error = wrong
        link.agree(error, told)
        assert base is not None
        made = type(f"{base.__name__}Block", (_Block, _RULES[base]), {"_table_rows": self.rows})
        self.optimizer: Any = made(
            self.block, comm=comm, average=average, broadcast=False, **options
        )
        self._cut = np.asarray(cut[1:])
        self._buffers = Buffers()

    def lookup(self, ids: Any) -> Array:
        """The rows of these ids, in their order; all ranks call it, each with its own.

        Each distinct id is asked for, and its row sent, once.
        """
        link = self._link
        error: Exception | None = None
        asked = np.empty(0, np.int64)
        try:
            ids = self._checked(ids)
            asked, places = np.unique(ids, return_inverse=True)
        except Exception as wrong:
            error = wrong
        owner = np.searchsorted(self._cut, asked, side="right")
        counts = np.bincount(owner, minlength=link.size).astype(np.int64)
        # One exchange of counts says, too, whether all ranks' ids are right.
        told = link.gather_counts(np.append(counts, error is not None))
        if told[:, -1].any():
            link.agree(error, {})
        wanted = told[:, link.rank]
        theirs = route(link, Buffers(), asked, np.arange(len(asked)), counts, wanted)
        theirs -= self.range[0]
        rows = route(link, self._buffers, self.block, theirs, wanted, counts)
        found: Array = rows[places.reshape(ids.shape)]
        return found

    def step(self, ids: Any, values: Any, *, scale: float = 1.0) -> bool:
        """One step with the gradients of these rows, those of all ranks; ids may repeat.

        Returns False for a skipped step.
        """
        # Made where a refusal is one of all ranks.
        done: bool = self.optimizer.step(lambda: RowGrad(np.asarray(ids), values), scale=scale)
        return done

    def _checked(self, ids: Any) -> Array:
        ids = np.asarray(ids)
        if ids.dtype.kind != "i" and ids.size:
            raise TypeError(f"ids: expected an array of integers, received {ids.dtype}")
        if ids.size and not (ids.min() >= 0 and ids.max() < self.rows):
            raise IndexError(
                f"ids: expected rows from 0 to {self.rows - 1}, received {ids.min()} to {ids.max()}"
            )
        found: Array = ids.astype(np.int64)
        return found

    def save(self, folder: PathLike) -> None:
        """Write the table into a folder: a file of rows and one of state a rank, and a manifest.

        All ranks call it. The manifest, written last, names the files: the save is complete or the
        one before stays.
        """
        link, folder = self._link, Path(folder)
        error: Exception | None = None
        files: dict[str, Any] = {}
        save = 1
        if link.rank == 0:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                save = 1 + max(
                    [int(p.name.split("-")[1]) for p in folder.glob("save-*.npy")], default=0
                )
            except Exception as wrong:
                error = wrong
        save = link.comm.bcast(save)
        try:
            if error is None:
                for kind, array in self._arrays().items():
                    name = f"save-{save}-rank-{link.rank}-{kind}.npy"
                    with replacing(folder / name) as file:
                        np.save(file, array)
                    files[kind] = {"file": name, "crc32": _crc(array)}
        except Exception as wrong:
            error = wrong
        link.agree(error, {})
        everyone = link.comm.allgather({"rows": self.range, **files})
        opt = self.optimizer
        manifest = {
            "format": FORMAT,
            "version": VERSION,
            "rows": self.rows,
            "row_shape": self.block.shape[1:],
            "dtype": str(self.block.dtype),
            "rule": [type(opt).__name__, *opt._kernels],
            "step_count": opt.step_count,
            "skipped_steps": opt.skipped_steps,
            "steps": opt._steps_of(0),
            "parts": everyone,
        }
        error = None
        if link.rank == 0:
            try:
                with replacing(folder / "manifest.json") as file:
                    file.write(json.dumps(manifest, indent=1).encode())
                kept = {part[kind]["file"] for part in everyone for kind in files}
                for old in folder.glob("save-*.npy"):
                    if old.name not in kept:
                        old.unlink()
            except Exception as wrong:
                error = wrong
        link.agree(error, {})

    def load(self, folder: PathLike) -> None:
        """Put back what ``save`` wrote, at whatever number of ranks; all ranks call it.

        Every file that a rank reads is verified before the first byte changes anywhere.
        """
        link, folder = self._link, Path(folder)
        error: Exception | None = None
        manifest: dict[str, Any] = {}
        opt = self.optimizer
        reads: list[tuple[Array, Array]] = []
        try:
            manifest = json.loads((folder / "manifest.json").read_text())
            self._check_fit(folder, manifest)
            live = self._arrays()
            first, last = self.range
            for part in manifest["parts"]:
                begin, end = part["rows"]
                low, high = max(begin, first), min(end, last)
                if low >= high:
                    continue
                for kind, mine in live.items():
                    stored = np.load(folder / part[kind]["file"], mmap_mode="r")
                    if stored.shape != (end - begin, *mine.shape[1:]) or stored.dtype != mine.dtype:
                        raise ValueError(f"{folder}: {part[kind]['file']} is not what was saved")
                    if _crc(stored) != part[kind]["crc32"]:
                        raise ValueError(f"{folder}: {part[kind]['file']} is damaged")
                    reads.append(
                        (mine[low - first : high - first], stored[low - begin : high - begin])
                    )
        except Exception as wrong:
            error = wrong
        link.agree(error, {"manifest": manifest})
        for mine, stored in reads:
            mine[...] = stored
        opt._set_counters(
            manifest["step_count"], [manifest["steps"]], manifest["skipped_steps"], None, None
        )

    def _check_fit(self, folder: Path, manifest: dict[str, Any]) -> None:
        opt = self.optimizer
        live = {
            "format": FORMAT,
            "version": VERSION,
            "rows": self.rows,
            "row_shape": list(self.block.shape[1:]),
            "dtype": str(self.block.dtype),
            "rule": [type(opt).__name__, *opt._kernels],
        }
        for name, value in live.items():
            if manifest.get(name) != value:
                raise ValueError(
                    f"{folder}: {name}: expected {value!r}, received {manifest.get(name)!r}"
                )

    def _arrays(self) -> dict[str, Array]:
        state = Optimizer._state_of(self.optimizer, 0)
        return {"param": self.block} | ({} if state is None else {"state": state})

    def __repr__(self) -> str:
        shape = (self.rows, *self.block.shape[1:])
        return f"Table(shape={shape}, rows {self.range[0]} to {self.range[1]} here)"


_RULES: dict[type[Optimizer], type[Distributed]] = {
    optimizers.SGD: distributed.SGD,
    optimizers.Adagrad: distributed.Adagrad,
}


def _crc(array: Array) -> int:
    crc = 0
    for at in range(0, len(array), max(1, (1 << 20) // max(1, array[:1].nbytes))):
        step = max(1, (1 << 20) // max(1, array[:1].nbytes))
        crc = zlib.crc32(np.ascontiguousarray(array[at : at + step]).tobytes(), crc)
    return crc
