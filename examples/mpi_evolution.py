"""An evolution strategy over the ranks of an MPI job
==================================================

A cart that balances a pole::

    mpiexec -n 4 python -m mpi4py examples/mpi_evolution.py

OpenAI's evolution strategy (Salimans et al. 2017): mirrored noise, returns by their ranks, and
``thalweg.mpi.SGD`` with form="ema". The pairs of a generation are dealt to the ranks, whose number
decides in which order pairs are added, and with it the last bits: those of one process that adds in
that order, which --check compares.
"""

# sphinx_gallery_thumbnail_path = "scale.png"

import argparse
import hashlib
import time

import numpy as np
from mpi4py import MPI

import thalweg as tw
import thalweg.mpi

HIDDEN, PAIRS, SIGMA, LR, STEPS = 16, 32, 0.1, 0.05, 200
SIZE = 4 * HIDDEN + HIDDEN + HIDDEN


def act(theta, state):
    """The push of a policy with one hidden layer, for each of many carts."""
    W = theta[:, : 4 * HIDDEN].reshape(-1, 4, HIDDEN)
    b, out = theta[:, 4 * HIDDEN : 5 * HIDDEN], theta[:, 5 * HIDDEN :]
    hidden = np.tanh(np.einsum("ni,nih->nh", state, W) + b)
    return np.where((hidden * out).sum(axis=1) > 0, 10.0, -10.0)


def balance(theta, seed):
    """For how many of 200 steps each policy keeps its pole up (Barto, Sutton and Anderson 1983)."""
    state = np.random.default_rng(seed).uniform(-0.05, 0.05, (1, 4)).repeat(len(theta), axis=0)
    alive, kept = np.ones(len(theta), bool), np.zeros(len(theta))
    for _ in range(STEPS):
        _, dx, angle, turn = state.T
        sine, cosine = np.sin(angle), np.cos(angle)
        push = (act(theta, state) + 0.05 * turn**2 * sine) / 1.1
        spin = (9.8 * sine - cosine * push) / (0.5 * (4 / 3 - 0.1 * cosine**2 / 1.1))
        slide = push - 0.05 * spin * cosine / 1.1
        state = state + 0.02 * np.stack([dx, slide, turn, spin], axis=1)
        alive &= (np.abs(state[:, 0]) < 2.4) & (np.abs(state[:, 2]) < 0.209)
        kept += alive
    return kept


def noise(generation):
    """That of every pair, the same on every rank."""
    return np.random.default_rng([1, generation]).standard_normal((PAIRS, SIZE))


def returns(theta, generation, mine):
    """Of the pairs ``mine``, up and down."""
    shift = SIGMA * noise(generation)[mine]
    kept = balance(np.concatenate([theta + shift, theta - shift]), [2, generation])
    return kept.reshape(2, -1)


def shaped(kept):
    """Returns by their ranks, from -0.5 to 0.5, so that one lucky run does not decide."""
    order = np.argsort(np.argsort(kept.ravel(), kind="stable"), kind="stable")
    return (order / (kept.size - 1) - 0.5).reshape(kept.shape)


def gradient(kept, generation, mine):
    """Downhill's opposite: what the loss, the negative return, has."""
    weights = shaped(kept)
    return -((weights[0] - weights[1])[mine] @ noise(generation)[mine]) / (PAIRS * SIGMA)


def parts(ranks):
    return np.array_split(np.arange(PAIRS), ranks)


def train(comm, generations):
    """The policy, and the mean return of each generation."""
    theta = np.zeros(SIZE)
    opt = thalweg.mpi.SGD(theta, lr=LR, momentum=0.9, form="ema", comm=comm, average=False)
    mine = parts(comm.size)[comm.rank]
    means = []
    for generation in range(generations):
        everyone = comm.allgather(returns(theta, generation, mine))
        kept = np.concatenate(everyone, axis=1)
        opt.step(gradient(kept, generation, mine))
        means.append(kept.mean())
    return theta, means


def alone(ranks, generations):
    """The same in one process, the pairs added as so many ranks would."""
    theta = np.zeros(SIZE)
    opt = tw.SGD(theta, lr=LR, momentum=0.9, form="ema")
    for generation in range(generations):
        kept = np.concatenate([returns(theta, generation, part) for part in parts(ranks)], axis=1)
        total, *others = (gradient(kept, generation, part) for part in parts(ranks))
        for each in others:
            total = total + each
        opt.step(total)
    return theta


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--generations", type=int, default=40)
    parser.add_argument("--check", action="store_true", help="compare with one process, bit by bit")
    options = parser.parse_args()
    comm = MPI.COMM_WORLD
    start = time.perf_counter()
    theta, means = train(comm, options.generations)
    took = (time.perf_counter() - start) / options.generations
    if comm.rank == 0:
        sent = (comm.size - 1) * (theta.nbytes + 16 * PAIRS // comm.size)
        first, last = means[0], means[-1]
        print(f"{comm.size} ranks: {first:.1f} of {STEPS} steps upright at first, then {last:.1f}")
        print(f"{took * 1e3:.1f} ms and about {sent:,} bytes sent by a rank each generation")
        print(f"digest of the policy {hashlib.sha256(theta.tobytes()).hexdigest()[:16]}")
        if options.check:
            same = alone(comm.size, options.generations).tobytes() == theta.tobytes()
            print(
                "one process that adds in the order of ranks: "
                + ("the same bits" if same else "OTHER BITS")
            )
            raise SystemExit(not same)


if __name__ == "__main__":
    main()
