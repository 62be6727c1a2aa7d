"""Optimizers that books and scripts publish as lines of NumPy, run as they stand there."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

LR = 0.07


@dataclass(frozen=True)
class Case:
    """``run`` takes params and gives a function that steps them, a copy of them or what stands for
    them, and returns them; ``options`` are what ``like`` takes."""

    rule: str
    run: Callable[[list[Any]], Callable[[list[Any]], list[Any]]]
    options: dict[str, Any] = field(default_factory=dict)


def _lines(rule, line, options, initial=0.0):
    """``line(w, g, s)`` changes w and its state s."""

    def run(ws):
        states = [np.full_like(w, initial) for w in ws]

        def step(grads):
            for each in zip(ws, grads, states, strict=True):
                line(*each)
            return ws

        return step

    return Case(rule, run, options)


def d2l_cases() -> dict[str, Case]:
    """Dive into Deep Learning, 11.4, 11.6 and 11.7."""

    def sgd(w, g, s):
        w[:] -= LR * g

    def momentum(w, g, v):
        v[:] = 0.9 * v + g
        w[:] -= LR * v

    def adagrad(w, g, s):
        s[:] += np.square(g)
        w[:] -= LR * g / np.sqrt(s + 1e-6)

    return {
        "sgd": _lines("SGD", sgd, {"lr": LR}),
        "momentum": _lines("SGD", momentum, {"lr": LR, "momentum": 0.9}),
        "adagrad": _lines("Adagrad", adagrad, {"lr": LR}),
    }


def saito_cases() -> dict[str, Case]:
    """Saito, Deep Learning from Scratch, common/optimizer.py."""

    def momentum(mu, lr):
        def line(w, g, v):
            v[:] = mu * v - lr * g
            w[:] += v

        return line

    def adagrad(lr):
        def line(w, g, h):
            h[:] += g * g
            w[:] -= lr * g / (np.sqrt(h) + 1e-7)

        return line

    return {
        "momentum": _lines("SGD", momentum(0.9, 0.01), {}),
        "momentum given": _lines("SGD", momentum(0.5, 0.25), {"momentum": 0.5, "lr": 0.25}),
        "adagrad": _lines("Adagrad", adagrad(0.01), {}),
        "adagrad given": _lines("Adagrad", adagrad(0.25), {"lr": 0.25}),
    }


def openai_es_cases() -> dict[str, Case]:
    """evolution-strategies-starter, es_distributed/optimizers.py."""

    def momentum(mu):
        def line(w, g, v):
            v[:] = mu * v + (1.0 - mu) * g
            w[:] += -LR * v

        return line

    return {
        "momentum": _lines("SGD", momentum(0.9), {"lr": LR}),
        "momentum given": _lines("SGD", momentum(0.5), {"lr": LR, "momentum": 0.5}),
    }


def openfl_cases() -> dict[str, Case]:
    """OpenFL's NumPyAdagrad, openfl/utilities/optimizers/numpy."""

    def adagrad(lr, eps):
        def line(w, g, s):
            s[:] = s + g**2
            w[:] -= lr * g / (np.sqrt(s) + eps)

        return line

    given = {"lr": 0.25, "initial_accumulator_value": 0.5, "eps": 1e-3}
    return {
        "adagrad": _lines("Adagrad", adagrad(0.01, 1e-10), {}, 0.1),
        "adagrad given": _lines("Adagrad", adagrad(0.25, 1e-3), given, 0.5),
    }


def min_char_rnn_cases() -> dict[str, Case]:
    """Karpathy, min-char-rnn.py."""

    def adagrad(w, g, mem):
        mem += g * g
        w += -1e-1 * g / np.sqrt(mem + 1e-8)

    return {"adagrad": _lines("Adagrad", adagrad, {})}


LINES = {
    "d2l": d2l_cases,
    "saito": saito_cases,
    "openai_es": openai_es_cases,
    "openfl": openfl_cases,
    "min_char_rnn": min_char_rnn_cases,
}
