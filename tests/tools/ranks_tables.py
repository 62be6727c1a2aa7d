"""Tables that no rank holds whole."""

import os
import resource
import tempfile
from pathlib import Path

import numpy as np

import thalweg as tw
import thalweg.mpi as tm
from bits import assert_same_bits
from ranks import COMM, RANK, SIZE, case, raised
from twin import assert_same_norm


@case
def tables():
    folder = COMM.bcast(tempfile.mkdtemp() if RANK == 0 else None)
    rows = 1001

    def fill(first, last):
        return np.arange(first * 3, last * 3, dtype=np.float32).reshape(-1, 3)

    for rule, options in (
        (tw.SGD, {"momentum": 0.9}),
        (tw.Adagrad, {}),
        (tw.Adagrad, {"accumulator": "row"}),
        (tw.Adagrad, {"max_norm": 0.5, "on_nonfinite": "skip"}),
    ):
        table = tm.Table(rows, 3, rule=rule, fill=fill, lr=0.1, **options)
        whole = fill(0, rows)
        alone = rule(whole, lr=0.1, **options)
        for step in range(3):
            everyone = []
            for rank in range(SIZE):
                rng = np.random.default_rng([step, rank])
                ids = rng.integers(0, rows, 200 + rank)
                values = rng.standard_normal((200 + rank, 3)).astype(np.float32)
                everyone.append((ids, values))
            if step == 2 and options.get("on_nonfinite"):
                everyone[-1][1][3] = np.inf
            both = [np.concatenate(each) for each in zip(*everyone, strict=True)]
            applied = alone.step(tw.RowGrad(*both), scale=1 / SIZE)
            assert table.step(*everyone[RANK]) is applied
            assert_same_bits(table.lookup(np.arange(rows)), whole, str(options))
            ids = everyone[RANK][0].reshape(-1, 1)
            assert_same_bits(table.lookup(ids), whole[ids])
        assert_same_norm(table.optimizer.grad_norm, alone.grad_norm)
        path = f"{folder}/{rule.__name__}{len(options)}"
        table.save(path)
        other = tm.Table(rows, 3, rule=rule, lr=0.1, **options)
        other.load(path)
        assert_same_bits(other.lookup(np.arange(rows)), whole)
    for wrong in (5000, -1):
        ids = np.array([wrong if RANK == SIZE - 1 else 0])
        for act in (lambda i=ids: table.lookup(i), lambda i=ids: table.step(i, np.ones((1, 3)))):
            raised(act, (IndexError, ValueError))
    table.lookup(np.array([0]))


def filled(first, last):
    return np.arange(first * 3, last * 3, dtype=np.float32).reshape(-1, 3)


@case
def tables_at_other_numbers_of_ranks():
    """Saved by the first job of the test, whatever its size; gone on with by all others."""
    folder = Path(os.environ["THALWEG_TEST_FOLDER"])
    rows = 101
    for rule, options in ((tw.SGD, {"momentum": 0.9}), (tw.Adagrad, {"accumulator": "row"})):
        path = folder / f"table-{rule.__name__}"
        ids, values = np.arange(0, 202, 2) % rows, np.ones((101, 3), np.float32)
        mine = (ids, values) if RANK == 0 else (ids[:0], values[:0])
        table = tm.Table(rows, 3, rule=rule, fill=filled, average=False, lr=0.1, **options)
        whole = filled(0, rows)
        alone = rule(whole, lr=0.1, **options)
        alone.step(tw.RowGrad(ids, values))
        first = COMM.bcast(not path.exists())
        if first:
            table.step(*mine)
            table.save(path)
        else:
            table.load(path)
        assert table.optimizer.step_count == 1
        table.step(*mine)
        alone.step(tw.RowGrad(ids, values))
        assert_same_bits(table.lookup(np.arange(rows)), whole)
        COMM.Barrier()


@case
def a_table_that_is_damaged():
    folder = Path(COMM.bcast(tempfile.mkdtemp() if RANK == 0 else None))
    table = tm.Table(40, 2, rule=tw.SGD, fill=lambda a, b: np.full((b - a, 2), a), lr=0.1)
    raised(lambda: table.load(folder), OSError)
    table.save(folder)
    before = table.lookup(np.arange(40))
    names = sorted(p.name for p in folder.iterdir())
    assert names == ["manifest.json", *(f"save-1-rank-{r}-param.npy" for r in range(SIZE))]
    COMM.Barrier()
    if RANK == 0:
        with open(folder / names[-1], "r+b") as file:
            file.seek(-1, 2)
            file.write(b"?")
    COMM.Barrier()
    table.step(np.arange(4), np.ones((4, 2)))
    stepped = table.lookup(np.arange(40))
    message = raised(lambda: table.load(folder), ValueError)
    assert names[-1] in message, message
    assert_same_bits(table.lookup(np.arange(40)), stepped)
    assert not np.array_equal(before, stepped)
    other = tm.Table(41, 2, rule=tw.SGD, lr=0.1)
    assert "rows: expected 41" in raised(lambda: other.load(folder), ValueError)
    table.save(folder)  # the damaged one goes
    table.load(folder)
    assert len([*folder.iterdir()]) == SIZE + 1


@case
def a_table_larger_than_a_rank_may_hold():
    if SIZE < 3:
        return
    limit, rows, width = 96 << 20, 1 << 20, 32  # 128 MiB, of which a rank holds a part
    status = Path("/proc/self/status").read_text()
    size = int(status.split("VmSize:")[1].split()[0]) * 1024
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (size + limit, before[1]))
    try:
        raised(lambda: np.ones((rows, width), np.float32), MemoryError)
        fill = lambda a, b: np.ones((1, width), np.float32)  # noqa: E731
        table = tm.Table(rows, width, rule=tw.SGD, fill=fill, average=False, lr=1.0)
        ids = np.array([RANK, rows - 1 - RANK])
        assert table.step(ids, np.ones((2, width)))
        assert (table.lookup(ids) == 0).all()
        assert (table.lookup(ids[:1] + SIZE) == 1).all()
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
