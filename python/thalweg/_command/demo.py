"""``python -m thalweg demo``: a character RNN in plain NumPy learns English with ``Adagrad``.

Then the same network takes its steps twice, by the two NumPy lines and by ``adagrad_``. With a
folder for checkpoints the learning goes on where the last run left it.
"""

import math
import sys
import time
from pydoc_data.topics import topics
from statistics import median
from textwrap import dedent, wrap
from typing import Any

import numpy as np
from numpy.typing import NDArray

from thalweg._command.cold import TOUCHED, flush
from thalweg._command.contenders import limit
from thalweg._core import __version__
from thalweg.checkpoint import CheckpointKeeper
from thalweg.functional import adagrad_
from thalweg.optimizers import Adagrad

Floats = NDArray[np.float32]
Codes = NDArray[np.intp]

SEQUENCES, LENGTH, HIDDEN = 16, 25, 128
LR = 0.03
EVERY = 500  # steps between checkpoints


class Text:
    """What is learned, as numbers: ``SEQUENCES`` columns that are read downwards side by side."""

    def __init__(self) -> None:
        paragraphs = "\n\n".join(topics[name] for name in sorted(topics)).split("\n\n")
        # Without tables, grammars and program code, which are drawn rather than written.
        drawn = "|", "::=", ">>>", "   "
        prose = [p for p in map(dedent, paragraphs) if not any(mark in p for mark in drawn)]
        text = "\n\n".join(prose)
        self.alphabet = sorted(set(text))
        self.length = len(text)
        code = {character: i for i, character in enumerate(self.alphabet)}
        rows = len(text) // SEQUENCES
        codes = np.array([code[c] for c in text[: rows * SEQUENCES]], np.intp)
        self._columns = codes.reshape(SEQUENCES, rows).T.copy()
        self.row = 0

    def next(self) -> tuple[Codes, Codes, bool]:
        """Characters, the characters that follow them, and whether the text starts afresh."""
        if self.row + LENGTH >= len(self._columns):
            self.row = 0
        start, self.row = self.row, self.row + LENGTH
        x, y = self._columns[start : self.row], self._columns[start + 1 : self.row + 1]
        return x, y, start == 0


class CharRNN:
    """h <- tanh(Wxh[x] + h Whh + bh);  p <- softmax(h Why + by).  All in float32."""

    def __init__(self, size: int, rng: np.random.Generator) -> None:
        def normal(*shape: int) -> Floats:
            return 0.01 * rng.standard_normal(shape, np.float32)

        self.params = [
            normal(size, HIDDEN),
            normal(HIDDEN, HIDDEN),
            normal(HIDDEN, size),
            np.zeros(HIDDEN, np.float32),
            np.zeros(size, np.float32),
        ]
        self._one_hot = np.eye(size, dtype=np.float32)
        self.hidden = np.zeros((SEQUENCES, HIDDEN), np.float32)
        self.following = np.zeros(SEQUENCES, np.intp)

    def gradients(self, x: Codes, y: Codes, afresh: bool) -> tuple[float, list[Floats]]:
        """Mean loss per character, and its gradients by backpropagation through time."""
        Wxh, Whh, Why, bh, by = self.params
        h = np.empty((LENGTH + 1, SEQUENCES, HIDDEN), np.float32)
        h[0] = 0 if afresh else self.hidden
        for t in range(LENGTH):
            h[t + 1] = np.tanh(Wxh[x[t]] + h[t] @ Whh + bh)
        self.hidden, self.following = h[LENGTH], y[-1]
        p = softmax(h[1:] @ Why + by)
        loss = -np.log(np.take_along_axis(p, y[..., None], axis=-1)).mean()

        dscores = (p - self._one_hot[y]) / np.float32(x.size)
        dh = dscores @ Why.T
        da = np.empty_like(dh)
        for t in reversed(range(LENGTH)):
            da[t] = (1 - h[t + 1] ** 2) * dh[t]
            dh[t - 1] += da[t] @ Whh.T  # at t = 0 it lands in a row that is no longer read
        grads = [
            sum_of_products(self._one_hot[x], da),
            sum_of_products(h[:-1], da),
            sum_of_products(h[1:], dscores),
            da.sum((0, 1)),
            dscores.sum((0, 1)),
        ]
        for g in grads:
            np.clip(g, -5, 5, out=g)
        return float(loss), grads

    def write(self, alphabet: list[str], count: int, rng: np.random.Generator) -> str:
        """Go on where reading ended: each character drawn from p and read as the next input."""
        Wxh, Whh, Why, bh, by = self.params
        h, code, text = self.hidden[0], int(self.following[0]), ""
        for _ in range(count):
            h = np.tanh(Wxh[code] + h @ Whh + bh)
            # Scores times 1.4: the likelier characters a little more often than p says.
            p = softmax(1.4 * (h @ Why + by)).astype(np.float64)
            code = int(rng.choice(len(alphabet), p=p / p.sum()))
            text += alphabet[code]
        return text.strip("\n")


