"""Updates as people write them, right ones in many styles; written_mistakes.py has the others.

``RIGHT`` gives the verdict, the rule and the options that are expected. Each is made anew by its
function, because it has a state.
"""

from collections import defaultdict

import numpy as np

LR, MU, WD = 0.1, 0.9, 0.01


def over(step):
    """An update of a list, dict or array made of one for arrays: step(w, g, state, t)."""
    states, count = defaultdict(dict), [0]

    def update(params, grads):
        pairs = params if isinstance(params, dict) else range(len(params))
        for k in pairs:
            step(params[k], grads[k], states[k], count[0])
        count[0] += 1

    return update


def kept(state, name, like):
    return state.setdefault(name, np.zeros_like(like))


def loop_over_pairs():
    def update(params, grads):
        for w, g in zip(params, grads, strict=True):
            w -= LR * g

    return update


def new_arrays_in_a_dict():
    def update(params, grads):
        for k in params:
            params[k] = params[k] - LR * grads[k]

    return update


def returns_a_new_array():
    return lambda w, g: w - LR * g


def returns_a_new_dict():
    return lambda params, grads: {k: params[k] - LR * grads[k] for k in params}


def gradients_first():
    def update(grads, params):
        for g, w in zip(grads, params, strict=True):
            np.subtract(w, LR * g, out=w)

    return update


def d2l_momentum():
    def step(w, g, s, t):
        v = kept(s, "v", w)
        v[:] = MU * v + g
        w[:] -= LR * v

    return over(step)


def rate_in_the_velocity():
    def step(w, g, s, t):
        s["v"] = MU * s.get("v", 0.0) + LR * g
        w -= s["v"]

    return over(step)


class Momentum:
    """Saito's."""

    def __init__(self, lr=0.01, momentum=0.9):
        self.lr, self.momentum, self.v = lr, momentum, None

    def update(self, params, grads):
        if self.v is None:
            self.v = {k: np.zeros_like(w) for k, w in params.items()}
        for k in params:
            self.v[k] = self.momentum * self.v[k] - self.lr * grads[k]
            params[k] += self.v[k]


class SklearnLike:
    def __init__(self):
        self.learning_rate, self.velocities = 0.001, None

    def update_params(self, params, grads):
        if self.velocities is None:
            self.velocities = [np.zeros_like(w) for w in params]
        self.velocities = [
            0.9 * v - self.learning_rate * g for v, g in zip(self.velocities, grads, strict=True)
        ]
        for w, v, g in zip(params, self.velocities, grads, strict=True):
            w += 0.9 * v - self.learning_rate * g


def torch_nesterov_with_decay():
    def step(w, g, s, t):
        g = g + WD * w
        s["v"] = g if t == 0 else MU * s["v"] + g
        w -= LR * (g + MU * s["v"])

    return over(step)


def torch_dampening():
    def step(w, g, s, t):
        s["v"] = g if t == 0 else MU * s["v"] + (1 - 0.5) * g
        w -= LR * s["v"]

    return over(step)


def cs231n_nesterov():
    def step(w, g, s, t):
        v_prev = kept(s, "v", w).copy()
        s["v"] = MU * s["v"] - LR * g
        w += -MU * v_prev + (1 + MU) * s["v"]

    return over(step)


def openai_es():
    def step(theta, g, s, t):
        s["v"] = MU * s.get("v", 0.0) + (1.0 - MU) * g
        theta += -0.02 * s["v"]

    return over(step)


def polyak():
    def step(w, g, s, t):
        before = s.get("w", w.copy())
        s["w"] = w.copy()
        w[...] = w - LR * g + MU * (w - before)

    return over(step)


def decoupled_by_a_product():
    def step(w, g, s, t):
        w *= 1 - LR * WD
        s["v"] = MU * s.get("v", 0.0) + g
        w -= LR * s["v"]

    return over(step)


def decoupled_by_a_difference():
    def step(w, g, s, t):
        w -= LR * WD * w
        s["v"] = MU * s.get("v", 0.0) + g
        w -= LR * s["v"]

    return over(step)


def uphill():
    def step(w, g, s, t):
        s["v"] = MU * s.get("v", 0.0) + g
        w += LR * s["v"]

    return over(step)


def global_norm_clipped():
    def update(params, grads):
        norm = np.sqrt(sum((g * g).sum() for g in grads))
        scale = min(1.0, 5.0 / (norm + 1e-6))
        for w, g in zip(params, grads, strict=True):
            w -= LR * (scale * g)

    return update


def rate_falls():
    def step(w, g, s, t):
        w -= LR / (1 + 0.05 * t) * g

    return over(step)


def rate_fades():
    def step(w, g, s, t):
        s["v"] = 0.8 * s.get("v", 0.0) + g
        w -= LR * 0.95**t * s["v"]

    return over(step)


def min_char_rnn():
    def step(w, g, s, t):
        mem = kept(s, "mem", w)
        np.clip(g, -5, 5, out=g)
        mem += g * g
        w += -0.1 * g / np.sqrt(mem + 1e-8)

    return over(step)


