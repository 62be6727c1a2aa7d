"""identify names the optimizers of other libraries, through wrappers of a few lines."""

import importlib.util

import numpy as np
import pytest

import thalweg as tw


def model(dtype=np.float64):
    return {"W": np.zeros((6, 8), dtype), "b": np.zeros(8, dtype)}


def torch_wrapped(make):
    import torch

    params = {k: torch.zeros(w.shape, dtype=torch.float64) for k, w in model().items()}
    opt = make(params.values())

    def update(arrays, grads):
        for k, p in params.items():
            p.data, p.grad = torch.from_numpy(arrays[k]), torch.from_numpy(grads[k])
        opt.step()

    return update


@pytest.mark.parametrize(
    ("name", "given", "options"),
    [
        ("SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01}, None),
        ("SGD", {"lr": 0.1, "momentum": 0.9, "dampening": 0.5}, None),
        ("Adagrad", {"lr": 0.1, "lr_decay": 0.1}, {"eps": 1e-10, "eps_placement": "outside"}),
    ],
    ids=str,
)
def test_torch_is_named(name, given, options):
    if importlib.util.find_spec("torch") is None:
        pytest.skip("torch is not installed")
    import torch

    update = torch_wrapped(lambda params: getattr(torch.optim, name)(params, **given))
    found = tw.identify(update, model())
    assert found.verdict in ("same", "close")
    assert (found.rule, found.options) == (name, given | (options or {}))


def test_sklearn_is_named():
    if importlib.util.find_spec("sklearn") is None:
        pytest.skip("scikit-learn is not installed")
    from sklearn.neural_network import _stochastic_optimizers as sklearn

    params = [np.zeros((6, 8)), np.zeros(8)]
    opt = sklearn.SGDOptimizer(params, 0.001, momentum=0.9, nesterov=True)
    found = tw.identify(lambda p, g: opt.update_params(p, g), params)
    expected = {"lr": 0.001, "momentum": 0.9, "form": "classic", "nesterov": True}
    assert (found.verdict, found.options) == ("same", expected)


@pytest.mark.parametrize("name", ["sgd", "adagrad"])
def test_optax_is_named(name):
    if importlib.util.find_spec("optax") is None or importlib.util.find_spec("jax") is None:
        pytest.skip("optax is not installed")
    import jax
    import optax

    given = {"momentum": 0.9} if name == "sgd" else {}
    opt = getattr(optax, name)(0.1, **given)
    params = model(np.float32)
    state = opt.init(jax.tree.map(jax.numpy.asarray, params))

    def update(params, grads):
        nonlocal state
        updates, state = opt.update(jax.tree.map(jax.numpy.asarray, grads), state, params)
        return {k: np.asarray(params[k] + updates[k]) for k in params}

    found = tw.identify(update, params)
    assert found.verdict in ("same", "close"), found
    assert found.rule == {"sgd": "SGD", "adagrad": "Adagrad"}[name]
    assert found.options["lr"] == 0.1
    if name == "adagrad":
        assert found.options["eps"] + found.options.get("initial_accumulator_value", 0) == (
            pytest.approx(0.1, rel=1e-5)
        )
