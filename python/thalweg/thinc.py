"""thinc's optimizers, stepped by thalweg: `model.finish_update` stays as it is.

Example
-------
>>> from thinc.api import Linear
>>> from thalweg.thinc import SGD
>>> model = Linear(2, 3).initialize()
>>> optimizer = SGD(0.1, momentum=0.9)
>>> guess, backprop = model.begin_update(model.ops.alloc2f(4, 3) + 1)
>>> _ = backprop(guess - 1)
>>> model.finish_update(optimizer)
"""

from typing import Any

import numpy as np
from thinc import optimizers as theirs
from thinc.config import registry

from thalweg.functional import adagrad_, sgd_

try:
    from thinc.optimizers import ScheduleT as Numbers  # 9
except ImportError:
    from thinc.optimizers import FloatOrSeq as Numbers  # 8

__all__ = ["SGD", "Adagrad"]


def _refused(name: str, key: Any, gradient: Any) -> Exception:
    """Why this gradient cannot be set to zero."""
    if not isinstance(gradient, np.ndarray):
        kind = type(gradient)
        return TypeError(
            f"gradient of {key}: expected a NumPy array, received {kind.__module__}."
            f"{kind.__name__}; thalweg steps on the CPU: use thinc's own {name} there"
        )
    return ValueError(
        f"gradient of {key}: expected a writeable array, because it is set to zero, received "
        "a read-only one; pass a copy"
    )


def _kept(table: dict[Any, Any], name: str, key: Any, weights: Any, start: float = 0.0) -> Any:
    """What the optimizer holds for these weights, or will once they have been stepped."""
    if key not in table:
        return np.full_like(weights, start, subok=False)
    kept = table[key]
    if not isinstance(weights, np.ndarray):
        return kept  # the core refuses it, with a cure
    if (kept.shape, kept.dtype) != (weights.shape, weights.dtype):
        raise ValueError(
            f"weights of {key}: expected {kept.dtype} of shape {kept.shape}, as in earlier calls, "
            f"received {weights.dtype} of shape {weights.shape}; after a change of the model, "
            f"optimizer.{name}.pop(key)"
        )
    return kept


class _Stepped(theirs.Optimizer):
    """What SGD and Adagrad share: clipping, decay, zeros, averages, each as thinc has it."""

    __slots__ = ()

    def _update(
        self, key: Any, weights: Any, gradient: Any, lr: float, decay: float, clip: float | None
    ) -> None:
        raise NotImplementedError

    def _asked(self, key: Any, *schedules: Any) -> list[Any]:
        """Their values at this step; in thinc 9 every number is a schedule."""
        told = {"key": key, "last_score": self.last_score}
        return [schedule(self.step, **told) for schedule in schedules]

    def __call__(
        self, key: Any, weights: Any, gradient: Any, *, lr_scale: float = 1.0
    ) -> tuple[Any, Any]:
        """Step ``weights`` in place and set ``gradient`` to zero; both are returned.

        key: as `Model.finish_update` makes it, ``(model.id, name)``; state is kept by it.
        lr_scale: a factor of the learning rate.

        Raises TypeError or ValueError where arrays or options do not fit, with nothing changed.
        """
        if len(gradient) < 1:
            return weights, gradient
        if not (isinstance(gradient, np.ndarray) and gradient.flags.writeable):
            raise _refused(type(self).__name__, key, gradient)
        lr, decay, clip = self.learn_rate, self.L2, self.grad_clip
        if callable(lr):
            lr, decay, clip = self._asked(key, lr, decay, clip)
        lr = lr_scale * lr
        if decay and not 0 <= lr * decay < 1e38:
            raise ValueError(
                f"L2 of {key}: expected learn_rate * L2 between 0 and 1e38, received "
                f"{lr!r} * {decay!r}"
            )
        average = None
        if self.averages is not None:
            average = _kept(self.averages, "averages", key, weights)
            shared = any(np.may_share_memory(average, a) for a in (weights, gradient))
            if shared or not average.flags.writeable:
                raise ValueError(
                    f"average of {key}: expected writeable memory of its own, received "
                    + ("the weights' or the gradient's" if shared else "read-only memory")
                    + "; optimizer.averages.pop(key) begins another"
                )
        coupled, used = 0.0, gradient
        if decay and not self.L2_is_weight_decay:
            # thinc clips what has been decayed, thalweg decays what has been clipped.
            if clip:
                used = gradient.copy()
                sgd_(used, weights, lr=decay, maximize=True)  # g += L2 * w
            else:
                coupled = decay
        self._update(key, weights, used, lr, coupled, clip or None)
        gradient.fill(0)
        # thinc's lines in one pass each: they are steps of plain SGD, to the last bit.
        if decay and self.L2_is_weight_decay:
            sgd_(weights, gradient, lr=lr * decay, weight_decay=1.0)  # w -= lr*L2 * w
        self.nr_update[key] += 1
        if average is not None:
            t = self.nr_update[key]
            rate = 1 - min((1.0 + t) / (10.0 + t), 0.9999)
            # a -= rate * (a - w)
            sgd_(average, weights, lr=rate, weight_decay=1.0, maximize=True)
            self.averages[key] = average
        return weights, gradient


