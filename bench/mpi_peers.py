"""thalweg.mpi beside what NumPy programs do over MPI today.

    mpiexec -n 2 python bench/mpi_peers.py

Medians in milliseconds of rank 0, contenders in turn; each rank has one thread. THALWEG_ISA chooses
the instruction set level.
"""

import os
import statistics
import time

os.environ.setdefault("THALWEG_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from mpi4py import MPI

import thalweg as tw
import thalweg.mpi as tm

COMM = MPI.COMM_WORLD
RANK, SIZE = COMM.rank, COMM.size
LARGE = 16_000_000


def medians(contenders, rounds, warmup=2, inner=1):
    """Milliseconds by name, each of ``inner`` calls at a time behind a barrier."""
    times = {name: [] for name in contenders}
    for turn in range(warmup + rounds):
        for name, run in contenders.items():
            COMM.Barrier()
            start = time.perf_counter()
            for _ in range(inner):
                run()
            took = (time.perf_counter() - start) / inner
            if turn >= warmup:
                times[name].append(took * 1e3)
    return {name: statistics.median(each) for name, each in times.items()}


def tell(title, ours, theirs, at_least):
    if RANK == 0:
        for name, took in (ours | theirs).items():
            print(f"{title}: {name}: {took:.4g} ms")
        (mine,) = ours.values()
        for name, took in theirs.items():
            verdict = "" if at_least[name] is None else f" (target {at_least[name]})"
            print(f"{title}: {took / mine:.2f} times {name}{verdict}", flush=True)


def numpy_momentum(size):
    """Allreduce, then the whole update on every rank, with its temporaries."""
    w, v, g = np.ones(size, "f4"), np.zeros(size, "f4"), gradient(size)

    def step():
        nonlocal v, w
        total = np.zeros_like(g)
        COMM.Allreduce(g, total, op=MPI.SUM)
        total /= SIZE
        v = 0.9 * v + total
        w += -0.1 * v

    return step


def thalweg_on_all(size):
    w, g, total = np.ones(size, "f4"), gradient(size), np.empty(size, "f4")
    opt = tw.SGD(w, lr=0.1, momentum=0.9)

    def step():
        COMM.Allreduce(g, total, op=MPI.SUM)
        opt.step(total, scale=1 / SIZE)

    return step


def over_ranks(size):
    w, g = np.ones(size, "f4"), gradient(size)
    opt = tm.SGD(w, lr=0.1, momentum=0.9)
    return lambda: opt.step(g)


def gradient(size):
    return np.random.default_rng(RANK).standard_normal(size, dtype="f4")


def momentum_steps():
    found = medians(
        {
            "thalweg.mpi": over_ranks(LARGE),
            "Allreduce, then NumPy": numpy_momentum(LARGE),
            "Allreduce, then thalweg": thalweg_on_all(LARGE),
        },
        rounds=9,
    )
    ours = {"thalweg.mpi": found.pop("thalweg.mpi")}
    tell(
        "momentum, 16 million floats",
        ours,
        found,
        {"Allreduce, then NumPy": 5, "Allreduce, then thalweg": 2.5},
    )
    found = medians(
        {"thalweg.mpi": over_ranks(6), "Allreduce, then thalweg": thalweg_on_all(6)},
        rounds=21,
        inner=400,
    )
    ours = {"thalweg.mpi": found.pop("thalweg.mpi")}
    tell("momentum, 6 floats", ours, found, {"Allreduce, then thalweg": 0.7})


def state_memory():
    opt = tm.SGD(np.ones(LARGE, "f4"), lr=0.1, momentum=0.9)
    held = COMM.allgather(opt.state[""]["velocity"].nbytes)
    if RANK == 0:
        excess = (max(held) - 4 * LARGE / SIZE) / 2**20
        print(
            f"state a rank: {max(held) / 2**20:.2f} MiB of {4 * LARGE / 2**20:.2f} MiB: "
            f"1/{SIZE} + {excess:.3f} MiB (target 1/N + 1 MiB)",
            flush=True,
        )


def tables(rows=1_000_000, width=64, count=8192):
    ids = np.minimum(np.random.default_rng(RANK).zipf(1.1, count) - 1, rows - 1)
    values = np.random.default_rng(RANK).standard_normal((count, width), dtype="f4")
    table = tm.Table(rows, width, rule=tw.Adagrad, lr=0.1)
    first, last = table.range
    cut = np.array([rows * rank // SIZE for rank in range(1, SIZE + 1)])
    block, squares = np.zeros((last - first, width), "f4"), np.zeros((last - first, width), "f4")

    def ours():
        table.lookup(ids)
        table.step(ids, values)

    def pickled():
        owner = np.searchsorted(cut, ids, side="right")
        places = [np.flatnonzero(owner == rank) for rank in range(SIZE)]
        asked = COMM.alltoall([ids[place] for place in places])
        answers = COMM.alltoall([block[each - first] for each in asked])
        found = np.empty((count, width), "f4")
        for place, answer in zip(places, answers, strict=True):
            found[place] = answer
        sent = COMM.alltoall([(ids[place], values[place]) for place in places])
        rows_in = np.concatenate([each[0] for each in sent]) - first
        values_in = np.concatenate([each[1] for each in sent])
        touched, inverse = np.unique(rows_in, return_inverse=True)
        sums = np.zeros((len(touched), width), "f4")
        np.add.at(sums, inverse, values_in)
        sums /= SIZE
        squares[touched] += sums * sums
        block[touched] -= 0.1 * sums / np.sqrt(squares[touched] + 1e-8)

    name = "pickled alltoall, np.add.at"
    found = medians({"thalweg.mpi": ours, name: pickled}, rounds=15)
    mine = {"thalweg.mpi": found.pop("thalweg.mpi")}
    tell("table, 8,192 zipf ids a rank, lookup and step", mine, found, {name: 10})


if __name__ == "__main__":
    if RANK == 0:
        print(f"{SIZE} ranks, {MPI.Get_library_version().splitlines()[0]}, level {tw._core.isa}")
    momentum_steps()
    state_memory()
    tables()