class AdaGrad:
    """Saito's."""

    def __init__(self, lr=0.01):
        self.lr, self.h = lr, None

    def update(self, params, grads):
        if self.h is None:
            self.h = {k: np.zeros_like(w) for k, w in params.items()}
        for k in params:
            self.h[k] += grads[k] * grads[k]
            params[k] -= self.lr * grads[k] / (np.sqrt(self.h[k]) + 1e-7)


def keras_adagrad():
    def step(w, g, s, t):
        s["s"] = s.get("s", np.full_like(w, 0.1)) + np.square(g)
        w -= 0.001 * g / np.sqrt(s["s"] + 1e-7)

    return over(step)


def quotient_first():
    def step(w, g, s, t):
        s["s"] = s.get("s", 0.0) + g**2
        w -= LR * (g / (np.sqrt(s["s"]) + 1e-10))

    return over(step)


def rows_share():
    def step(w, g, s, t):
        axes = tuple(range(1, w.ndim))
        s["s"] = s.get("s", 0.0) + np.mean(g * g, axis=axes, keepdims=True)
        w -= LR * g / (np.sqrt(s["s"]) + 1e-8)

    return over(step)


def adagrad_with_lr_decay_and_l2():
    def step(w, g, s, t):
        g = g + WD * w
        s["s"] = s.get("s", 0.0) + g * g
        w -= LR / (1 + 0.1 * t) * g / (np.sqrt(s["s"]) + 1e-10)

    return over(step)


# Verdict, rule, options; None where the options are only near.
RIGHT = {
    loop_over_pairs: ("same", "SGD", {"lr": 0.1}),
    new_arrays_in_a_dict: ("same", "SGD", {"lr": 0.1}),
    returns_a_new_array: ("same", "SGD", {"lr": 0.1}),
    returns_a_new_dict: ("same", "SGD", {"lr": 0.1}),
    gradients_first: ("same", "SGD", {"lr": 0.1}),
    d2l_momentum: ("same", "SGD", {"lr": 0.1, "momentum": 0.9}),
    rate_in_the_velocity: ("same", "SGD", {"lr": 0.1, "momentum": 0.9, "form": "classic"}),
    Momentum: ("same", "SGD", {"lr": 0.01, "momentum": 0.9, "form": "classic"}),
    SklearnLike: (
        "same",
        "SGD",
        {"lr": 0.001, "momentum": 0.9, "form": "classic", "nesterov": True},
    ),
    torch_nesterov_with_decay: (
        "same",
        "SGD",
        {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01},
    ),
    torch_dampening: ("same", "SGD", {"lr": 0.1, "momentum": 0.9, "dampening": 0.5}),
    cs231n_nesterov: (
        "close: it adds -mu*v_old + (1 + mu)*v",
        "SGD",
        {"lr": 0.1, "momentum": 0.9, "form": "classic", "nesterov": True},
    ),
    openai_es: ("same", "SGD", {"lr": 0.02, "momentum": 0.9, "form": "ema"}),
    polyak: (
        "close: it takes the velocity from the difference",
        "SGD",
        {"lr": 0.1, "momentum": 0.9},
    ),
    decoupled_by_a_product: (
        "same",
        "SGD",
        {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01, "decoupled": True},
    ),
    decoupled_by_a_difference: (
        "close: it subtracts lr*wd*w",
        "SGD",
        {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01, "decoupled": True},
    ),
    uphill: ("same", "SGD", {"lr": 0.1, "momentum": 0.9, "maximize": True}),
    global_norm_clipped: (
        "close: norms are summed in another order",
        "SGD",
        {"lr": 0.1, "max_norm": 5.0},
    ),
    rate_falls: ("same", "SGD", {"lr": "InverseTime(lr=0.1, decay=0.05)"}),
    rate_fades: ("same", "SGD", {"lr": "Exponential(lr=0.1, gamma=0.95)", "momentum": 0.8}),
    min_char_rnn: ("same", "Adagrad", {"lr": 0.1, "eps": 1e-8, "max_value": 5.0}),
    AdaGrad: ("same", "Adagrad", {"lr": 0.01, "eps": 1e-7, "eps_placement": "outside"}),
    keras_adagrad: (
        "same",
        "Adagrad",
        {"lr": 0.001, "eps": 1e-7, "initial_accumulator_value": 0.1},
    ),
    quotient_first: (
        "close: it computes lr*(g/r)",
        "Adagrad",
        {"lr": 0.1, "eps": 1e-10, "eps_placement": "outside"},
    ),
    rows_share: (
        "same",
        "Adagrad",
        {"lr": 0.1, "eps": 1e-8, "eps_placement": "outside", "accumulator": "row"},
    ),
    adagrad_with_lr_decay_and_l2: (
        "same",
        "Adagrad",
        {
            "lr": 0.1,
            "lr_decay": 0.1,
            "eps": 1e-10,
            "eps_placement": "outside",
            "weight_decay": 0.01,
        },
    ),
}
