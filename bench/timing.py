"""Times several contenders side by side: interleaved round by round, in one process."""

import sys
import timeit
from collections.abc import Callable
from dataclasses import dataclass, field
from time import perf_counter, sleep
from typing import Any

import numpy as np

from thalweg._command.cold import flush

ROUND_SECONDS = 0.02


@dataclass
class Contender:
    """A statement to time, in its own names; ``before`` runs ahead of each of its rounds."""

    statement: str
    names: dict[str, Any]
    before: Callable[[], None] = lambda: None
    idle: float = 0.0  # seconds of sleep before every step, not timed
    cold: bool = False  # the caches are flushed before every step, not timed
    inner: int = field(default=0, init=False)
    times: list[float] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        self.timer = timeit.Timer(self.statement, globals=self.names)

    def calibrate(self) -> None:
        self.before()
        self.timer.timeit(1)  # first calls allocate and compile
        once = min(self.timer.timeit(1) for _ in range(3))
        self.inner = max(1, min(100_000, int(ROUND_SECONDS / once)))
        if self.idle or self.cold:
            self.inner = min(self.inner, 5 if self.cold else 20)
            self.code = compile(self.statement, "<step>", "eval")

    def run_round(self) -> None:
        self.before()
        if not (self.idle or self.cold):
            self.timer.timeit(max(1, self.inner // 10))  # warm caches and workers again
            self.times.append(self.timer.timeit(self.inner) / self.inner)
            return
        for _ in range(self.inner):
            if self.cold:
                flush()
            if self.idle:
                sleep(self.idle)
            start = perf_counter()
            eval(self.code, self.names)
            self.times.append(perf_counter() - start)

    @property
    def median(self) -> float:
        """Seconds per step."""
        return float(np.median(self.times))


def interleave(title: str, contenders: dict[str, Contender], rounds: int) -> dict[str, float]:
    """Seconds per step of each contender, medians over the rounds."""
    for contender in contenders.values():
        contender.calibrate()
    order = list(contenders.values())
    for i in range(rounds):
        if sys.stderr.isatty():
            print(f"\r{title}: round {i + 1}/{rounds} ", end="", file=sys.stderr, flush=True)
        # Each goes first in turn, so that none always follows the one that fills the caches.
        for contender in order[i % len(order) :] + order[: i % len(order)]:
            contender.run_round()
    if sys.stderr.isatty():
        print(f"\r{'':70}\r", end="", file=sys.stderr)
    return {name: contender.median for name, contender in contenders.items()}
