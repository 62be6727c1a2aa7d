"""The rules and their options. A class names its state, its kernels and how options combine."""

from collections.abc import Mapping
from numbers import Real
from typing import Any

import numpy as np

from thalweg._optimizer.base import Optimizer
from thalweg._optimizer.spelling import spelled
from thalweg._types import Schedule
from thalweg.presets import ADAGRAD_PRESETS, SGD_PRESETS

__all__ = ["SGD", "Adagrad"]


def _is_off(value: Any) -> bool:
    """A number that is zero; anything that is no number is left to the core to refuse."""
    return isinstance(value, (float, int, Real)) and value == 0  # asking an ABC takes longer


def _check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if not (isinstance(value, str) and value in choices):
        raise ValueError(f"{name}: expected one of {', '.join(choices)}, received {value!r}")


class SGD(Optimizer):
    """SGD, plain or with momentum, in the form of your choice.

    ::

        g <- scale * g                   scale
        g <- clip(g, -max, max)          max_value
        g <- c * g                       max_norm, c = max_norm / (norm + norm_eps) if below 1
        g <- -g                          maximize
        g <- g + wd * w                  weight_decay
        w <- (1 - lr*wd) * w             weight_decay with decoupled=True

        momentum = 0:  w <- w - lr * g
        heavy_ball     v <- mu*v + d*g ;       u <- v or (nesterov) g + mu*v    ;  w <- w - lr*u
        classic        v <- mu*v - lr*g ;      u <- v or (nesterov) mu*v - lr*g ;  w <- w + u
        ema            v <- mu*v + (1-mu)*g ;                                      w <- w - lr*v

        a <- beta*a + (1-beta)*w         weight_average

    with d = 1 in an array's first step and 1 - dampening after it, and v <- 0 where abs(v) is
    below the smallest normal number. Every operator is one rounding in the array's dtype.

    Parameters
    ----------
    params : array of float32 or float64, or a list, tuple or mapping of arrays, nested or not
        Changed in place by ``step``. The arrays are held, not their containers. A list of mappings
        with a "params" key and options makes groups.
    lr : float >= 0 or callable, step -> float
        Learning rate.
    momentum : float in [0, 1] or callable
        The weight mu of the past gradients.
    dampening : float in [0, 1]
        heavy_ball only, and without nesterov.
    nesterov : bool
        Not with ema. With momentum = 0 it is plain gradient descent.
    form : "heavy_ball" (D2L, torch), "classic" (Keras, scikit-learn) or "ema" (OpenAI-ES)
    weight_decay : float >= 0 or callable
        Coupled, or decoupled from the gradient with ``decoupled=True``.
    maximize : bool
        Ascend.
    max_norm : float > 0 or None
        Gradients are scaled down to this global norm; see ``grad_norm``. ``math.inf`` measures it
        and never clips.
    max_array_norm : float > 0 or None
        Each array's gradient is scaled down to this norm by itself (Keras' clipnorm, thinc); of a
        RowGrad, the summed rows. Not together with max_norm.
    norm_eps : float >= 0
        Added to the norm that max_norm is divided by: torch's 1e-6. Keras, optax and Chainer add
        nothing.
    max_value : float > 0 or None
        Every element of a gradient is clipped to [-max_value, max_value] first.
    on_nonfinite : "propagate", "skip" or "raise"
        What a gradient with a NaN or an infinity, or a norm that overflows, does to its step: take
        it along as NumPy does, leave the step out without a trace (``step`` returns False), or
        FloatingPointError.
    grads : gradients in the structure of params
        Buffers that ``step()`` without arguments reads.
    state : arrays in the structure of params
        The caller's own velocities, used as they are: of a run before, a shared memory block, a
        memmap. None in place of one: ours, zeros. With momentum=0 a given velocity takes part,
        as in ``sgd_``.
    watch : bool
        Every step looks whether one more of the arrays is still where it was in the dict or list it
        came in, and raises RuntimeError where another one has taken its place
        (``params["W"] = np.clip(params["W"], -1, 1)``); likewise for bound gradients. False for
        code that replaces them on purpose.
    zero_grads : bool
        A step zeroes the gradients it has used, where they lie and while they are in the cache; of
        a RowGrad, its values. They must be writeable and share no memory with one another. A
        skipped step zeroes its gradients too; one that raises leaves them.
    weight_average : float in [0, 1) or None
        After each step ``a <- beta*a + (1-beta)*w`` with this beta, in the array's dtype, and in
        the first one ``a <- w``: ``opt.averages``. An array that takes no part in a step has its
        average wait. Not with a RowGrad. May be assigned between steps, beginning and ending
        averages, too.

    Raises
    ------
    TypeError, ValueError
        Arrays or options do not fit.

    References
    ----------
    D2L 11.6; Sutskever et al., On the importance of initialization and momentum, 2013; Goh, Why
    Momentum Really Works, distill.pub/2017/momentum.

    Example
    -------
    >>> import numpy as np, thalweg as tw
    >>> w = {"a": np.ones(2), "b": np.zeros(1)}
    >>> opt = tw.SGD(w, lr=0.5, momentum=0.9)
    >>> opt.step({"a": np.ones(2), "b": np.ones(1)})
    True
    >>> w
    {'a': array([0.5, 0.5]), 'b': array([-0.5])}
    >>> opt.state["a"]["velocity"]
    array([1., 1.])
    """

    _slot = "velocity"
    _fixed = ("form", "nesterov")
    _presets = SGD_PRESETS

    @spelled
    def __init__(
        self,
        params: Any,
        lr: float | Schedule = 1e-3,
        momentum: float | Schedule = 0.0,
        *,
        dampening: float = 0.0,
        nesterov: bool = False,
        form: str = "heavy_ball",
        weight_decay: float | Schedule = 0.0,
        decoupled: bool = False,
        maximize: bool = False,
        max_norm: float | None = None,
        max_array_norm: float | None = None,
        norm_eps: float = 1e-6,
        max_value: float | None = None,
        on_nonfinite: str = "propagate",
        grads: Any = None,
        state: Any = None,
        watch: bool = True,
        zero_grads: bool = False,
        weight_average: float | None = None,
    ) -> None:
        options = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "nesterov": nesterov,
            "form": form,
            "weight_decay": weight_decay,
            "decoupled": decoupled,
            "maximize": maximize,
        }
        super().__init__(
            params,
            options,
            grads,
            state,
            watch,
            zero_grads,
            max_norm=max_norm,
            max_array_norm=max_array_norm,
            norm_eps=norm_eps,
            max_value=max_value,
            weight_average=weight_average,
            on_nonfinite=on_nonfinite,
        )

    @staticmethod
    def _kernel(options: Mapping[str, Any], kernel: str = "") -> str:
        form, nesterov = options["form"], options["nesterov"]
        _check_choice("form", form, ("heavy_ball", "classic", "ema"))
        if not isinstance(nesterov, (bool, np.bool_)):
            raise TypeError(f"nesterov: expected True or False, received {nesterov!r}")
        has_velocity = not _is_off(options["momentum"]) or kernel not in ("", "sgd")
        damped = not _is_off(options["dampening"])
        if damped and (form != "heavy_ball" or not has_velocity):
            raise ValueError(
                f"dampening: expected 0 unless form is heavy_ball and momentum > 0, "
                f"received {options['dampening']!r} with form={form!r}"
            )
        if nesterov and (damped or form == "ema"):
            raise ValueError(
                "nesterov: expected no dampening and a form other than ema, received "
                f"dampening={options['dampening']!r}, form={form!r}; drop nesterov or the other"
            )
        if not has_velocity:
            return "sgd"
        return f"{form}_nesterov" if nesterov else form


