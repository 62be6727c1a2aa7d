"""Sums in the order of ranks, and the norm's in the order of its blocks, however they are cut."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from thalweg import _core
from thalweg._reference import BLOCK, sum_of_squares
from thalweg.mpi.link import Link

Array = np.ndarray[Any, Any]


def add_in_order(out: Array, parts: Sequence[Array]) -> None:
    """((p0 + p1) + p2) + ..., of dense arrays of one dtype, in one pass."""
    _core.add_in_order(out, parts)


def squares(link: Link, parts: Sequence[Array]) -> list[np.float64]:
    """The sum of squares of each array, of which each rank holds a stretch, the ranks' in order.

    A block that a cut crosses goes to all ranks as it is.
    """
    lengths = link.gather_counts(np.array([part.size for part in parts], np.int64))
    starts = lengths.cumsum(axis=0) - lengths
    sums, fragments, counts = [], [], []
    for i, part in enumerate(parts):
        flat = part.reshape(-1)
        head = min(-int(starts[link.rank, i]) % BLOCK, flat.size)
        whole = (flat.size - head) // BLOCK
        tail = head + whole * BLOCK
        counts += [whole, head, flat.size - tail]
        sums.append(_core.block_sums(flat[head:tail]))
        fragments += [flat[:head].astype(np.float64), flat[tail:].astype(np.float64)]
    everyone = link.gather_counts(np.array(counts, np.int64)).reshape(link.size, len(parts), 3)
    all_sums = link.gather_parts(np.concatenate([*sums, np.empty(0)]))
    all_fragments = link.gather_parts(np.concatenate([*fragments, np.empty(0)]))
    at_sum, at_fragment = [0] * link.size, [0] * link.size
    totals = []
    for i in range(len(parts)):
        blocks: list[Any] = [0.0]
        open_block: list[Array] = []
        for rank in range(link.size):
            whole, head, tail = map(int, everyone[rank, i])
            held = all_fragments[rank][at_fragment[rank] :]
            at_fragment[rank] += head + tail
            if head:
                open_block.append(held[:head])
            if open_block and sum(map(len, open_block)) == BLOCK:
                blocks.append(sum_of_squares(np.concatenate(open_block)))
                open_block = []
            blocks += [*all_sums[rank][at_sum[rank] : at_sum[rank] + whole]]
            at_sum[rank] += whole
            if tail:
                open_block.append(held[head : head + tail])
        if open_block:
            blocks.append(sum_of_squares(np.concatenate(open_block)))
        with np.errstate(all="ignore"):
            totals.append(np.add.accumulate(np.array(blocks))[-1])
    return totals
