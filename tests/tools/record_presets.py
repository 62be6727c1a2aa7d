"""Records what other libraries' own optimizers make of fixed params and gradients.

    python tests/tools/record_presets.py keras optax ... > some.json

Chainer wants NumPy < 1.24. ``tests/api/presets.json`` holds what all of them gave.
Each case names what the library's user writes and what a thalweg user writes for it. Books and
scripts that publish NumPy lines instead of a package have theirs in published_lines.py.
"""

import json
import os
import sys
import warnings
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import numpy as np

from published_lines import LINES, LR, Case

STEPS = 6
KEPT = (0, 1, STEPS - 1)


def params() -> list[Any]:
    r = np.random.default_rng(1)
    return [r.normal(size=(2, 2)), r.normal(size=1)]


def gradients() -> list[list[Any]]:
    """Of small and of large norms, so that limits hold in some steps only; the last are zero."""
    r = np.random.default_rng(2)
    sizes = 0.3, 4.0, 0.1, 2.5, 1.0, 0.0
    return [[size * r.normal(size=(2, 2)), size * r.normal(size=1)] for size in sizes]


def recorded(step: Callable[[list[Any]], list[Any]]) -> list[list[float]]:
    """The params after some of the steps, flat."""
    after = [
        [float(x) for w in step(grads) for x in np.asarray(w).ravel()] for grads in gradients()
    ]
    return [after[i] for i in KEPT]


# ---- torch ----


def torch_cases() -> dict[str, Case]:
    import torch

    torch.set_default_dtype(torch.float64)

    def case(rule, options, *, clip=None, schedule=None, **given):
        def run(start):
            ws = [torch.tensor(w, requires_grad=True) for w in start]
            opt = getattr(torch.optim, rule)(ws, **given)
            later = schedule(opt) if schedule else None

            def step(grads):
                for w, g in zip(ws, grads, strict=True):
                    w.grad = torch.tensor(g)
                if clip:
                    clip(ws)
                opt.step()
                if later:
                    later.step()
                return [w.detach().numpy() for w in ws]

            return step

        return Case(rule, run, options)

    def plain(rule, **given):
        return case(rule, given, **given)

    utils, rates = torch.nn.utils, torch.optim.lr_scheduler
    ahead = {"momentum": 0.9, "nesterov": True}
    made = {
        "sgd": plain("SGD"),
        "momentum": plain("SGD", momentum=0.9),
        "momentum 1": plain("SGD", momentum=1.0),
        "nesterov": plain("SGD", **ahead),
        "dampening": plain("SGD", momentum=0.9, dampening=0.25),
        "decay": plain("SGD", momentum=0.9, weight_decay=0.1),
        "maximize": plain("SGD", **ahead, weight_decay=0.1, maximize=True),
        "adagrad": plain("Adagrad"),
        "adagrad lr_decay": plain("Adagrad", lr_decay=0.5),
        "adagrad initial": plain("Adagrad", initial_accumulator_value=0.5),
        "adagrad decay": plain("Adagrad", weight_decay=0.1, eps=1e-3),
        "adagrad maximize": plain("Adagrad", maximize=True),
    }
    for rule in ("SGD", "Adagrad"):
        made[f"{rule} max_norm"] = case(
            rule, {"max_norm": 0.5}, clip=lambda ws: utils.clip_grad_norm_(ws, 0.5)
        )
        made[f"{rule} max_value"] = case(
            rule, {"max_value": 0.5}, clip=lambda ws: utils.clip_grad_value_(ws, 0.5)
        )
        made[f"{rule} schedule"] = case(
            rule,
            {"lr": lambda t: 0.5 * 0.8**t},
            lr=0.5,
            schedule=lambda opt: rates.ExponentialLR(opt, 0.8),
        )
    made["momentum schedule"] = case(
        "SGD",
        {"lr": lambda t: 0.5 * 0.8**t, "momentum": 0.9},
        lr=0.5,
        momentum=0.9,
        schedule=lambda opt: rates.ExponentialLR(opt, 0.8),
    )
    return made


# ---- Keras ----


