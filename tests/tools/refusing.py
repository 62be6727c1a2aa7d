"""What a refusal must be: the right exception, words that help, and not one byte changed."""

from collections.abc import Mapping
from contextlib import contextmanager

import numpy as np
import pytest

import thalweg as tw

RULES = [
    pytest.param(lambda params, **o: tw.SGD(params, 0.1, 0.9, **o), id="sgd"),
    pytest.param(lambda params, **o: tw.Adagrad(params, 0.1, **o), id="adagrad"),
]


def frozen(thing):
    """Every byte that a refused call must leave alone: buffers, layouts, state and counters."""
    if isinstance(thing, np.ndarray):
        where = thing.__array_interface__["data"]
        return where, thing.shape, thing.strides, str(thing.dtype), np.asarray(thing).tobytes()
    if isinstance(thing, (tw.SGD, tw.Adagrad)):
        state = [dict(slots) for slots in thing.state.values()]
        options = [group.options() for group in thing.param_groups]
        counters = thing.step_count, thing.skipped_steps, thing.grad_norm, thing.last_lr
        limits = thing.max_norm, thing.max_array_norm, thing.max_value, thing.on_nonfinite
        averages = dict(thing.averages), thing.weight_average, thing.zero_grads
        return frozen((list(thing._arrays.values()), state, averages, options, counters, limits))
    if isinstance(thing, Mapping):
        return {key: frozen(value) for key, value in thing.items()}
    if isinstance(thing, (list, tuple)):
        return [frozen(item) for item in thing]
    return repr(thing)


@contextmanager
def refused(exception, *words, keeps=()):
    """The block raises this exception itself, not a subclass; its message holds all the words."""
    before = frozen(keeps)
    with pytest.raises(exception) as caught:
        yield
    assert caught.type is exception
    message = str(caught.value)
    missing = [word for word in words if word not in message]
    assert not missing, f"{missing} not in {message!r}"
    assert frozen(keeps) == before


def rows(table):
    """Parameters of a test from ``{id: row}``."""
    return [pytest.param(*row, id=name) for name, row in table.items()]


def filled(tree, arrays):
    """The tree with each int replaced by the array of that index."""
    if isinstance(tree, dict):
        return {key: filled(child, arrays) for key, child in tree.items()}
    return [filled(child, arrays) for child in tree] if isinstance(tree, list) else arrays[tree]


def everything(opt):
    """What a step that is left out may not change; it is counted, though."""
    *others, (steps, _, norm, rates), limits = frozen(opt)
    return [*others, steps, norm, rates, limits]