def softmax(scores: Floats) -> Floats:
    """Probabilities along the last axis."""
    e = np.exp(scores - scores.max(-1, keepdims=True))
    return np.asarray(e / e.sum(-1, keepdims=True))


def sum_of_products(a: Floats, b: Floats) -> Floats:
    """Sum over time of a[t].T @ b[t].

    Many small products: BLAS gives a large one to threads, which on a busy machine wait for each
    other far longer than they work.
    """
    return np.asarray((a.transpose(0, 2, 1) @ b).sum(0))


class Progress:
    """One line that is written over on a terminal, ten lines elsewhere."""

    def __init__(self, seconds: float) -> None:
        self._live = sys.stdout.isatty()
        self._interval = 0.2 if self._live else seconds / 10
        self._next = self._interval

    def show(self, elapsed: float, line: object) -> None:
        if elapsed >= self._next:
            self._next = elapsed + self._interval
            print(f"\r{line!s:<78}" if self._live else line, end="" if self._live else "\n")
            sys.stdout.flush()

    def close(self, elapsed: float, line: object) -> None:
        """Write a line that stays."""
        self._next = 0
        self.show(elapsed, line)
        if self._live:
            print()


class Training:
    """The main job; what it has reached stays readable when Ctrl-C ends it."""

    def __init__(self, text: Text, seed: int, folder: str | None) -> None:
        self.text, self.rng = text, np.random.default_rng(seed)
        self.network = CharRNN(len(text.alphabet), self.rng)
        self.opt = Adagrad.like("min_char_rnn", self.network.params, lr=LR)
        self.elapsed, self.loss = 0.0, float(np.log(len(text.alphabet)))
        self.keeper = CheckpointKeeper(folder, every=EVERY, progress=bar) if folder else None
        if self.keeper and (extra := self.keeper.restore(self.opt)):
            self.resume(extra)

    def describe(self) -> dict[str, Any]:
        """What a checkpoint keeps beside the optimizer."""
        network = self.network
        return {
            "elapsed": self.elapsed,
            "loss": self.loss,
            "rng": self.rng.bit_generator.state,
            "row": self.text.row,
            "hidden": network.hidden,
            "following": network.following,
        }

    def resume(self, extra: dict[str, Any]) -> None:
        self.elapsed, self.loss = extra["elapsed"], extra["loss"]
        self.rng.bit_generator.state = extra["rng"]
        self.text.row = extra["row"]
        self.network.hidden, self.network.following = extra["hidden"], extra["following"]
        print(f"Resumed from {self.opt.step_count:,} steps, loss {self.loss:.3f}.\n", flush=True)

    def run(self, seconds: float) -> None:
        progress, first_look = Progress(seconds), seconds / 10
        before = self.elapsed
        try:
            while (spent := self.elapsed - before) < seconds:
                start = time.perf_counter()
                loss, grads = self.network.gradients(*self.text.next())
                self.opt.step(grads)
                self.elapsed += time.perf_counter() - start
                self.loss += 0.02 * (loss - self.loss)
                if self.keeper:
                    self.keeper.save(self.opt, self.describe)
                if spent >= first_look:
                    first_look = math.inf
                    progress.close(spent, self)
                    self.show_sample(150)
                progress.show(spent, self)
        finally:
            progress.close(self.elapsed, self)
            if self.keeper:
                self.keeper.save(self.opt, self.describe, force=True)

    def __str__(self) -> str:
        steps = self.opt.step_count
        rate = steps * SEQUENCES * LENGTH / max(self.elapsed, 1e-9)
        return (
            f"{self.elapsed:5.1f} s   step {steps:<7,} loss {self.loss:.3f}   "
            f"{rate:,.0f} characters/s"
        )

    def show_sample(self, count: int) -> None:
        sample = self.network.write(self.text.alphabet, count, self.rng)
        print(f"it goes on:\n{indented(sample)}", flush=True)


def bar(done: int, total: int) -> None:
    """A line that shows how far a checkpoint is, and goes away."""
    if sys.stdout.isatty():
        ended = done == total
        line = "" if ended else f"checkpoint [{'#' * (40 * done // total):<40}]"
        print(f"\r{line:<78}", end="\r" if ended else "", flush=True)


STEPS = "lines", "call", "limit"


