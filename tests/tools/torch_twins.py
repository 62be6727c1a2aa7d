"""What the tests of thalweg.torch share: the same params for two optimizers, and torch's own table
of option sets."""

import functools
import itertools
import sys
import types
import unittest

import numpy as np
import torch

import thalweg.torch

RULES = ["SGD", "Adagrad"]
WAYS = {"single": {"foreach": False}, "foreach": {"foreach": True}, "fused": {"fused": True}}


def ours(rule):
    return getattr(thalweg.torch, rule)


def theirs(rule):
    return getattr(torch.optim, rule)


def twins(*tensors):
    """Two lists of params of equal values and layouts, each in memory of its own."""
    return [[torch.nn.Parameter(t.detach().clone()) for t in tensors] for _ in range(2)]


def give(params, others, seed=0, missing=()):
    """The same new gradients to both; none to those missing."""
    generator = torch.Generator().manual_seed(seed)
    for i, (p, q) in enumerate(zip(params, others, strict=True)):
        if i in missing:
            p.grad = q.grad = None
            continue
        g = torch.randn(p.shape, generator=generator).to(p.dtype)
        p.grad, q.grad = g.clone(), g.clone()


def assert_close(params, others):
    """A few roundings apart."""
    for p, q in zip(params, others, strict=True):
        torch.testing.assert_close(p.detach(), q.detach())


def assert_same_state(opt, other):
    """The same slots of the same dtypes, values a few roundings apart."""
    mine, its = opt.state_dict()["state"], other.state_dict()["state"]
    assert mine.keys() == its.keys()
    for key, slots in mine.items():
        assert slots.keys() == its[key].keys()
        for name, value in slots.items():
            torch.testing.assert_close(value, its[key][name])


def run_both(rule, tensors, options=None, steps=4, theirs_only=None):
    """Ours and torch's on the same gradients; compared after each step."""
    params, others = twins(*tensors)
    opt = ours(rule)(params, **(options or {}))
    other = theirs(rule)(others, **((options or {}) | (theirs_only or {})))
    for i in range(steps):
        give(params, others, i)
        opt.step()
        other.step()
        assert_close(params, others)
    assert_same_state(opt, other)
    return opt, other, params, others


def numpy_of(tensor):
    return tensor.detach().numpy()


@functools.cache
def torch_table():
    """torch's own table of what its optimizers take; its test tools want a package that no
    optimizer's table needs."""
    if "expecttest" not in sys.modules:
        try:
            import expecttest  # noqa: F401
        except ImportError:
            stub = types.ModuleType("expecttest")
            stub.TestCase = unittest.TestCase
            sys.modules["expecttest"] = stub
    from torch.testing._internal import common_optimizers

    found = {info.optim_cls.__name__: info for info in common_optimizers.optim_db}
    return {rule: found[rule] for rule in RULES}


def option_sets(rule):
    """The keyword arguments in torch's table."""
    return [dict(given.kwargs) for given in torch_table()[rule].optim_inputs_func(device="cpu")]


def layouts(rng):
    """Params of every kind of layout, with gradients in that of the param and in others."""
    for dtype in (torch.float32, torch.float64):

        def random(*shape, dtype=dtype):
            return torch.from_numpy(rng.standard_normal(shape)).to(dtype)

        yield random(7), random(7)
        yield random(), random()
        yield random(0, 3), random(0, 3)
        yield random(4, 5), random(5, 4).t()
        yield random(5, 4).t(), random(5, 4).t()
        yield random(4, 5, 2)[..., 0], random(4, 5)
        yield random(4, 6), random(1, 6).expand(4, 6)
        image = random(2, 3, 4, 5).to(memory_format=torch.channels_last)
        yield image, image.flip(0).to(memory_format=torch.channels_last)
        yield image, random(2, 3, 4, 5)
        yield random(40, 50), random(2000).reshape(40, 50)


def strided_parameter(tensor):
    """A Parameter in the tensor's own layout and in memory of its own."""
    kept = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)
    kept.copy_(tensor)
    return torch.nn.Parameter(kept)


def all_pairs(first, second):
    return list(itertools.product(first, second))


def as_dict(arrays):
    return {str(i): np.asarray(a) for i, a in enumerate(arrays)}
