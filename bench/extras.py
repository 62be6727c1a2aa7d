"""The targets that compare thalweg with itself: threads, idle velocity, layouts, import."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from statistics import median
from time import perf_counter

import numpy as np

import checkpoints
import sparse
import thalweg as tw
import torch_peers
import whole_step
from contenders import LR, MAKERS, MOMENTUM, Work
from timing import Contender, interleave

K, M = 1 << 10, 1 << 20
Row = tuple[str, str, float, float, float]  # work, against, ours, theirs, target ratio


def two_threads(sizes: dict[int, float], idle: float, rounds: int) -> Iterator[Row]:
    """Two threads against one, by size; the ratio is to be at least the value."""
    for size, ratio in sizes.items():
        name = f"momentum {size:,}, 2 threads"
        if idle:
            name += f", {idle * 1e6:.0f} us idle"
        works = {n: Work("momentum", (size,), threads=n, idle=idle) for n in (1, 2)}
        contenders = {str(n): MAKERS["thalweg bound"](work) for n, work in works.items()}
        times = interleave(name, contenders, rounds)
        yield name, "1 thread", times["2"], times["1"], ratio


def quiet_velocity() -> Iterator[Row]:
    """3,000 steps without gradient take a velocity to where subnormals would be."""
    contenders = {}
    for name in ("live", "quiet"):
        grad = np.full(M, 1e-3 if name == "live" else 0.0, np.float32)
        opt = tw.SGD([np.ones(M, np.float32)], LR, MOMENTUM, grads=[grad])
        opt.state["0"]["velocity"][...] = 1.0
        for _ in range(3000):
            opt.step()
        contenders[name] = Contender("opt.step()", {"opt": opt}, partial(tw.set_num_threads, 1))
    times = interleave("quiet velocity", contenders, 31)
    yield (
        "velocity after 3,000 zero gradients",
        "live velocity",
        times["quiet"],
        times["live"],
        1 / 1.2,
    )


def layouts() -> Iterator[Row]:
    """Gradients that must be gathered or converted, against contiguous ones."""
    for rule, shape, most in (
        (rule, shape, most)
        for rule in ("momentum", "adagrad")
        for shape, most in (((1000, 1000), 4), ((1024, 1024), 4), ((100_000, 10), 3))
    ):
        grads = {
            "contiguous": np.ones(shape, np.float32),
            "transposed": np.ones(shape[::-1], np.float32).T,
            "float64": np.ones(shape, np.float64),
        }
        contenders = {}
        for name, grad in grads.items():
            w = [np.ones(shape, np.float32)]
            opt = tw.SGD(w, LR, MOMENTUM) if rule == "momentum" else tw.Adagrad(w, LR)
            names = {"opt": opt, "grads": [grad]}
            contenders[name] = Contender("opt.step(grads)", names, partial(tw.set_num_threads, 1))
        times = interleave("layouts", contenders, 31)
        for name in ("transposed", "float64"):
            yield (
                f"{rule} {shape[0]:,} x {shape[1]:,}, {name} gradient",
                "contiguous",
                times[name],
                times["contiguous"],
                1 / most if name == "transposed" else 1 / 3,
            )


def calls() -> Iterator[Row]:
    """What is not a step: against a time."""
    opt = tw.SGD(np.zeros(3, np.float32), 0.1)
    times = interleave("opt.lr = x", {"": Contender("opt.lr = 0.5", {"opt": opt})}, 31)
    yield "opt.lr = x", "0.3 us", times[""], 0.3e-6, 1.0
    base = np.zeros((50, 3000), np.float32)
    views = [base[:, k] for k in range(3000)]
    names = {"SGD": tw.SGD, "views": views}
    times = interleave("columns", {"": Contender("SGD(views, 0.1)", names)}, 15)
    yield "SGD of 3,000 columns of one array", "30 ms", times[""], 30e-3, 1.0
    made = {f"w{i}": np.ones(2, np.float32) for i in range(100_000)}
    names = {"opt": tw.SGD(made, 0.1), "grads": {"w777": np.ones(2, np.float32)}}
    step = Contender("opt.step(grads, partial=True)", names)
    read = Contender('opt.state["w777"]', names)
    times = interleave("1 of 100,000 arrays", {"step": step, "read": read}, 15)
    yield "a partial step, 1 of 100,000 arrays", "9 ms, before", times["step"], 9e-3, 100.0
    yield "opt.state[name] of 100,000 arrays", "20 ms, before", times["read"], 20e-3, 100.0


def columns() -> Iterator[Row]:
    """A function on 200 columns of one array."""
    base, grad = np.zeros((50, 200), np.float32), np.ones((50, 200), np.float32)
    names = {
        "sgd_": tw.sgd_,
        "w": [base[:, k] for k in range(200)],
        "g": [grad[:, k] for k in range(200)],
    }
    contenders = {
        "sgd_": Contender("sgd_(w, g, lr=0.1)", names),
        "numpy in place": Contender("for p, q in zip(w, g): p -= 0.1 * q", names),
    }
    times = interleave("columns", contenders, 31)
    yield "sgd_, 200 columns of one array", "numpy in place", *times.values(), 2.0


def import_time() -> Iterator[Row]:
    """Fresh interpreters, one after the other."""
    times: dict[str, list[float]] = {"numpy": [], "thalweg": []}
    for _ in range(15):
        for name, seconds in times.items():
            start = perf_counter()
            subprocess.run([sys.executable, "-c", f"import {name}"], check=True)
            seconds.append(perf_counter() - start)
    ours, theirs = median(times["thalweg"]), median(times["numpy"])
    yield "import thalweg", "import numpy", ours, theirs, 1 / 1.2


IDLE_SIZES = {1 << p: 0.95 for p in range(14, 23)}

EXTRA_TARGETS: dict[str, Callable[[], Iterator[Row]]] = {
    "2 threads": partial(two_threads, {M: 1.5, 4 * M: 1.8}, 0.0, 31),
    "2 threads, idle": partial(two_threads, IDLE_SIZES, 200e-6, 31),
    "velocity": quiet_velocity,
    "layouts": layouts,
    "calls": calls,
    "columns": columns,
    "import": import_time,
    "clip + decay + Nesterov": whole_step.against_torch,
    "clip + step": whole_step.against_one_read,
    "checkpoints": checkpoints.against_numpy,
    "thalweg.torch": torch_peers.against_torch,
    "rows against peers": sparse.against_peers,
    "rows against themselves": sparse.against_itself,
}
