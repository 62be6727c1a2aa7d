"""The kernels without an object: one update of arrays that the caller owns."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from thalweg import _core
from thalweg._optimizer.base import Optimizer
from thalweg._optimizer.spelling import spelled
from thalweg.optimizers import SGD, Adagrad

Arrays = np.ndarray | Sequence[np.ndarray]
F = TypeVar("F", bound=Callable[..., Any])


def native(function: F) -> F:
    """The native call of this name; it comes back to ``function`` with what is not usual."""
    code, defaults = function.__code__, function.__defaults__ or ()
    names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    values = dict(zip(names[code.co_argcount - len(defaults) :], defaults, strict=False))
    values |= function.__kwdefaults__ or {}
    words = [f"{name}={values[name]!r}" if name in values else name for name in names]
    words.insert(code.co_argcount, "*")
    made: F = _core.native(spelled(function), f"({', '.join(words)})")
    return made


@native
def sgd_(
    param: Arrays,
    grad: Any,
    velocity: Arrays | None = None,
    *,
    lr: float,
    momentum: float = 0.0,
    dampening: float = 0.0,
    nesterov: bool = False,
    form: str = "heavy_ball",
    weight_decay: float = 0.0,
    decoupled: bool = False,
    maximize: bool = False,
    scale: float = 1.0,
    max_norm: float | None = None,
    norm_eps: float = 1e-6,
    max_value: float | None = None,
    on_nonfinite: str = "propagate",
    norm: np.ndarray | None = None,
) -> bool:
    """Take one step of SGD in place, the velocity being the caller's.

    The equations are those of :class:`thalweg.SGD`. No step is counted, so dampening applies from
    the first one.

    Parameters
    ----------
    param : array of float32 or float64, any strides, or a list of them
        Changed in place.
    grad : array of float16, float32 or float64 of the same shape, or an equally long list
        Read. None in a list skips that param.
    velocity : array of param's shape and dtype, or an equally long list
        Changed in place if given; needed when momentum > 0. Starts at zeros.
    scale : float > 0
        Factor of every gradient.
    max_norm, max_value : float > 0 or None
        Gradients are scaled down to this global norm; every element is clipped to
        [-max_value, max_value] first.
    norm_eps : float >= 0
        Added to the norm that max_norm is divided by.
    on_nonfinite : "propagate", "skip" or "raise"
        As in :class:`thalweg.SGD`.
    norm : array of float64 with one element
        The global norm before clipping is left in it; without max_norm nothing is clipped.

    Returns
    -------
    bool
        False for a step that was skipped, else True.

    Raises
    ------
    TypeError, ValueError
        Arrays or options do not fit; nothing has changed then.
    FloatingPointError
        With on_nonfinite="raise"; nothing has changed then.

    Example
    -------
    >>> import numpy as np, thalweg as tw
    >>> w, v = np.ones(3), np.zeros(3)
    >>> tw.sgd_(w, np.ones(3), v, lr=0.5, momentum=0.9)
    True
    >>> w, v
    (array([0.5, 0.5, 0.5]), array([1., 1., 1.]))
    """
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
    limits = {
        "scale": scale,
        "max_norm": max_norm,
        "norm_eps": norm_eps,
        "max_value": max_value,
        "on_nonfinite": on_nonfinite,
    }
    return _apply(SGD, param, grad, velocity, options, limits, norm)


@native
def adagrad_(
    param: Arrays,
    grad: Any,
    accumulator: Arrays,
    *,
    lr: float,
    eps: float = 1e-8,
    eps_placement: str = "inside",
    weight_decay: float = 0.0,
    decoupled: bool = False,
    maximize: bool = False,
    scale: float = 1.0,
    max_norm: float | None = None,
    norm_eps: float = 1e-6,
    max_value: float | None = None,
    on_nonfinite: str = "propagate",
    norm: np.ndarray | None = None,
) -> bool:
    """Take one step of Adagrad in place, the accumulator being the caller's.

    Replaces ``mem += g*g; w += -lr*g/np.sqrt(mem + 1e-8)`` and gives the same bits. The equations
    are those of :class:`thalweg.Adagrad` with lr_decay = 0.

    Parameters
    ----------
    param : array of float32 or float64, any strides, or a list of them
        Changed in place.
    grad : array of float16, float32 or float64 of the same shape, or an equally long list
        Read. None in a list skips that param.
    accumulator : array of param's shape and dtype, or an equally long list
        Changed in place. Starts at zeros.
    scale : float > 0
        Factor of every gradient.
    max_norm, max_value : float > 0 or None
        Gradients are scaled down to this global norm; every element is clipped to
        [-max_value, max_value] first.
    norm_eps : float >= 0
        Added to the norm that max_norm is divided by.
    on_nonfinite : "propagate", "skip" or "raise"
        As in :class:`thalweg.SGD`.
    norm : array of float64 with one element
        The global norm before clipping is left in it; without max_norm nothing is clipped.

    Returns
    -------
    bool
        False for a step that was skipped, else True.

    Raises
    ------
    TypeError, ValueError
        Arrays or options do not fit; nothing has changed then.
    FloatingPointError
        With on_nonfinite="raise"; nothing has changed then.

    Example
    -------
    >>> import numpy as np, thalweg as tw
    >>> w, mem = np.ones(3), np.zeros(3)
    >>> tw.adagrad_(w, np.full(3, 2.0), mem, lr=0.5)
    True
    >>> w.round(6), mem
    (array([0.5, 0.5, 0.5]), array([4., 4., 4.]))
    """
    options = {
        "lr": lr,
        "eps": eps,
        "eps_placement": eps_placement,
        "accumulator": "element",
        "weight_decay": weight_decay,
        "decoupled": decoupled,
        "maximize": maximize,
    }
    limits = {
        "scale": scale,
        "max_norm": max_norm,
        "norm_eps": norm_eps,
        "max_value": max_value,
        "on_nonfinite": on_nonfinite,
    }
    return _apply(Adagrad, param, grad, accumulator, options, limits, norm)


def _apply(
    rule: type[Optimizer],
    param: Any,
    grad: Any,
    state: Any,
    options: dict[str, Any],
    limits: dict[str, Any],
    norm: Any,
) -> bool:
    kernel = rule._kernel(options)
    if state is None and kernel != "sgd":
        raise TypeError(
            f"{rule._slot}: expected an array, or a list as param is, received None; "
            "start it at np.zeros_like(param)"
        )
    if state is not None and kernel == "sgd":
        kernel = rule._kernel(options, rule._slot)  # a velocity that is given takes part
    for name in rule._fixed:
        del options[name]
    many = isinstance(param, (list, tuple))
    if many:
        _check_list("grad", grad)
        if state is not None:
            _check_list(rule._slot, state)
    elif isinstance(param, np.ndarray) or not isinstance(param, Mapping):  # an ABC takes longer
        param, grad, state = (param,), (grad,), (state,)
    else:
        raise TypeError(
            f"param: expected an array or a list of arrays, received {type(param).__name__}; "
            f"pass lists in one order: [p[k] for k in p], or use thalweg.{rule.__name__}"
        )
    return _core.apply(kernel, param, grad, state, rule._slot, options | limits, many, norm)


def _check_list(name: str, value: Any) -> None:
    if not isinstance(value, (list, tuple)):
        raise TypeError(
            f"{name}: expected a list or tuple, as param is, received {type(value).__name__}"
        )
