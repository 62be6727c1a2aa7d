"""Steps of large params: each rank sums, judges and steps its own rows, which then go to all."""

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np

from thalweg import _core
from thalweg._optimizer.tree import fill
from thalweg.mpi import judge, shards
from thalweg.mpi.agreement import HEADER
from thalweg.mpi.link import Link
from thalweg.rows import RowGrad

Array = np.ndarray[Any, Any]

# Bytes of own rows whose sums are held at a time, if nothing must be known of all before a write.
HELD = 32 << 20


class Sharded:
    """The rank's rows, and their sums while a step is made."""

    def __init__(self, opt: Any, link: Link, returns: bool = True) -> None:
        """``returns``: all ranks hold all params, and are sent what the owner has changed."""
        self._opt, self._link, self._returns = opt, link, returns
        self._own: list[Array] = list(opt._held)
        self._scratch = bytearray()

    def put(self, found: list[Any]) -> None:
        """All that may fail on one rank alone, before the ranks agree: memory for the sums."""
        batches = [list(batch) for batch in self._batches(found)]
        size = max((sum(self._sum_size(i) for i in batch) for batch in batches), default=0)
        if len(self._scratch) < size:
            self._scratch = bytearray()  # not both at a time
            self._scratch = bytearray(size)

    def is_same(self, header: bytes) -> bool:
        """Whether all ranks have sent this header, of a step that may be taken."""
        link = self._link
        everyone = bytearray(HEADER * link.size)
        link.comm.Allgather(header, everyone)
        return header[8] == 1 and everyone == header * link.size

    def _sum_size(self, leaf: int) -> int:
        return -(-self._own[leaf].nbytes // 64) * 64

    def _is_judged(self) -> bool:
        opt = self._opt
        return (
            opt.on_nonfinite != "propagate"
            or opt.max_norm is not None
            or opt.max_array_norm is not None
        )

    def _batches(self, found: list[Any]) -> Iterator[list[int]]:
        """The leaves that have gradients, as many at a time as may be summed at a time.

        By the largest part of a rank, so that all ranks have the same batches.
        """
        active = [i for i, grad in enumerate(found) if grad is not None]
        if self._is_judged():
            yield active
            return
        batch: list[int] = []
        held = 0
        for i in active:
            cut = self._opt._cuts[i]
            rows = max(last - first for first, last in itertools.pairwise(cut))
            size = rows * (self._opt._shown[i].nbytes // max(1, cut[-1]))
            if batch and held + size > HELD:
                yield batch
                batch, held = [], 0
            batch.append(i)
            held += size
        yield batch

    def step(self, found: list[Any], factor: float) -> bool:
        """The step of what the ranks have agreed on."""
        opt = self._opt
        count = opt.step_count
        for batch in self._batches(found):
            sums = self._summed(found, batch)
            if self._is_judged():
                decided = self._decide(batch, sums, factor)
                if isinstance(decided, bool):
                    return decided
                clip, norm = decided
                _core.Optimizer.step(opt, fill(opt._tree, sums), scale=clip)
                if norm is not None:
                    opt._count(grad_norm=norm)
            else:
                _core.Optimizer.step(opt, fill(opt._tree, sums), scale=factor)
            if self._returns:
                self._return(found, batch, sums)
        if opt.step_count != count + 1:  # several batches are one step
            opt._count(step_count=count + 1)
        return True

    def _summed(self, found: list[Any], batch: list[int]) -> list[Any]:
        sums: list[Any] = [None] * len(found)
        dense = [i for i in batch if not isinstance(found[i], RowGrad)]
        at = 0
        for i in dense:
            own = self._own[i]
            part = np.frombuffer(self._scratch, own.dtype, own.size, at)
            sums[i] = part.reshape(own.shape)
            at += self._sum_size(i)
        cuts = self._opt._cuts
        shards.sum_dense(
            self._link,
            [found[i] for i in dense],
            [cuts[i] for i in dense],
            [sums[i] for i in dense],
        )
        for i in batch:
            if sums[i] is None:
                sums[i] = shards.own_rows(self._link, found[i], cuts[i], self._own[i].dtype)
        return sums

    def _decide(
        self, active: list[int], sums: list[Any], factor: float
    ) -> bool | tuple[float, float | None]:
        """The factor of clipping and the norm; False for a step that is to be left out."""
        opt, link = self._opt, self._link
        judged = opt.on_nonfinite != "propagate"
        stretches = [
            judge.Stretch(opt._names[i], opt._shown[i].shape, sums[i], opt._cuts[i][link.rank])
            for i in active
        ]
        for stretch in stretches:
            stretch.prepare(factor, opt.max_value, judged)
        refusal = judge.find_bad(link, stretches) if judged else ""
        clips, norms = [1.0] * len(active), []
        if not refusal and opt.max_norm is not None:
            norm = judge.norm_of(link, stretches)
            norms = [norm]
            clips = [judge.clip_of(opt.max_norm, norm, opt.norm_eps)] * len(active)
        elif not refusal and opt.max_array_norm is not None:
            norms = judge.norms_of(link, stretches)
            clips = [judge.clip_of(opt.max_array_norm, each, opt.norm_eps) for each in norms]
        if judged and not refusal:
            squared = [opt._squared(i) for i in active]
            refusal = judge.find_overflown(link, stretches, clips, norms, squared)
        if refusal:
            if opt.on_nonfinite == "raise":
                raise FloatingPointError(refusal)
            opt._count(skipped=1)
            return False
        # One factor for all is the core's to multiply by.
        shared = clips[0] if opt.max_norm is not None and clips and 0.0 < clips[0] < 1.0 else 1.0
        for i, stretch, clip in zip(active, stretches, clips, strict=True):
            sums[i] = stretch.clipped(1.0 if shared != 1.0 else clip)
        return shared, float(norms[0]) if opt.max_norm is not None else None

    def _return(self, found: list[Any], batch: list[int], sums: list[Any]) -> None:
        """Changed rows of the params, from who owns them to all."""
        opt, link = self._opt, self._link
        dense = [i for i in batch if not isinstance(found[i], RowGrad)]
        shards.gather_dense(link, [opt._shown[i] for i in dense], [opt._cuts[i] for i in dense])
        for i in batch:
            if isinstance(found[i], RowGrad):
                changed = np.unique(sums[i].rows) + opt._cuts[i][link.rank]
                shards.return_rows(link, opt._shown[i], changed)
