"""Steps of large params: each rank sums, judges and steps its own rows, which then go to all."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from thalweg import _core
from thalweg._optimizer.tree import fill
from thalweg.mpi import judge, shards
from thalweg.mpi.agreement import HEADER
from thalweg.mpi.link import Link
from thalweg.mpi.piece import PieceRule
from thalweg.rows import RowGrad

Array = np.ndarray[Any, Any]


class Sharded:
    """The rank's rows, and their sums while a step is made."""

    def __init__(self, opt: Any, link: Link, returns: bool = True) -> None:
        """``returns``: all ranks hold all params, and are sent what the owner has changed."""
        self._opt, self._link, self._returns = opt, link, returns
        self._own: list[Array] = list(opt._held)
        self._sums: list[Any] = []
        self._buffers = shards.Buffers()
        self._rows = [shards.Buffers() for _ in self._own]  # a step's RowGrads are there at once

    def put(self, found: list[Any]) -> None:
        """All that may fail on one rank alone, before the ranks agree: memory for whole sums."""
        judged = self._is_judged()
        self._sums = [
            np.empty(own.shape, own.dtype) if judged and isinstance(grad, np.ndarray) else None
            for own, grad in zip(self._own, found, strict=True)
        ]

    def is_same(self, header: bytes) -> bool:
        """Whether all ranks have sent this header, of a step that may be taken."""
        link = self._link
        everyone = bytearray(HEADER * link.size)
        link.comm.Allgather(header, everyone)
        return header[8] == 1 and everyone == header * link.size

    def _is_judged(self) -> bool:
        """Whether something must be known of all gradients before the first write."""
        opt = self._opt
        return (
            opt.on_nonfinite != "propagate"
            or opt.max_norm is not None
            or opt.max_array_norm is not None
        )

    def step(self, found: list[Any], factor: float) -> bool:
        """The step of what the ranks have agreed on."""
        opt, link = self._opt, self._link
        dense = [i for i, grad in enumerate(found) if isinstance(grad, np.ndarray)]
        by_rows = [i for i, grad in enumerate(found) if isinstance(grad, RowGrad)]
        sums, self._sums = self._sums, []
        params, cuts = [opt._shown[i] for i in dense], [opt._cuts[i] for i in dense]
        outs = [sums[i] for i in dense] if self._is_judged() else None
        pieces = shards.summed(link, self._buffers, [found[i] for i in dense], params, cuts, outs)
        norm = None
        for i in by_rows:
            sums[i] = shards.own_rows(
                link, self._rows[i], found[i], opt._cuts[i], self._own[i].dtype
            )
        if outs is not None:
            for _ in pieces:
                pass
            decided = self._decide(sorted([*dense, *by_rows]), sums, factor)
            if isinstance(decided, bool):
                return decided
            factor, norm = decided
            pieces = self._cut(link, [sums[i] for i in dense], params, cuts)
        self._update(dense, pieces, factor)
        rest = [sums[i] if i in by_rows else None for i in range(len(found))]
        _core.Optimizer.step(opt, fill(opt._tree, rest), scale=factor)
        opt._count(stepped=dense, grad_norm=norm)
        if self._returns:
            for i in by_rows:
                changed = np.unique(sums[i].rows) + opt._cuts[i][link.rank]
                shards.return_rows(link, opt._shown[i], changed)
        return True

    def _update(
        self, dense: list[int], pieces: Iterable[tuple[int, int, Array]], factor: float
    ) -> None:
        """The rule on each piece while it is in cache, and the changed rows to all."""
        opt = self._opt
        returning = shards.Returning(self._link)
        rules = [PieceRule(opt, i, factor) for i in dense]
        for k, at, piece in pieces:
            i = dense[k]
            own = self._own[i][at : at + len(piece)]
            if piece.size:
                rules[k].step(own, piece, at)
            if self._returns:
                returning.start(
                    opt._shown[i], opt._cuts[i], at, shards.rows_at_a_time(self._link, own)
                )
        returning.finish()

    @staticmethod
    def _cut(
        link: Link, sums: Sequence[Array], params: Sequence[Array], cuts: Sequence[list[int]]
    ) -> Iterator[tuple[int, int, Array]]:
        for i, at, step in shards.rounds(link, cuts, params):
            yield i, at, sums[i][at : at + step]

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