class Adagrad(Optimizer):
    """Adagrad: a learning rate of its own for every parameter.

    ::

        g <- scale * g                   scale
        g <- clip(g, -max, max)          max_value
        g <- c * g                       max_norm, c = max_norm / (norm + norm_eps) if below 1
        g <- -g                          maximize
        g <- g + wd * w                  weight_decay
        w <- (1 - clr*wd) * w            weight_decay with decoupled=True

        s <- s + g*g
        r <- sqrt(s + eps)               eps_placement="inside"
             sqrt(s) + eps               eps_placement="outside"
        w <- w - (clr*g) / r             clr = lr / (1 + t*lr_decay)
        a <- beta*a + (1-beta)*w         weight_average

    and with accumulator="row" one s for each row of w (its first axis):

        s <- s + mean(g*g)               over the row: float64(g)**2 in 8 lanes, element i to lane
                                         i mod 8, lanes ((0+1)+(2+3))+((4+5)+(6+7)), divided by
                                         the row's size and rounded once

    with t the steps the array has taken before. Every operator is one rounding in the array's
    dtype.

    Parameters
    ----------
    params : array of float32 or float64, or a list, tuple or mapping of arrays, nested or not
        Changed in place by ``step``. The arrays are held, not their containers. A list of mappings
        with a "params" key and options makes groups.
    lr : float >= 0 or callable, step -> float
        Learning rate.
    eps : float > 0
        Keeps the root away from zero.
    eps_placement : "inside" (D2L, Keras, optax) or "outside" (torch, DeepSpeed, FBGEMM)
    accumulator : "element" or "row" (FBGEMM's rowwise_adagrad)
        One for each element, or one for each row: the state of a table of rows x D is D times
        smaller, of shape (rows,).
    lr_decay : float >= 0
    initial_accumulator_value : float >= 0
        What s starts from.
    weight_decay : float >= 0 or callable
        Coupled, or decoupled from the gradient with ``decoupled=True``.
    maximize : bool
        Ascend.
    max_norm : float > 0 or None
        Gradients are scaled down to this global norm; see ``grad_norm``. ``math.inf`` measures it
        and never clips.
    max_array_norm : float > 0 or None
        Each array's gradient is scaled down to this norm by itself (Keras' clipnorm, thinc); of a
        RowGrad, the summed rows. Not together with max_norm.
    norm_eps : float >= 0
        Added to the norm that max_norm is divided by: torch's 1e-6. Keras, optax and Chainer add
        nothing.
    max_value : float > 0 or None
        Every element of a gradient is clipped to [-max_value, max_value] first.
    on_nonfinite : "propagate", "skip" or "raise"
        What a gradient with a NaN or an infinity, or a norm that overflows, does to its step: take
        it along as NumPy does, leave the step out without a trace (``step`` returns False), or
        FloatingPointError. An element whose square is not finite in the array's dtype, after scale
        and both clips, counts as infinite; with accumulator="row", a row whose mean square is not.
        Its accumulator would be infinite for ever, and the weight never move again.
    grads : gradients in the structure of params
        Buffers that ``step()`` without arguments reads.
    state : arrays in the structure of params
        The caller's own accumulators, used as they are: of a run before, a shared memory block, a
        memmap. None in place of one: ours. initial_accumulator_value is then unused; with
        accumulator="row" they have the shape (rows,).
    watch : bool
        Every step looks whether one more of the arrays is still where it was in the dict or list it
        came in, and raises RuntimeError where another one has taken its place
        (``params["W"] = np.clip(params["W"], -1, 1)``); likewise for bound gradients. False for
        code that replaces them on purpose.
    zero_grads : bool
        A step zeroes the gradients it has used, where they lie and while they are in the cache; of
        a RowGrad, its values. They must be writeable and share no memory with one another. A
        skipped step zeroes its gradients too; one that raises leaves them.
    weight_average : float in [0, 1) or None
        After each step ``a <- beta*a + (1-beta)*w`` with this beta, in the array's dtype, and in
        the first one ``a <- w``: ``opt.averages``. An array that takes no part in a step has its
        average wait. Not with a RowGrad. May be assigned between steps, beginning and ending
        averages, too.

    Raises
    ------
    TypeError, ValueError
        Arrays or options do not fit.

    References
    ----------
    Duchi, Hazan and Singer, Adaptive Subgradient Methods, 2011; D2L 11.7.

    Example
    -------
    >>> import numpy as np, thalweg as tw
    >>> w = np.ones(2)
    >>> opt = tw.Adagrad(w, lr=0.5)
    >>> opt.step(np.array([4.0, 0.0]))
    True
    >>> w.round(6), opt.state[""]["accumulator"]
    (array([0.5, 1. ]), array([16.,  0.]))
    """

    _slot = "accumulator"
    _fixed = ("eps_placement", "accumulator")
    _presets = ADAGRAD_PRESETS

    @spelled
    def __init__(
        self,
        params: Any,
        lr: float | Schedule = 1e-2,
        *,
        eps: float = 1e-8,
        eps_placement: str = "inside",
        lr_decay: float = 0.0,
        initial_accumulator_value: float = 0.0,
        accumulator: str = "element",
        weight_decay: float | Schedule = 0.0,
        decoupled: bool = False,
        maximize: bool = False,
        max_norm: float | None = None,
        max_array_norm: float | None = None,
        norm_eps: float = 1e-6,
        max_value: float | None = None,
        on_nonfinite: str = "propagate",
        grads: Any = None,
        state: Any = None,
        watch: bool = True,
        zero_grads: bool = False,
        weight_average: float | None = None,
    ) -> None:
        options = {
            "lr": lr,
            "eps": eps,
            "eps_placement": eps_placement,
            "lr_decay": lr_decay,
            "initial_accumulator_value": initial_accumulator_value,
            "accumulator": accumulator,
            "weight_decay": weight_decay,
            "decoupled": decoupled,
            "maximize": maximize,
        }
        super().__init__(
            params,
            options,
            grads,
            state,
            watch,
            zero_grads,
            max_norm=max_norm,
            max_array_norm=max_array_norm,
            norm_eps=norm_eps,
            max_value=max_value,
            weight_average=weight_average,
            on_nonfinite=on_nonfinite,
        )

    @staticmethod
    def _kernel(options: Mapping[str, Any], kernel: str = "") -> str:
        _check_choice("eps_placement", options["eps_placement"], ("inside", "outside"))
        _check_choice("accumulator", options["accumulator"], ("element", "row"))
        row = "row_" if options["accumulator"] == "row" else ""
        return f"adagrad_{row}{options['eps_placement']}"
