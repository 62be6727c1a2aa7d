"""``python -m thalweg bench``: this machine's figures, against NumPy, the memory and torch."""

import sys
from collections.abc import Iterator
from contextlib import suppress
from time import perf_counter
from typing import Any

import numpy as np

from thalweg._command import contenders
from thalweg._command.contenders import Step
from thalweg._core import get_num_threads

WORK = {
    "2 arrays, 6 floats": (5, 1),
    "150 arrays of 16": (16,) * 150,
    "32,768": (1 << 15,),
    "2^20": (1 << 20,),
    "2^23": (1 << 23,),
}


def bench(seconds: float) -> int:
    """Print each contender's microseconds per step, and as a multiple of thalweg's."""
    steps = {
        rule: [name for name, _ in _contenders(rule, (1,))] for rule in ("momentum", "adagrad")
    }
    share = seconds / (len(WORK) * sum(map(len, steps.values())))
    print(f"threads: {get_num_threads()}; microseconds per step, medians; multiples of thalweg's")
    for rule, names in steps.items():
        print(f"\n{rule:<20}" + "".join(f"{name:>24}" for name in names))
        for title, sizes in WORK.items():
            _progress(f"{rule}, {title} ...")
            times = _interleave([step for _, step in _contenders(rule, sizes)], share)
            _progress("")
            cells = (f"{t * 1e6:>14.2f} {t / times[0]:>8.2f}x" for t in times)
            print(f"{title:<20}" + "".join(cells), flush=True)
    return 0


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r{text:<60}\r", end="", file=sys.stderr, flush=True)


def _interleave(steps: list[Step], share: float) -> list[float]:
    """Seconds per step: one round of each after the other, so that all see the same machine."""
    rounds, counts = 15, []
    for step in steps:
        step()
        counts.append(max(1, int(share / rounds / max(_time(step, 1), 1e-8))))
    times: list[list[float]] = [[] for _ in steps]
    for first in range(rounds):
        # In turn, and warm: what ran before leaves its data in the caches and its threads awake.
        for i in (j % len(steps) for j in range(first, first + len(steps))):
            _time(steps[i], 1 + counts[i] // 10)
            times[i].append(_time(steps[i], counts[i]))
    return [float(np.median(found)) for found in times]


def _time(step: Step, count: int) -> float:
    start = perf_counter()
    for _ in range(count):
        step()
    return (perf_counter() - start) / count


def _contenders(rule: str, sizes: tuple[int, ...]) -> Iterator[tuple[str, Step]]:
    rng = np.random.default_rng(0)
    grads = [rng.standard_normal(n, np.float32) * np.float32(1e-3) for n in sizes]

    def params() -> list[Any]:
        return [np.ones(n, np.float32) for n in sizes]

    yield "thalweg", contenders.optimizer(rule, params(), grads=grads).step
    yield "memory alone", contenders.limit(params(), grads)
    yield "NumPy in place", contenders.numpy_in_place(rule, params(), grads)
    with suppress(ImportError):
        import torch

        torch.set_num_threads(get_num_threads())
        yield "torch fused", contenders.torch(rule, params(), grads, fused=True)
