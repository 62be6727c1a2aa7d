"""Flower's server strategies with momentum and Adagrad, stepped by thalweg.

Example
-------
>>> from thalweg.flower import FedAvgM
>>> strategy = FedAvgM(server_learning_rate=1.0, server_momentum=0.9)
>>> strategy.server_momentum
0.9
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord
from flwr.serverapp import strategy as theirs
from flwr.serverapp.exception import AggregationError

from thalweg.functional import adagrad_, sgd_

__all__ = ["FedAdagrad", "FedAvgM"]

# old - new stands for the gradient: turned uphill, -new, and 1 * old of decay added to it.
_DIFFERENCE: dict[str, Any] = {"maximize": True, "weight_decay": 1.0}


class _Round:
    """The arrays of one round: those that are stepped, and the others as the clients' average."""

    def __init__(self, current: Mapping[str, Any] | None, averaged: Any) -> None:
        if current is None:
            raise AggregationError(
                "There are no current arrays: configure_train comes before aggregate_train"
            )
        if current.keys() != averaged.keys():
            names = ", ".join(sorted(current.keys() ^ averaged.keys()))
            raise AggregationError(
                f"The clients' arrays are not the server's; not in both: {names}"
            )
        self.arrays: dict[str, Any] = {}
        self.stepped: dict[str, Any] = {}
        self.news: dict[str, Any] = {}
        self._dtypes: dict[str, Any] = {}
        for name, record in averaged.items():
            old, new = current[name], record.numpy()
            old = old.numpy() if isinstance(old, Array) else old.copy()
            if old.shape != new.shape:
                raise AggregationError(
                    f"{name}: expected the server's shape {old.shape}, received {new.shape}"
                )
            self.arrays[name], self._dtypes[name] = new, old.dtype
            if old.dtype.kind == "f":
                # Half precision is stepped in single, and rounded when it is sent.
                wide = old.dtype if old.dtype.itemsize >= 4 else np.float32
                self.arrays[name] = self.stepped[name] = old.astype(wide, copy=False)
                self.news[name] = new
            elif old.dtype.kind in "iu":
                self.arrays[name] = np.rint(new)

    def states(self, kept: Mapping[str, Any] | None) -> dict[str, Any]:
        """What is kept between rounds for the arrays that are stepped, from zeros on."""
        return dict(kept) if kept else {k: np.zeros_like(w) for k, w in self.stepped.items()}

    def lists(self, states: Mapping[str, Any] | None = None) -> list[Any]:
        """As a functional step takes them, in one order."""
        tables = [self.stepped, self.news] + ([] if states is None else [states])
        return [[table[name] for name in self.stepped] for table in tables]

    def record(self) -> Any:
        """What is sent: every array in the dtype that the server had."""
        return ArrayRecord(
            {
                name: Array(np.asarray(array, self._dtypes[name]))
                for name, array in self.arrays.items()
            }
        )


class FedAvgM(theirs.FedAvgM):
    """``flwr.serverapp.strategy.FedAvgM``, its server step taken by thalweg.

    ::

        v <- server_momentum*v + (old - new)       new: the clients' average
        w <- old - server_learning_rate*v

    Arguments are Flower's. Arrays are known by their names, and integers, such as BatchNorm's
    ``num_batches_tracked``, are not stepped: the average is rounded and keeps their dtype.
    ``momentum_vector`` is a dict by name.

    Example
    -------
    >>> from thalweg.flower import FedAvgM
    >>> FedAvgM(server_learning_rate=0.5).server_opt
    True
    """

    current_arrays: Any
    momentum_vector: Any

    def aggregate_train(self, server_round: int, replies: Iterable[Any]) -> tuple[Any, Any]:
        """Average the replies and step the server's arrays.

        Raises AggregationError where names or shapes are not the server's, TypeError or ValueError
        where arrays or options do not fit; nothing has changed then.
        """
        averaged, metrics = super(theirs.FedAvgM, self).aggregate_train(server_round, replies)
        if averaged is None or not self.server_opt:
            return averaged, metrics
        turn = _Round(self.current_arrays, averaged)
        velocities = None
        if self.server_momentum != 0.0:
            velocities = turn.states(self.momentum_vector)
        sgd_(
            *turn.lists(velocities),
            lr=self.server_learning_rate,
            momentum=self.server_momentum,
            **_DIFFERENCE,
        )
        self.momentum_vector = velocities
        self.current_arrays = turn.record()
        return self.current_arrays, metrics


class FedAdagrad(theirs.FedAdagrad):
    """``flwr.serverapp.strategy.FedAdagrad``, its server step taken by thalweg.

    ::

        s <- s + (old - new)^2                     new: the clients' average
        w <- old - (eta*(old - new)) / (sqrt(s) + tau)

    Arguments are Flower's; ``tau`` must be above 0. Integers, such as BatchNorm's
    ``num_batches_tracked``, are not stepped: the average is rounded and keeps their dtype. ``v_t``
    holds the sums; ``m_t`` stays None.

    Example
    -------
    >>> from thalweg.flower import FedAdagrad
    >>> FedAdagrad(eta=0.1, tau=1e-3).tau
    0.001
    """

    current_arrays: Any
    v_t: Any

    def aggregate_train(self, server_round: int, replies: Iterable[Any]) -> tuple[Any, Any]:
        """Average the replies and step the server's arrays.

        Raises AggregationError where names or shapes are not the server's, TypeError or ValueError
        where arrays or options do not fit; nothing has changed then.
        """
        averaged, metrics = super(theirs.FedAdagrad, self).aggregate_train(server_round, replies)
        if averaged is None:
            return averaged, metrics
        turn = _Round(self.current_arrays, averaged)
        sums = turn.states(self.v_t)
        adagrad_(
            *turn.lists(sums),
            lr=self.eta,
            eps=self.tau,
            eps_placement="outside",
            **_DIFFERENCE,
        )
        self.v_t = sums
        return turn.record(), metrics