class Lockstep:
    """One network, its params and memory kept twice: by the two NumPy lines and by ``adagrad_``.

    ``times`` has, for hot and for cold caches, microseconds of every step of either, of the same
    loads and stores without arithmetic, and of the gradients before them.
    """

    def __init__(self, text: Text, seed: int) -> None:
        self.text, self.network = text, CharRNN(len(text.alphabet), np.random.default_rng(seed))
        self.params = self.network.params
        self.memory = [np.zeros_like(w) for w in self.params]
        self.params_by_hand = [w.copy() for w in self.params]
        self.memory_by_hand = [mem.copy() for mem in self.memory]
        self.grads = [np.zeros_like(w) for w in self.params]
        self._limit = limit([w.copy() for w in self.params], self.grads)
        self.compared = self.different = 0
        self.times: dict[str, dict[str, list[float]]] = {
            caches: {name: [] for name in ("gradients", *STEPS)} for caches in ("hot", "cold")
        }

    def run(self, seconds: float) -> None:
        """Half of the time with the caches as the gradients leave them, half with cold ones."""
        for times in self.times.values():
            end = time.perf_counter() + seconds / 2
            while time.perf_counter() < end:
                self._compare(times, cold=times is self.times["cold"])

    def _compare(self, times: dict[str, list[float]], *, cold: bool) -> None:
        start = time.perf_counter()
        _, grads = self.network.gradients(*self.text.next())
        times["gradients"].append(1e6 * (time.perf_counter() - start))
        for kept, g in zip(self.grads, grads, strict=True):
            kept[...] = g
        steps = (self._step_by_hand, self._step, self._limit)
        # Each goes first in turn, so that none always finds the gradients in the cache.
        first = len(times["call"]) % len(steps)
        for i in (0, 1, 2)[first:] + (0, 1, 2)[:first]:
            if cold:
                flush()
            start = time.perf_counter()
            steps[i]()
            times[STEPS[i]].append(1e6 * (time.perf_counter() - start))
        by_hand = self.params_by_hand + self.memory_by_hand
        for a, b in zip(self.params + self.memory, by_hand, strict=True):
            self.compared += a.size
            self.different += int(np.sum(a.view(np.int32) != b.view(np.int32)))

    def _step_by_hand(self) -> None:
        for w, g, mem in zip(self.params_by_hand, self.grads, self.memory_by_hand, strict=True):
            mem += g * g
            w += -LR * g / np.sqrt(mem + 1e-8)

    def _step(self) -> None:
        adagrad_(self.params, self.grads, self.memory, lr=LR)

    def report(self) -> None:
        if not self.compared:
            return
        verdict = "yes" if self.different == 0 else "NO"
        steps = sum(len(times["call"]) for times in self.times.values())
        print(
            f"  bits identical: {verdict}, {self.different:,} of {self.compared:,} "
            f"params and memories differ after any of {steps:,} steps\n\n"
            f"  {'us':<4} {'two lines':>12}     {'adagrad_':<27} loads and stores alone"
        )
        for caches, times in self.times.items():
            if times["call"]:
                print(_compared(caches, *(median(times[name]) for name in STEPS)))
        hot = {name: median(times) for name, times in self.times["hot"].items()}
        whole = (hot["gradients"] + hot["lines"]) / (hot["gradients"] + hot["call"])
        print(
            f"  Hot: the caches are as the gradients leave them. Cold: {TOUCHED >> 20} MiB are "
            f"touched before\n  each step, outside the clock, as behind a large model.\n"
            f"  The gradients take {hot['gradients']:,.0f} us: the whole loop is {whole:.2f} times "
            "as fast."
        )


def _compared(caches: str, lines: float, call: float, limit: float) -> str:
    """A row of the report, and what dominated."""
    what = "memory" if 2 * limit > call else "arithmetic"
    step = f"{call:.1f}, {lines / call:.1f} times as fast"
    return f"  {caches:<4} {lines:12.1f}     {step:<27} {limit:8.1f}: {what} dominates"


def indented(text: str) -> str:
    lines = (part for line in text.splitlines() for part in wrap(line, 74) or [""])
    return "\n".join(f"    {line}".rstrip() for line in lines)


def demo(seconds: float, seed: int, folder: str | None = None) -> int:
    """Learn for three quarters of the time, compare for the rest; 1 if any bit differs."""
    text = Text()
    lockstep = Lockstep(Text(), seed)
    size = sum(w.size for w in lockstep.params)
    print(
        f"thalweg {__version__}, NumPy {np.__version__}\n"
        f"A character RNN in NumPy ({HIDDEN} tanh units, {size:,} params, float32) reads "
        f"{text.length:,} characters of\nPython's own help, {SEQUENCES} x {LENGTH} a step; "
        f"Adagrad takes the steps, lr {LR}. Loss: nats per character,\n"
        f"{np.log(len(text.alphabet)):.2f} for a blind guess among {len(text.alphabet)}.\n",
        flush=True,
    )
    training = Training(text, seed, folder)
    try:
        training.run(0.75 * seconds)
        training.show_sample(400)
        print(
            "\nThe same network afresh, each step taken twice with the same gradients on separate "
            "copies:\nby `mem += g*g; w += -lr*g/np.sqrt(mem + 1e-8)` and by `adagrad_`.",
            flush=True,
        )
        lockstep.run(0.2 * seconds)
    except KeyboardInterrupt:
        print("Stopped early.")
        lockstep.report()
        return 130
    lockstep.report()
    return int(lockstep.different > 0)
