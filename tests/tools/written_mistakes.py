"""Updates with the usual mistakes; ``WRONG`` gives words of the cause that is to be named."""

import numpy as np

from written_updates import LR, MU, WD, kept, over


def rebinds_its_own_name():
    def update(params, grads):
        for w, g in zip(params, grads, strict=True):
            w = w - LR * g

    return update


def accumulator_not_carried_over():
    def step(w, g, s, t):
        mem = np.zeros_like(w)
        mem += g * g
        w -= LR * g / np.sqrt(mem + 1e-8)

    return over(step)


def squares_doubled():
    def step(w, g, s, t):
        mem = kept(s, "mem", w)
        mem += g * g
        mem += g * g
        w -= LR * g / np.sqrt(mem + 1e-8)

    return over(step)


def square_added_again():
    def step(w, g, s, t):
        mem = kept(s, "mem", w)
        mem += g * g
        w -= LR * g / np.sqrt(mem + g * g + 1e-8)

    return over(step)


def first_step_damped():
    def step(w, g, s, t):
        s["v"] = (1 - MU) * g if t == 0 else MU * s["v"] + g
        w -= LR * s["v"]

    return over(step)


def velocity_used_too_early():
    def step(w, g, s, t):
        v = kept(s, "v", w)
        w -= LR * v
        s["v"] = MU * v + g

    return over(step)


def mean_of_squares():
    def step(w, g, s, t):
        s["s"] = s.get("s", 0.0) + g * g
        w -= LR * g / (np.sqrt(s["s"] / (t + 1)) + 1e-8)

    return over(step)


def fading_squares():
    def step(w, g, s, t):
        s["s"] = 0.9 * s.get("s", 0.0) + 0.1 * g * g
        w -= LR * g / (np.sqrt(s["s"]) + 1e-8)

    return over(step)


def no_root():
    def step(w, g, s, t):
        s["s"] = s.get("s", 0.0) + g * g
        w -= LR * g / (s["s"] + 1e-8)

    return over(step)


def no_eps():
    def step(w, g, s, t):
        s["s"] = s.get("s", 0.0) + g * g
        w -= LR * g / np.sqrt(s["s"])

    return over(step)


def one_accumulator_for_an_array():
    def step(w, g, s, t):
        s["s"] = s.get("s", 0.0) + np.sum(g * g)
        w -= LR * g / np.sqrt(s["s"] + 1e-8)

    return over(step)


def look_ahead_by_the_wrong_share():
    def step(w, g, s, t):
        s["v"] = MU * s.get("v", 0.0) + g
        w -= LR * (s["v"] + 0.5 * g)

    return over(step)


def decay_with_the_wrong_sign():
    def step(w, g, s, t):
        g = g - WD * w
        s["v"] = MU * s.get("v", 0.0) + g
        w -= LR * s["v"]

    return over(step)


def always_normalised():
    def update(params, grads):
        norm = np.sqrt(sum((g * g).sum() for g in grads))
        for w, g in zip(params, grads, strict=True):
            w -= LR * g / norm

    return update


WRONG = {
    rebinds_its_own_name: "nothing changes",
    accumulator_not_carried_over: "the accumulator is not carried over",
    squares_doubled: "every square counts twice",
    square_added_again: "the square of the step counts twice",
    first_step_damped: "the first step is damped",
    velocity_used_too_early: "the velocity is used before",
    mean_of_squares: "the mean of the squares",
    fading_squares: "that is RMSProp",
    no_root: "the root is missing",
    no_eps: "eps is missing",
    one_accumulator_for_an_array: "one accumulator serves a whole array: the sum",
    look_ahead_by_the_wrong_share: "the step is v + c*g",
    decay_with_the_wrong_sign: "the decay has the wrong sign",
    always_normalised: "gradients are always divided by their norm",
}