def keras_cases() -> dict[str, Case]:
    os.environ["KERAS_BACKEND"] = "jax"
    import jax

    jax.config.update("jax_enable_x64", True)
    import keras

    keras.config.set_floatx("float64")

    def case(rule, options, **given):
        def run(start):
            ws = [keras.Variable(w, dtype="float64") for w in start]
            opt = getattr(keras.optimizers, rule)(**given)

            def step(grads):
                opt.apply([keras.ops.convert_to_tensor(g, "float64") for g in grads], ws)
                return [keras.ops.convert_to_numpy(w) for w in ws]

            return step

        return Case(rule, run, options)

    def plain(rule, **given):
        return case(rule, given, **given)

    rates = keras.optimizers.schedules
    made = {
        "momentum": plain("SGD", momentum=0.9),
        "nesterov": plain("SGD", momentum=0.9, nesterov=True),
        "nesterov without momentum": plain("SGD", nesterov=True),
        "momentum 1": plain("SGD", momentum=1.0),
        "momentum schedule": case(
            "SGD",
            {"lr": lambda t: 0.5 * 0.8 ** (t / 2), "momentum": 0.9},
            learning_rate=rates.ExponentialDecay(0.5, 2, 0.8),
            momentum=0.9,
        ),
        "momentum decay": plain("SGD", momentum=0.9, weight_decay=0.1),
        "nesterov decay": plain("SGD", momentum=0.9, nesterov=True, weight_decay=0.1),
        "adagrad initial": plain("Adagrad", initial_accumulator_value=0.5),
        "adagrad epsilon": case("Adagrad", {"eps": 1e-3}, epsilon=1e-3),
    }
    for rule in ("SGD", "Adagrad"):
        made |= {
            f"{rule} plain": plain(rule),
            f"{rule} decay": plain(rule, weight_decay=0.1),
            f"{rule} max_norm": case(rule, {"max_norm": 0.5}, global_clipnorm=0.5),
            f"{rule} max_value": case(rule, {"max_value": 0.5}, clipvalue=0.5),
            f"{rule} schedule": case(
                rule,
                {"lr": lambda t: 0.5 * 0.8 ** (t / 2)},
                learning_rate=rates.ExponentialDecay(0.5, 2, 0.8),
            ),
            f"{rule} schedule and decay": case(
                rule,
                {"lr": lambda t: 0.5 / (1 + 0.5 * t), "weight_decay": 0.1},
                learning_rate=rates.InverseTimeDecay(0.5, 1, 0.5),
                weight_decay=0.1,
            ),
        }
    return made


# ---- optax ----


def optax_cases() -> dict[str, Case]:
    import jax

    jax.config.update("jax_enable_x64", True)
    import optax

    def case(rule, options, *before, **given):
        given = {"learning_rate": LR} | given

        def run(start):
            ws = [jax.numpy.asarray(w) for w in start]
            opt = optax.chain(*before, getattr(optax, rule.lower())(**given))
            state = opt.init(ws)

            def step(grads):
                nonlocal ws, state
                updates, state = opt.update(list(map(jax.numpy.asarray, grads)), state, ws)
                ws = optax.apply_updates(ws, updates)
                return ws

            return step

        return Case(rule, run, {"lr": LR} | options)

    def plain(rule, **given):
        return case(rule, given, **given)

    made = {
        "momentum": plain("SGD", momentum=0.9),
        "momentum 1": plain("SGD", momentum=1.0),
        "nesterov": plain("SGD", momentum=0.9, nesterov=True),
        "nesterov without momentum": plain("SGD", momentum=0.0, nesterov=True),
        "momentum schedule": case(
            "SGD",
            {"lr": lambda t: 0.5 * 0.8 ** (t / 2), "momentum": 0.9},
            learning_rate=optax.exponential_decay(0.5, 2, 0.8),
            momentum=0.9,
        ),
        "momentum decay": case(
            "SGD",
            {"momentum": 0.9, "weight_decay": 0.1},
            optax.add_decayed_weights(0.1),
            momentum=0.9,
        ),
        "adagrad initial": plain("Adagrad", initial_accumulator_value=0.5),
        "adagrad eps": plain("Adagrad", eps=1e-3),
    }
    for rule in ("SGD", "Adagrad"):
        made |= {
            f"{rule} plain": plain(rule),
            f"{rule} decay": case(rule, {"weight_decay": 0.1}, optax.add_decayed_weights(0.1)),
            f"{rule} max_norm": case(rule, {"max_norm": 0.5}, optax.clip_by_global_norm(0.5)),
            f"{rule} max_value": case(rule, {"max_value": 0.5}, optax.clip(0.5)),
            f"{rule} schedule": case(
                rule,
                {"lr": lambda t: 0.5 * 0.8 ** (t / 2)},
                learning_rate=optax.exponential_decay(0.5, 2, 0.8),
            ),
        }
    return made


