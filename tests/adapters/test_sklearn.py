"""thalweg.sklearn: fits with scikit-learn's bits, and all else that an estimator must do."""

import contextlib
import copy
import pickle
import unittest
import warnings

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="scikit-learn is not installed")

from sklearn import neural_network
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.neural_network import _multilayer_perceptron, _stochastic_optimizers
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import estimator_checks_generator

import thalweg.sklearn as ours
from conftest import FULL
from their_tests import run_their_tests

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

CLASSES = ["MLPClassifier", "MLPRegressor"]
SMALL = {"hidden_layer_sizes": (7, 5), "max_iter": 12, "random_state": 3, "learning_rate_init": 0.1}


class Formula(_stochastic_optimizers.SGDOptimizer):
    """Adagrad in NumPy, in the place of scikit-learn's own optimizer."""

    def update_params(self, params, grads):
        for w, g, s in zip(params, grads, self.velocities, strict=True):
            g = g.astype(w.dtype)
            s += g * g
            w -= float(self.learning_rate) * g / np.sqrt(s + 1e-3)


def data(dtype=np.float64):
    rng = np.random.default_rng(7)
    X = rng.standard_normal((90, 4))
    return X.astype(dtype), (X @ [1.0, -2.0, 0.5, 0.0] > 0.3).astype(int)


def trained(net, ways, dtype=np.float64, dtype_of_y=int):
    """The net after these calls: "fit" or "partial_fit"."""
    X, y = data(dtype)
    y = y.astype(dtype_of_y)
    for way in ways:
        if way == "partial_fit" and isinstance(net, neural_network.MLPClassifier):
            net.partial_fit(X, y, classes=[0, 1])
        else:
            getattr(net, way)(X, y)
    return net


def bits(net):
    arrays = [*net.coefs_, *net.intercepts_]
    optimizer = net._optimizer
    if hasattr(optimizer, "velocities"):
        arrays += getattr(optimizer, "accumulators", optimizer.velocities)
    scores = [net.loss_curve_, net.validation_scores_, optimizer.learning_rate, net.n_iter_]
    return [(a.dtype, a.shape, a.tobytes()) for a in arrays], scores


RUNS = {
    "fit": (["fit"], {}),
    "no momentum": (["fit"], {"momentum": 0.0}),
    "momentum 1": (["fit"], {"momentum": 1.0, "learning_rate_init": 0.01}),
    "without nesterov": (["fit"], {"nesterovs_momentum": False}),
    "invscaling": (["fit"], {"learning_rate": "invscaling", "power_t": 0.3}),
    "adaptive": (
        ["fit"],
        {"learning_rate": "adaptive", "n_iter_no_change": 1, "tol": 0.1, "max_iter": 30},
    ),
    "early stopping": (["fit"], {"early_stopping": True, "n_iter_no_change": 3}),
    "early stopping, then on": (
        ["fit", "fit"],
        {"early_stopping": True, "n_iter_no_change": 3, "warm_start": True},
    ),
    "warm start": (["fit", "fit", "fit"], {"warm_start": True}),
    "partial fit": (["partial_fit"] * 9, {"learning_rate": "invscaling"}),
    "fit, then partial fit": (["fit", "partial_fit", "partial_fit"], {"batch_size": 7}),
    "momentum of NumPy": (["fit", "partial_fit"], {"momentum": np.float64(0.7)}),
    "rate of NumPy": (["fit"], {"learning_rate": "invscaling", "power_t": np.float64(0.7)}),
    "one batch, no shuffling": (["fit"], {"batch_size": 90, "shuffle": False}),
    "another solver": (["fit"], {"solver": "adam"}),
}


@pytest.mark.parametrize(
    "dtypes", [(np.float32, np.float32), (np.float32, np.float64), (np.float64, int)]
)
@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("name", CLASSES)
def test_the_bits_are_scikit_learns(name, run, dtypes):
    ways, options = RUNS[run]
    options = {**SMALL, "solver": "sgd", **options}
    nets = [getattr(where, name)(**options) for where in (neural_network, ours)]
    theirs, mine = (trained(net, ways, *dtypes) for net in nets)
    assert bits(mine) == bits(theirs)
    expected = ours if options["solver"] == "sgd" else _stochastic_optimizers
    assert type(mine._optimizer).__module__ == expected.__name__


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("run", [run for run in RUNS if "momentum" not in run])
@pytest.mark.parametrize("name", CLASSES)
def test_the_bits_of_adagrad_are_the_formulas(name, run, dtype, monkeypatch):
    ways, options = RUNS[run]
    options = {**SMALL, **options}
    mine = trained(
        getattr(ours, name)(**{**options, "solver": "adagrad", "epsilon": 1e-3}), ways, dtype
    )
    assert mine.solver == "adagrad"
    monkeypatch.setattr(_multilayer_perceptron, "SGDOptimizer", Formula)
    theirs = getattr(neural_network, name)(**{**options, "solver": "sgd"})
    assert bits(mine) == bits(trained(theirs, ways, dtype))


