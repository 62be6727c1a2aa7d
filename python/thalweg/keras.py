"""Keras' optimizers, stepped by thalweg, with the backends whose arrays may change: NumPy, torch.

Example
-------
>>> import keras, thalweg.keras
>>> w = keras.Variable([1.0, 2.0])
>>> optimizer = thalweg.keras.SGD(learning_rate=0.5)
>>> optimizer.apply([keras.ops.convert_to_tensor([1.0, -1.0])], [w])
>>> w.numpy().tolist()
[0.5, 2.5]
"""

from typing import Any

import keras
import numpy as np
from keras.src.backend.common.stateless_scope import in_stateless_scope

from thalweg.functional import adagrad_, sgd_

__all__ = ["SGD", "Adagrad"]

BACKEND = keras.backend.backend()
if BACKEND == "torch":
    import torch


def _seen(value: Any, types: str) -> Any:
    """The memory of a backend's array, as NumPy sees it; None where thalweg cannot take it."""
    if BACKEND == "torch":
        floats = value.dtype in (torch.float16, torch.float32, torch.float64)
        here = value.device.type == "cpu" and value.layout is torch.strided
        if not (floats and here) or value.is_neg() or torch.compiler.is_compiling():
            return None
        value = value.detach().numpy()
    return value if isinstance(value, np.ndarray) and value.dtype.char in types else None


class _Stepped:
    """What SGD and Adagrad share: steps that are ours, and Keras' own code for the others."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if BACKEND not in ("numpy", "torch"):
            name = type(self).__name__
            raise RuntimeError(
                f"thalweg.keras.{name}: expected Keras' NumPy or torch backend, received "
                f"{BACKEND}, whose arrays must not be changed in place; set KERAS_BACKEND before "
                f"keras is imported, or take keras.optimizers.{name}"
            )
        super().__init__(*args, **kwargs)

    def _state(self, variable: Any) -> Any:
        """The variable's velocity or accumulator; None without one."""
        raise NotImplementedError

    def _apply(self, params: Any, grads: Any, state: Any, lr: float) -> None:
        raise NotImplementedError

    def _backend_update_step(self, grads: Any, trainable_variables: Any, learning_rate: Any) -> Any:
        """Step all variables, natively if all of them can be."""
        states = [self._state(v) for v in trainable_variables]
        held = [*trainable_variables, *(s for s in states if s is not None)]
        arrays = [_seen(v._value, "fd") for v in held]
        used = [_seen(g, "efd") for g in grads]
        # A variable of float64 may hold float32 until Keras first assigns to it.
        if (
            in_stateless_scope()
            or any(x is None for x in (*arrays, *used))
            or any(v.dtype != x.dtype.name for v, x in zip(held, arrays, strict=True))
        ):
            return super()._backend_update_step(grads, trainable_variables, learning_rate)  # type: ignore[misc]
        count = len(used)
        self._apply(arrays[:count], used, arrays[count:], float(learning_rate))
        if BACKEND == "torch":
            torch.autograd.graph.increment_version([v._value for v in held])
        return None


@keras.saving.register_keras_serializable(package="thalweg")
class SGD(_Stepped, keras.optimizers.SGD):
    """``keras.optimizers.SGD``, stepped by thalweg.

    ::

        v <- momentum*v - lr*g
        u <- v   or   momentum*v - lr*g      (nesterov)
        w <- w + u

    Arguments are Keras', and so is what comes before it: clipping, weight decay, gradient
    accumulation and averages are Keras' own code. Variables that are not float32 or float64 on
    the CPU, and stateless calls, are stepped by Keras. Raises RuntimeError with other backends
    than NumPy and torch.

    Example
    -------
    >>> import keras, thalweg.keras
    >>> optimizer = thalweg.keras.SGD(learning_rate=0.5, momentum=0.9, nesterov=True)
    >>> keras.optimizers.deserialize(keras.optimizers.serialize(optimizer)).nesterov
    True
    """

    def _state(self, variable: Any) -> Any:
        return self.momentums[self._get_variable_index(variable)] if self.momentum != 0 else None

    def _apply(self, params: Any, grads: Any, state: Any, lr: float) -> None:
        sgd_(
            params,
            grads,
            state or None,
            lr=lr,
            momentum=self.momentum,
            nesterov=self.nesterov,
            form="classic",
        )


@keras.saving.register_keras_serializable(package="thalweg")
class Adagrad(_Stepped, keras.optimizers.Adagrad):
    """``keras.optimizers.Adagrad``, stepped by thalweg.

    ::

        s <- s + g*g
        w <- w - (lr*g) / sqrt(s + epsilon)

    The rest is as in `SGD`.

    Example
    -------
    >>> import keras, thalweg.keras
    >>> w = keras.Variable([1.0, 2.0])
    >>> optimizer = thalweg.keras.Adagrad(learning_rate=0.5, initial_accumulator_value=0.0)
    >>> optimizer.apply([keras.ops.convert_to_tensor([3.0, -3.0])], [w])
    >>> w.numpy().tolist()
    [0.5, 2.5]
    """

    def _state(self, variable: Any) -> Any:
        return self._accumulators[self._get_variable_index(variable)]

    def _apply(self, params: Any, grads: Any, state: Any, lr: float) -> None:
        adagrad_(params, grads, state, lr=lr, eps=self.epsilon)
