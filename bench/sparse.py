"""Steps that touch some rows of a table: the targets, and every size and kind of ids."""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import cycle, groupby
from operator import itemgetter
from typing import Any

import numpy as np

import thalweg as tw
from contenders import LR, Missing
from timing import Contender, interleave

Row = tuple[str, str, float, float, float]  # work, against, ours, theirs, target ratio
Batch = tuple[np.ndarray, np.ndarray]

WIDTH, EPS = 64, 1e-8


def batches(kind: str, count: int, rows: int) -> list[Batch]:
    """Ids and values. zipf: few rows are most of the ids, as words are.

    So many batches that together they are beyond the caches: no loop has the rows of a step in the
    cache from the step before.
    """
    rng = np.random.default_rng(0)

    def ids() -> np.ndarray:
        if kind == "uniform":
            return rng.integers(0, rows, count)
        drawn = rng.zipf(1.2, 4 * count)  # the largest are beyond any table
        return drawn[drawn <= rows][:count] - 1

    return [
        (ids(), rng.standard_normal((count, WIDTH), np.float32))
        for _ in range(min(64, (1 << 18) // count))
    ]


def thalweg(rows: int, data: list[Batch], threads: int = 1, accumulator: str = "element") -> Any:
    opt = tw.Adagrad(np.ones((rows, WIDTH), np.float32), LR, eps=EPS, accumulator=accumulator)
    grads = cycle([tw.RowGrad(*batch) for batch in data])
    before = partial(tw.set_num_threads, threads)
    return Contender("opt.step(next(grads))", {"opt": opt, "grads": grads, "next": next}, before)


def numpy(rows: int, data: list[Batch]) -> Contender:
    # Full, here and below: zeros get their memory from the system at the first use, which is slow.
    table, accumulator = (np.full((rows, WIDTH), x, np.float32) for x in (1, 0))

    def step(ids: np.ndarray, values: np.ndarray) -> None:
        distinct, inverse = np.unique(ids, return_inverse=True)
        grad = np.zeros((len(distinct), WIDTH), np.float32)
        np.add.at(grad, inverse, values)
        accumulator[distinct] += grad * grad
        table[distinct] -= LR * grad / np.sqrt(accumulator[distinct] + EPS)

    return Contender("step(*next(data))", {"step": step, "data": cycle(data), "next": next})


def torch(rows: int, data: list[Batch]) -> Contender:
    module = _import("torch")
    table = module.nn.Parameter(module.ones(rows, WIDTH))
    opt = module.optim.Adagrad([table], lr=LR, eps=EPS)
    size = (rows, WIDTH)
    grads = [
        module.sparse_coo_tensor(module.from_numpy(ids)[None], module.from_numpy(values), size)
        for ids, values in data
    ]

    def step(grad: Any) -> None:
        table.grad = grad
        opt.step()

    names = {"step": step, "grads": cycle(grads), "next": next}
    return Contender("step(next(grads))", names, partial(module.set_num_threads, 1))


def fbgemm(rows: int, data: list[Batch], update: bool) -> Contender:
    """Its update is inside the backward pass: with it, and forward alone."""
    module = _import("torch")
    _import("fbgemm_gpu")
    from fbgemm_gpu.split_table_batched_embeddings_ops_common import (
        EmbeddingLocation,
        PoolingMode,
    )
    from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
        ComputeDevice,
        OptimType,
        SplitTableBatchedEmbeddingBagsCodegen,
    )

    table = SplitTableBatchedEmbeddingBagsCodegen(
        [(rows, WIDTH, EmbeddingLocation.HOST, ComputeDevice.CPU)],
        optimizer=OptimType.EXACT_ADAGRAD,
        learning_rate=LR,
        eps=EPS,
        pooling_mode=PoolingMode.NONE,
    )
    for tensor in (
        *table.split_embedding_weights(),
        *map(itemgetter(0), table.split_optimizer_states()),
    ):
        tensor.detach().fill_(1.0)
    given = [(module.from_numpy(ids), module.from_numpy(values)) for ids, values in data]
    offsets = module.arange(len(data[0][0]) + 1)

    def step(ids: Any, values: Any) -> None:
        out = table(ids, offsets)
        if update:
            out.backward(values)

    names = {"step": step, "data": cycle(given), "next": next}
    return Contender("step(*next(data))", names, partial(module.set_num_threads, 1))


def _import(name: str) -> Any:
    try:
        return __import__(name)
    except ImportError:
        raise Missing(name) from None


PEERS: dict[str, Callable[[int, list[Batch]], Contender]] = {
    "thalweg": thalweg,
    "torch sparse": torch,
    "FBGEMM forward": partial(fbgemm, update=False),
    "FBGEMM forward+backward": partial(fbgemm, update=True),
    "numpy": numpy,
}


def measure(
    kind: str, count: int, rows: int, names: list[str], rounds: int, together: bool = True
) -> dict[str, float]:
    """Seconds per Adagrad step; FBGEMM's is the difference that its update makes.

    Not ``together``, one peer has its tables in memory at a time, and rounds of its own.
    """
    data = batches(kind, count, rows)
    times: dict[str, float] = {}
    by_peer = [[*group] for _, group in groupby(names, lambda name: name.split()[0])]
    for at_once in [names] if together else by_peer:
        contenders = {}
        for name in at_once:
            try:
                contenders[name] = PEERS[name](rows, data)
            except Missing as missing:
                print(f"skipped: {name} (no {missing})")
        times |= interleave(f"{count:,} {kind} ids", contenders, rounds)
    forward, both = (times.pop(f"FBGEMM forward{x}", None) for x in ("", "+backward"))
    if forward is not None and both is not None:
        times["FBGEMM"] = both - forward
    return times


def against_peers() -> Iterator[Row]:
    ratios = {
        65_536: {"torch sparse": 5.0, "FBGEMM": 5.0, "numpy": 14.0},
        8_192: {"torch sparse": 5.0, "FBGEMM": 5.0, "numpy": 15.0},
        256: {"torch sparse": 12.0},
    }
    for count, against in ratios.items():
        names = [name for name in PEERS if name == "thalweg" or name.split()[0] in str(against)]
        times = measure("zipf", count, 10**6, names, 15)
        for name, ratio in against.items():
            if name in times:
                yield f"{count:,} zipf ids, 10^6 x 64", name, times["thalweg"], times[name], ratio


def against_itself() -> Iterator[Row]:
    """A larger table, a second thread, one accumulator a row."""

    def compare(title: str, contenders: dict[str, Contender], ratio: float) -> Row:
        times = interleave(title, contenders, 15)
        (_, ours), (other, theirs) = times.items()
        return title, other, ours, theirs, ratio

    contenders = {
        name: thalweg(rows, batches("uniform", 8_192, rows))
        for name, rows in (("10^7 rows", 10**7), ("10^5 rows", 10**5))
    }
    yield compare("8,192 uniform ids, 10^7 rows", contenders, 1 / 3)
    data = batches("uniform", 65_536, 10**6)
    contenders = {f"{n} threads": thalweg(10**6, data, n) for n in (2, 1)}
    yield compare("65,536 uniform ids, 2 threads", contenders, 1.5)
    for count, kind in ((8_192, "zipf"), (8_192, "uniform"), (65_536, "zipf"), (65_536, "uniform")):
        data = batches(kind, count, 10**6)
        contenders = {name: thalweg(10**6, data, 1, name) for name in ("row", "element")}
        yield compare(f"{count:,} {kind} ids, accumulator=row", contenders, 1.2)


def run_table() -> None:
    """Microseconds per step of every peer, table, kind and number of ids.

    Of 10^7 rows, 5 GB a contender, one peer at a time.
    """
    names = [*PEERS]
    shown = ["thalweg", "torch sparse", "FBGEMM", "numpy"]
    print(f"{'rows x 64':>10} {'ids':>16} " + " ".join(f"{name:>13}" for name in shown))
    for rows in (10**5, 10**6, 10**7):
        for kind in ("zipf", "uniform"):
            for count in (256, 8_192, 65_536):
                times = measure(kind, count, rows, names, 7, together=rows < 10**7)
                cells = (f"{times[n] * 1e6:>13.1f}" if n in times else f"{'-':>13}" for n in shown)
                print(f"{rows:>10} {count:>8} {kind:>7} " + " ".join(cells), flush=True)
