"""The rules as NumPy ufuncs: the law that the kernels keep, bit for bit.

Every operator is one rounding in the array's dtype, left to right as written. A scalar is computed
in float64 and rounded once, and has the array's dtype then, so that nothing is promoted.

``param`` and its state change in place. ``t`` counts the steps this array has taken before.
"""

import numpy as np


def _gradient(grad, dtype, scale, maximize):
    """g as the rule receives it: converted, scaled, turned uphill."""
    g = np.asarray(grad).astype(dtype)
    if scale != 1.0:
        g = dtype.type(scale) * g
    if maximize:
        g = -g
    return g


def _decay(w, g, rate, weight_decay, decoupled):
    """Shrink the weights, through the gradient (coupled) or past it; ``rate`` is lr or clr."""
    scalar = w.dtype.type
    if weight_decay == 0.0:
        return w, g
    if decoupled:
        return scalar(1.0 - rate * weight_decay) * w, g
    return w, g + scalar(weight_decay) * w


@np.errstate(all="ignore")
def sgd(
    param,
    grad,
    velocity,
    t,
    *,
    lr,
    momentum=0.0,
    dampening=0.0,
    nesterov=False,
    form="heavy_ball",
    weight_decay=0.0,
    decoupled=False,
    maximize=False,
    scale=1.0,
):
    """SGD: minibatch gradient descent where ``velocity`` is None, else momentum in three forms."""
    scalar = param.dtype.type
    eta, mu = scalar(lr), scalar(momentum)
    g = _gradient(grad, param.dtype, scale, maximize)
    w, g = _decay(param, g, lr, weight_decay, decoupled)

    if velocity is None:
        param[...] = w - eta * g
        return

    v = velocity
    if form == "heavy_ball":
        damped = t > 0 and dampening != 0.0
        v[...] = mu * v + (scalar(1.0 - dampening) * g if damped else g)
    elif form == "classic":
        v[...] = mu * v - eta * g
    elif form == "ema":
        v[...] = mu * v + scalar(1.0 - momentum) * g
    v[np.abs(v) < np.finfo(v.dtype).tiny] = 0.0

    if form == "classic":
        u = mu * v - eta * g if nesterov else v
        param[...] = w + u
    else:
        u = g + mu * v if nesterov else v
        param[...] = w - eta * u


@np.errstate(all="ignore")
def adagrad(
    param,
    grad,
    accumulator,
    t,
    *,
    lr,
    eps=1e-8,
    eps_placement="inside",
    lr_decay=0.0,
    weight_decay=0.0,
    decoupled=False,
    maximize=False,
    scale=1.0,
):
    """Adagrad: every element divides its rate by the root of its own squared gradients."""
    scalar = param.dtype.type
    clr = lr / (1.0 + t * lr_decay)
    g = _gradient(grad, param.dtype, scale, maximize)
    w, g = _decay(param, g, clr, weight_decay, decoupled)

    s = accumulator
    s[...] = s + g * g
    r = np.sqrt(s + scalar(eps)) if eps_placement == "inside" else np.sqrt(s) + scalar(eps)
    param[...] = w - (scalar(clr) * g) / r