@registry.optimizers("thalweg.SGD.v1")
class SGD(_Stepped):
    """``thinc.api.SGD``, stepped by thalweg, and with momentum.

    ::

        g <- g * grad_clip / norm(g)                       if the norm is above grad_clip
        w <- w - lr*g                                      momentum = 0
        v <- momentum*v + g ;  w <- w - lr*v               heavy_ball
        w <- w - lr*L2 * w
        a <- a - (1 - d) * (a - w)                         d = min((1+t) / (10+t), 0.9999)

    ``lr`` is ``lr_scale * learn_rate``; with ``L2_is_weight_decay=False`` L2*w is added to g first.
    Numbers may be lists, generators or schedules of thinc's. ``momentum``, ``nesterov`` and
    ``form`` ("heavy_ball", "classic" or "ema") are those of `thalweg.SGD`; velocities are
    ``optimizer.mom1``. In configs it is ``@optimizers = "thalweg.SGD.v1"``.

    Example
    -------
    >>> import numpy as np
    >>> from thalweg.thinc import SGD
    >>> w, g = np.ones(2, np.float32), np.ones(2, np.float32)
    >>> w, g = SGD(0.5, grad_clip=0.0)((0, "W"), w, g)
    >>> w.tolist(), g.tolist()
    ([0.5, 0.5], [0.0, 0.0])
    """

    __slots__ = ("form", "has_velocity", "nesterov")

    def __init__(
        self,
        learn_rate: Numbers,
        *,
        momentum: Numbers = 0.0,
        nesterov: bool = False,
        form: str = "heavy_ball",
        L2: Numbers = 0.0,
        grad_clip: Numbers = 1.0,
        L2_is_weight_decay: bool = True,
        use_averages: bool = True,
    ) -> None:
        super().__init__(
            learn_rate,
            L2=L2,
            beta1=momentum,
            beta2=0.0,
            grad_clip=grad_clip,
            use_averages=use_averages,
            L2_is_weight_decay=L2_is_weight_decay,
        )
        self.nesterov, self.form = nesterov, form
        self.has_velocity = not isinstance(momentum, (int, float)) or momentum != 0

    def _update(
        self, key: Any, weights: Any, gradient: Any, lr: float, decay: float, clip: float | None
    ) -> None:
        momentum, velocity = self.b1, None
        if callable(momentum):
            (momentum,) = self._asked(key, momentum)
        if momentum or self.has_velocity:
            velocity = _kept(self.mom1, "mom1", key, weights)
        sgd_(
            weights,
            gradient,
            velocity,
            lr=lr,
            momentum=momentum,
            nesterov=self.nesterov,
            form=self.form,
            weight_decay=decay,
            max_norm=clip,
            norm_eps=0.0,
        )
        if velocity is not None:
            self.mom1[key] = velocity


@registry.optimizers("thalweg.Adagrad.v1")
class Adagrad(_Stepped):
    """Adagrad for thinc, which has none.

    ::

        g <- g * grad_clip / norm(g)                       if the norm is above grad_clip
        s <- s + g*g
        w <- w - (lr*g) / sqrt(s + eps)                    eps_placement="inside"
        w <- w - (lr*g) / (sqrt(s) + eps)                  eps_placement="outside"
        w <- w - lr*L2 * w
        a <- a - (1 - d) * (a - w)                         d = min((1+t) / (10+t), 0.9999)

    Arguments are those of `SGD`, and ``eps``, ``eps_placement`` and ``initial_accumulator_value``
    of `thalweg.Adagrad`; accumulators are ``optimizer.mom2``. In configs it is
    ``@optimizers = "thalweg.Adagrad.v1"``.

    Example
    -------
    >>> import numpy as np
    >>> from thalweg.thinc import Adagrad
    >>> w, g = np.ones(2, np.float32), np.full(2, 0.5, np.float32)
    >>> w, g = Adagrad(0.5)((0, "W"), w, g)
    >>> w.tolist(), g.tolist()
    ([0.5, 0.5], [0.0, 0.0])
    """

    __slots__ = ("eps_placement", "initial_accumulator_value")

    def __init__(
        self,
        learn_rate: Numbers = 0.01,
        *,
        eps: Numbers = 1e-8,
        eps_placement: str = "inside",
        initial_accumulator_value: float = 0.0,
        L2: Numbers = 0.0,
        grad_clip: Numbers = 1.0,
        L2_is_weight_decay: bool = True,
        use_averages: bool = True,
    ) -> None:
        super().__init__(
            learn_rate,
            L2=L2,
            eps=eps,
            grad_clip=grad_clip,
            use_averages=use_averages,
            L2_is_weight_decay=L2_is_weight_decay,
        )
        if not 0 <= initial_accumulator_value < float("inf"):
            raise ValueError(
                "initial_accumulator_value: expected a finite number of at least 0, received "
                f"{initial_accumulator_value!r}"
            )
        self.eps_placement = eps_placement
        self.initial_accumulator_value = initial_accumulator_value

    def _update(
        self, key: Any, weights: Any, gradient: Any, lr: float, decay: float, clip: float | None
    ) -> None:
        eps = self.eps
        if callable(eps):
            (eps,) = self._asked(key, eps)
        accumulator = _kept(self.mom2, "mom2", key, weights, self.initial_accumulator_value)
        adagrad_(
            weights,
            gradient,
            accumulator,
            lr=lr,
            eps=eps,
            eps_placement=self.eps_placement,
            weight_decay=decay,
            max_norm=clip,
            norm_eps=0.0,
        )
        self.mom2[key] = accumulator