# ---- scikit-learn ----


def sklearn_cases() -> dict[str, Case]:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPClassifier

    def case(options, **given):
        def run(start):
            # Whatever the estimator makes of its arguments is what its user gets.
            model = MLPClassifier((1,), solver="sgd", max_iter=1, **given)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)
                model.partial_fit(np.zeros((4, 1)), [0, 1, 0, 1], classes=[0, 1])
            opt, ws = model._optimizer, start
            opt.params = ws
            opt.velocities = [np.zeros_like(w) for w in ws]
            opt.learning_rate = model.learning_rate_init
            t = 0

            def step(grads):
                nonlocal t
                opt.update_params(ws, grads)
                t += 1
                opt.iteration_ends(t)
                return ws

            return step

        return Case("SGD", run, options)

    return {
        "plain": case({}),
        "without nesterov": case({"nesterov": False}, nesterovs_momentum=False),
        "momentum 0": case({"momentum": 0.0}, momentum=0.0),
        "momentum 0 without nesterov": case(
            {"momentum": 0.0, "nesterov": False}, momentum=0.0, nesterovs_momentum=False
        ),
        "momentum 1": case({"momentum": 1.0}, momentum=1.0),
        "lr": case({"lr": 0.5}, learning_rate_init=0.5),
        "invscaling": case(
            {"lr": lambda t: 0.5 / (t + 1) ** 0.3},
            learning_rate="invscaling",
            learning_rate_init=0.5,
            power_t=0.3,
        ),
    }


# ---- Chainer ----


def chainer_cases() -> dict[str, Case]:
    import chainer
    from chainer import optimizer_hooks as hooks
    from chainer import optimizers

    def case(name, options, *before, schedule=None, **given):
        def run(start):
            link = chainer.Chain()
            with link.init_scope():
                link.w, link.b = map(chainer.Parameter, start)
            opt = getattr(optimizers, name)(**given).setup(link)
            for hook in before:
                opt.add_hook(hook)
            t = 0

            def step(grads):
                nonlocal t
                link.w.grad, link.b.grad = (g.copy() for g in grads)
                if schedule:
                    opt.lr = schedule(t)
                t += 1
                opt.update()
                return [link.w.array, link.b.array]

            return step

        rule = "Adagrad" if name == "AdaGrad" else "SGD"
        options = ({"momentum": 0.0} if name == "SGD" else {}) | options
        return Case(rule, run, options)

    made = {
        "AdaGrad eps": case("AdaGrad", {"eps": 1e-3}, eps=1e-3),
        "MomentumSGD 0.5": case("MomentumSGD", {"momentum": 0.5}, momentum=0.5),
    }
    for name in ("SGD", "MomentumSGD", "AdaGrad"):
        made |= {
            f"{name} plain": case(name, {}),
            f"{name} lr": case(name, {"lr": 0.5}, lr=0.5),
            f"{name} decay": case(name, {"weight_decay": 0.1}, hooks.WeightDecay(0.1)),
            f"{name} max_norm": case(name, {"max_norm": 0.5}, hooks.GradientClipping(0.5)),
            f"{name} max_value": case(
                name, {"max_value": 0.5}, hooks.GradientHardClipping(-0.5, 0.5)
            ),
            f"{name} schedule": case(
                name, {"lr": lambda t: 0.5 * 0.8**t}, schedule=lambda t: 0.5 * 0.8**t
            ),
        }
    return made


LIBRARIES = {
    "torch": torch_cases,
    "keras": keras_cases,
    "optax": optax_cases,
    "sklearn": sklearn_cases,
    "chainer": chainer_cases,
}
PACKAGES = {"sklearn": "scikit-learn"}


def record(source: str) -> dict[str, Any]:
    """The version of a library and, by case, what thalweg is told (a schedule as its rates) and the
    params that the library came to."""
    cases = (LIBRARIES | LINES)[source]()
    by = version(PACKAGES.get(source, source)) if source in LIBRARIES else "its published lines"
    return {"version": by, "cases": {name: _told(case) for name, case in cases.items()}}


def _told(case: Case) -> dict[str, Any]:
    options = {
        name: [value(t) for t in range(STEPS)] if callable(value) else value
        for name, value in case.options.items()
    }
    return {"rule": case.rule, "options": options, "params": recorded(case.run(params()))}


if __name__ == "__main__":
    made = {source: record(source) for source in sys.argv[1:] or [*LIBRARIES, *LINES]}
    json.dump(made, sys.stdout, indent=1)
    print()
