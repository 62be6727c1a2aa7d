"""The terms of the cost model of docs/scale.md, measured on this machine, and its picture.

    mpiexec -n 2 python bench/mpi_cost.py              # one line of JSON: measure at 1 to 4 ranks
    python bench/mpi_cost.py picture LINES docs/scale.png

alpha is a message's latency, beta a byte's time between two ranks, gamma a byte's time in the sum,
delta a byte's in the rule, kappa what Python spends on a piece; all with arrays that come from
memory. None is fitted to steps; the steps stand beside what they add up to.
"""

import json
import os
import statistics
import sys
import time
from pathlib import Path

os.environ.setdefault("THALWEG_NUM_THREADS", "1")

import numpy as np

SIZES = (1 << 20, 1 << 22, 1 << 24)  # floats
COLD = 1 << 24  # floats that no cache keeps from one use to the next
MODEL = 100_000_000  # floats of the picture's model
NETWORKS = {"10 Gbit/s": (25e-6, 8 / 10e9), "100 Gbit/s": (3e-6, 8 / 100e9)}
RANKS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


def predicted(floats, ranks, alpha, beta, gamma, delta, kappa):
    """Seconds of one momentum step: slices to their owners, sums, the rule, rows to all."""
    size, others = 4 * floats, ranks - 1
    rounds = -(-size // ranks // min(PIECE, HELD // ranks))
    sent = size * others / ranks
    each = 2 * others * alpha + kappa
    summed = size if ranks > 1 else 0
    return rounds * each + 2 * sent * beta + summed * gamma + size / ranks * delta


def allreduced(floats, ranks, alpha, beta, gamma, delta, kappa=0.0):
    """The same after a ring's Allreduce, with the whole rule on every rank."""
    size, others = 4 * floats, ranks - 1
    moved = 2 * size * others / ranks
    return 2 * others * alpha + moved * beta + size * others / ranks * gamma + size * delta


PIECE, HELD = 512 << 10, 16 << 20  # as in thalweg.mpi.link and thalweg.mpi.shards


def timed(comm, run, rounds=9):
    times = []
    for _ in range(rounds):
        comm.Barrier()
        start = time.perf_counter()
        run()
        times.append(comm.allreduce(time.perf_counter() - start, op=MAXIMUM))
    return statistics.median(times[2:])


def measure():
    from mpi4py import MPI

    import thalweg.mpi as tm
    from thalweg import _core
    from thalweg.mpi import base, link

    global MAXIMUM
    MAXIMUM = MPI.MAX
    comm = MPI.COMM_WORLD
    tiny, into = np.zeros(1, np.uint8), np.empty(PIECE, np.uint8)

    def around(array, other, times):
        after, before = (comm.rank + 1) % comm.size, (comm.rank - 1) % comm.size
        for _ in range(times):
            requests = [comm.Irecv(other, before), comm.Isend(array, after)]
            MPI.Request.Waitall(requests)

    found = {"ranks": comm.size, "alpha": 0.0, "beta": 0.0}
    n = PIECE // 4
    cold, other = np.ones(COLD, "f4"), np.empty(COLD // 2, "f4")
    if comm.size > 1:
        found["alpha"] = timed(comm, lambda: around(tiny, into[:1], 200)) / 200

        def streamed():
            for at in range(0, COLD // 2, n):
                around(cold[at : at + n], other[at : at + n], 1)

        found["beta"] = timed(comm, streamed) / other.nbytes
    received = [np.ones(n, "f4") for _ in range(comm.size)]

    def summed():
        for at in range(0, COLD, n):
            _core.add_in_order(into.view("f4"), [cold[at : at + n], *received[1:]])

    found["gamma"] = timed(comm, summed) / cold.nbytes / comm.size
    v = np.zeros(COLD, "f4")
    numbers = {"lr": 0.1, "momentum": 0.9}

    def rule():
        for at in range(0, COLD, n):
            part = slice(at, at + n)
            _core.apply("heavy_ball", (cold[part],), received[:1], (v[part],), *numbered)

    numbered = "velocity", numbers, True
    found["delta"] = timed(comm, rule) / cold.nbytes
    link.PIECE = 64  # nothing but what a piece costs
    base.SMALL = 0
    grad = np.ones(1 << 14)
    opt = tm.SGD(np.ones(1 << 14), lr=0.1, momentum=0.9, comm=MPI.COMM_SELF)
    found["kappa"] = timed(comm, lambda: opt.step(grad), 5) / (grad.nbytes / link.PIECE)
    link.PIECE = PIECE
    terms = {k: found[k] for k in ("alpha", "beta", "gamma", "delta", "kappa")}
    found["steps"] = []
    for size in SIZES:
        opt = tm.SGD(np.ones(size, "f4"), lr=0.1, momentum=0.9)
        grad = np.ones(size, "f4")
        took = timed(comm, lambda opt=opt, grad=grad: opt.step(grad))
        found["steps"].append([size, took, predicted(size, comm.size, **terms)])
    if comm.rank == 0:
        print(json.dumps(found), flush=True)


def table(lines):
    """Markdown: measured and predicted here, and what the model says of networks."""
    measured = [json.loads(line) for line in lines if line.startswith("{")]
    print("| ranks | alpha, us | kappa, us | beta, ns/KiB | gamma, ns/KiB | delta, ns/KiB |")
    print("|---|---|---|---|---|---|")
    for m in measured:
        each = [m["alpha"] * 1e6, m["kappa"] * 1e6] + [
            m[k] * 1024e9 for k in ("beta", "gamma", "delta")
        ]
        print(f"| {m['ranks']} | " + " | ".join(f"{x:.3g}" for x in each) + " |")
    print("\n| floats | " + " | ".join(f"{m['ranks']} ranks" for m in measured) + " |")
    print("|---|" + "---|" * len(measured))
    for i, size in enumerate(SIZES):
        cells = [f"{m['steps'][i][1] * 1e3:.2f} ({m['steps'][i][2] * 1e3:.2f})" for m in measured]
        print(f"| {size:,} | " + " | ".join(cells) + " |")
    one = measured[0]
    local = {name: one[name] for name in ("gamma", "delta", "kappa")}
    print("\n| ranks | " + " | ".join(f"{n}: ours | Allreduce first" for n in NETWORKS) + " |")
    print("|---|" + "---|---|" * len(NETWORKS))
    for ranks in RANKS[3:]:
        cells = []
        for alpha, beta in NETWORKS.values():
            terms = {"alpha": alpha, "beta": beta} | local
            cells += [f(MODEL, ranks, **terms) * 1e3 for f in (predicted, allreduced)]
        print(f"| {ranks:,} | " + " | ".join(f"{x:.0f}" for x in cells) + " |")
    return local


def picture(lines, path):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    local = table(lines)
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    for (name, (alpha, beta)), color in zip(NETWORKS.items(), ("C0", "C1"), strict=True):
        terms = {"alpha": alpha, "beta": beta} | local
        for f, style, who in (
            (predicted, "-", "thalweg.mpi"),
            (allreduced, "--", "Allreduce first"),
        ):
            times = [f(MODEL, ranks, **terms) * 1e3 for ranks in RANKS]
            axes.plot(RANKS, times, style, color=color, marker=".", label=f"{who}, {name}")
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="ranks, one a machine",
        ylabel="milliseconds a step",
        title="Momentum, 100 million float32: what the model says",
    )
    axes.set_xticks(RANKS, [f"{ranks:,}" for ranks in RANKS])
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    if sys.argv[1:2] == ["picture"]:
        picture(Path(sys.argv[2]).read_text().splitlines(), sys.argv[3])
    else:
        measure()