@pytest.mark.parametrize("solver", ["sgd", "adagrad"])
@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))], ids=["deep", "pickle"]
)
def test_a_copy_goes_on_with_the_same_bits(name, solver, copied):
    net = trained(getattr(ours, name)(solver=solver, **SMALL), ["partial_fit"] * 3)
    other = copied(net)
    assert bits(trained(other, ["partial_fit"] * 3)) == bits(trained(net, ["partial_fit"] * 3))


@pytest.mark.parametrize("solver", ["sgd", "adagrad"])
@pytest.mark.parametrize("name", CLASSES)
def test_a_clone_has_the_params_and_no_optimizer(name, solver):
    net = trained(getattr(ours, name)(solver=solver, momentum=0.5, **SMALL), ["fit"])
    other = clone(net)
    assert other.get_params() == net.get_params()
    assert other.get_params().keys() == getattr(neural_network, name)().get_params().keys()
    with pytest.raises(AttributeError, match="_optimizer: there is none before the first fit"):
        other._optimizer  # noqa: B018
    assert bits(trained(other, ["fit"])) == bits(net)


@pytest.mark.parametrize("solver", ["sgd", "adagrad"])
def test_a_step_is_taken_natively(solver):
    """In place: scikit-learn's own makes new velocities."""
    net = trained(ours.MLPRegressor(solver=solver, **SMALL), ["fit"], np.float32, np.float32)
    state = vars(net._optimizer)["velocities" if solver == "sgd" else "accumulators"]
    before = list(state)
    trained(net, ["partial_fit"], np.float32, np.float32)
    after = vars(net._optimizer)["velocities" if solver == "sgd" else "accumulators"]
    assert all(a is b for a, b in zip(before, after, strict=True))


def test_in_pipelines_grids_and_workers():
    X, y = data()
    net = ours.MLPClassifier(**SMALL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        pipeline = make_pipeline(StandardScaler(), net)
        grid = {"mlpclassifier__solver": ["sgd", "adagrad"]}
        found = GridSearchCV(pipeline, grid, cv=3).fit(X, y)
        scores = [
            cross_val_score(clone(net).set_params(solver="sgd"), X, y, cv=4, n_jobs=n)
            for n in (1, 2)
        ]
    assert found.best_score_ > 0.7
    np.testing.assert_array_equal(*scores)


def test_what_cannot_be_is_refused():
    X, y = data()
    with pytest.raises(ValueError, match=r"'solver' parameter of MLPClassifier.*'adagrad'"):
        ours.MLPClassifier(solver="momentum").fit(X, y)
    with pytest.raises(ValueError, match="'loss' parameter of MLPRegressor"):
        ours.MLPRegressor(loss="none").fit(X, y)
    assert not hasattr(ours.MLPClassifier(solver="lbfgs"), "partial_fit")
    net = ours.MLPClassifier(solver="adagrad", early_stopping=True)
    with pytest.raises(ValueError, match="does not support early_stopping"):
        net.partial_fit(X, y, classes=[0, 1])
    assert net.solver == "adagrad"  # whatever happens while it fits


def test_params_that_cannot_be_written_are_refused_whole():
    net = trained(ours.MLPClassifier(solver="sgd", **SMALL), ["partial_fit"])
    net.intercepts_[-1].flags.writeable = False
    before = [a.copy() for a in (*net.coefs_, *net._optimizer.velocities)]
    with pytest.raises(ValueError, match="read-only"):
        trained(net, ["partial_fit"])
    after = [*net.coefs_, *net._optimizer.velocities]
    assert all(map(np.array_equal, before, after))


ESTIMATORS = [(name, solver) for name in CLASSES for solver in ("sgd", "adagrad")]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "solver"), ESTIMATORS)
def test_check_estimator(name, solver):
    passed = 0
    checks = [*estimator_checks_generator(getattr(ours, name)(solver=solver, max_iter=100))]
    for estimator, check in checks if FULL else checks[ESTIMATORS.index((name, solver)) :: 13]:
        with contextlib.suppress(unittest.SkipTest):  # what needs pandas, say
            check(estimator)
            passed += 1
    assert passed > (50 if FULL else 2)


@pytest.mark.slow
def test_their_tests_pass(tmp_path):
    tests = ["test_mlp", "test_stochastic_optimizers"] if FULL else ["test_stochastic_optimizers"]
    names = [f"sklearn.neural_network.tests.{name}" for name in tests]
    passed = run_their_tests("their_sklearn", tmp_path, "--pyargs", *names)
    assert passed >= (60 if FULL else 3)


def test_what_is_copied_during_a_fit_has_its_solver():
    X, y = np.ones((4, 2)), np.arange(4) % 2
    net = ours.MLPClassifier(solver="adagrad", max_iter=1)
    copies = []
    real = type(net)._backprop

    def backprop(self, *args):
        copies.extend([pickle.loads(pickle.dumps(self)), clone(self)])
        return real(self, *args)

    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.setattr(type(net), "_backprop", backprop)
        net.fit(X, y)
    assert {type(each.solver) for each in copies} == {str}
    assert {each.solver for each in copies} == {"adagrad"}
