"""scikit-learn's multilayer perceptrons, stepped by thalweg: `fit` stays as it is.

Example
-------
>>> import numpy as np
>>> from thalweg.sklearn import MLPRegressor
>>> X = np.linspace(-1, 1, 200)[:, None]
>>> net = MLPRegressor(solver="sgd", learning_rate_init=0.1, max_iter=500, random_state=0)
>>> net.fit(X, X[:, 0] ** 2).score(X, X[:, 0] ** 2) > 0.9
True
"""

from typing import Any, ClassVar

import numpy as np
from sklearn import neural_network
from sklearn.neural_network import _stochastic_optimizers as theirs
from sklearn.utils._param_validation import StrOptions

from thalweg.functional import adagrad_, sgd_

__all__ = ["AdagradOptimizer", "MLPClassifier", "MLPRegressor", "SGDOptimizer"]


class SGDOptimizer(theirs.SGDOptimizer):
    """What `MLPClassifier` and `MLPRegressor` step with when ``solver="sgd"``.

    ::

        v <- momentum*v - lr*g
        u <- v   or   momentum*v - lr*g      (nesterov)
        w <- w + u

    in one pass over each array, in place. Arguments, schedules and attributes are those of
    scikit-learn's class of this name. Where NumPy computes in a wider dtype than the params have
    (``X`` of float32 and ``y`` of float64, a momentum that is a np.float64), so does
    scikit-learn's code, which then steps.
    """

    def update_params(self, params: Any, grads: Any) -> None:
        """Step ``params`` in place; nothing has changed if arrays do not fit (ValueError)."""
        params = list(params)
        numbers = self.momentum, self.learning_rate
        for w, v, g in zip(params, self.velocities, grads, strict=True):
            if not w.dtype == v.dtype == np.result_type(*numbers, v, g):
                super().update_params(params, grads)
                return
        sgd_(
            params,
            grads,
            self.velocities,
            lr=self.learning_rate,
            momentum=self.momentum,
            nesterov=self.nesterov,
            form="classic",
        )


class AdagradOptimizer(theirs.SGDOptimizer):
    """What they step with when ``solver="adagrad"``, which scikit-learn does not have.

    ::

        s <- s + g*g
        w <- w - (lr*g) / sqrt(s + eps)

    with the schedules of scikit-learn's `SGDOptimizer`.
    """

    def __init__(
        self,
        params: Any,
        learning_rate_init: float = 0.01,
        lr_schedule: str = "constant",
        power_t: float = 0.5,
        eps: float = 1e-8,
    ) -> None:
        super().__init__([], learning_rate_init, lr_schedule, 0.0, False, power_t)
        self.eps = eps
        self.accumulators = [np.zeros_like(param) for param in params]

    def update_params(self, params: Any, grads: Any) -> None:
        """Step ``params`` in place; nothing has changed if arrays do not fit (ValueError)."""
        adagrad_(list(params), grads, self.accumulators, lr=self.learning_rate, eps=self.eps)


class _AsSGD(str):
    """What scikit-learn sees in place of "adagrad" while it fits: the equal of "sgd". Copied by
    another thread meanwhile, it is "adagrad"."""

    __slots__ = ()

    def __reduce__(self) -> tuple[type[str], tuple[str]]:
        return str, ("adagrad",)


def _with_adagrad(constraints: dict[str, Any]) -> dict[str, Any]:
    return {**constraints, "solver": [*constraints["solver"], StrOptions({"adagrad"})]}


class _Stepped:
    """What the estimators share: whose optimizer is taken."""

    solver: str
    epsilon: float

    # scikit-learn makes its own, by a name of its module, deep in the loop of `fit`.
    @property
    def _optimizer(self) -> Any:
        try:
            return vars(self)["_optimizer"]
        except KeyError:
            raise AttributeError("_optimizer: there is none before the first fit") from None

    @_optimizer.setter
    def _optimizer(self, made: Any) -> None:
        if isinstance(self.solver, _AsSGD):
            made = AdagradOptimizer(
                made.velocities,
                made.learning_rate_init,
                made.lr_schedule,
                made.power_t,
                self.epsilon,
            )
        elif type(made) is theirs.SGDOptimizer:
            made.__class__ = SGDOptimizer
        vars(self)["_optimizer"] = made

    def _fit(self, *args: Any, **kwargs: Any) -> Any:
        if self.solver != "adagrad":
            return super()._fit(*args, **kwargs)  # type: ignore[misc]
        self.solver = _AsSGD("sgd")
        try:
            return super()._fit(*args, **kwargs)  # type: ignore[misc]
        finally:
            self.solver = "adagrad"

    def _check_solver(self) -> Any:
        return self.solver == "adagrad" or super()._check_solver()  # type: ignore[misc]


class MLPClassifier(_Stepped, neural_network.MLPClassifier):
    """``sklearn.neural_network.MLPClassifier``, stepped by thalweg.

    Parameters, defaults, attributes and errors are scikit-learn's, and with ``solver="sgd"`` so are
    the bits of a fit. Beside its solvers there is ``"adagrad"``, with ``learning_rate_init``,
    ``learning_rate``, ``power_t`` and, added under the root, ``epsilon``. The other solvers,
    ``"adam"`` (the default) and ``"lbfgs"``, are scikit-learn's own.

    Example
    -------
    >>> from sklearn.datasets import load_iris
    >>> from thalweg.sklearn import MLPClassifier
    >>> X, y = load_iris(return_X_y=True)
    >>> net = MLPClassifier(solver="sgd", learning_rate_init=0.01, max_iter=500, random_state=0)
    >>> net.fit(X, y).score(X, y) > 0.95
    True
    """

    _parameter_constraints: ClassVar[dict[str, Any]] = _with_adagrad(
        neural_network.MLPClassifier._parameter_constraints
    )


class MLPRegressor(_Stepped, neural_network.MLPRegressor):
    """``sklearn.neural_network.MLPRegressor``, stepped by thalweg; see `MLPClassifier`.

    Example
    -------
    >>> import numpy as np
    >>> from thalweg.sklearn import MLPRegressor
    >>> X = np.linspace(-1, 1, 200)[:, None]
    >>> net = MLPRegressor(solver="adagrad", learning_rate_init=0.1, max_iter=500, random_state=0)
    >>> net.fit(X, X[:, 0] ** 2).score(X, X[:, 0] ** 2) > 0.9
    True
    """

    _parameter_constraints: ClassVar[dict[str, Any]] = _with_adagrad(
        neural_network.MLPRegressor._parameter_constraints
    )
