"""The targets of the whole step: clip, decay and momentum in one call."""

from collections.abc import Iterator
from functools import partial

import numpy as np

import thalweg as tw
from contenders import LR, MOMENTUM, Work, grads_of
from timing import Contender, interleave

Row = tuple[str, str, float, float, float]  # work, against, ours, theirs, target ratio
Shapes = list[tuple[int, ...]]

DECAY, MAX_NORM = 1e-4, 1.0


def resnet() -> Shapes:
    """116 arrays, 1.7 million floats: convolutions with their norms' scales and shifts."""
    shapes: Shapes = [(28, 3, 3, 3), (28,), (28,)]
    width = 28
    for stage in (28, 56, 112):
        for _ in range(12):
            shapes += [(stage, width, 3, 3), (stage,), (stage,)]
            width = stage
    return [*shapes, (112, 56, 1, 1), (112,), (112,), (10, 112), (10,)]


WORK: dict[str, tuple[Shapes, float]] = {
    "MLP 784-256-10": ([(784, 256), (256,), (256, 10), (10,)], 2.5),
    "ResNet, 116 arrays": (resnet(), 2.0),
}


def against_torch() -> Iterator[Row]:
    """Clip, decay and Nesterov momentum against clip_grad_norm_ and the fused step."""
    try:
        import torch
    except ImportError:
        print("skipped: clip and step against torch (no torch)")
        return
    for name, (shapes, ratio) in WORK.items():
        grads = [np.random.default_rng(0).standard_normal(s, np.float32) for s in shapes]
        params = [np.ones(s, np.float32) for s in shapes]
        decay = {"nesterov": True, "weight_decay": DECAY}
        opt = tw.SGD(params, LR, MOMENTUM, max_norm=MAX_NORM, **decay)  # type: ignore[arg-type]
        theirs = [torch.nn.Parameter(torch.ones(s)) for s in shapes]
        for param, grad in zip(theirs, grads, strict=True):
            param.grad = torch.from_numpy(grad.copy())
        fused = torch.optim.SGD(theirs, lr=LR, momentum=MOMENTUM, fused=True, **decay)
        clip = partial(torch.nn.utils.clip_grad_norm_, theirs, MAX_NORM)
        contenders = {
            "ours": Contender(
                "opt.step(grads)", {"opt": opt, "grads": grads}, partial(tw.set_num_threads, 1)
            ),
            "torch": Contender(
                "clip(); opt.step()",
                {"clip": clip, "opt": fused},
                partial(torch.set_num_threads, 1),
            ),
        }
        times = interleave(name, contenders, 31)
        yield f"clip + decay + Nesterov, {name}", "torch", times["ours"], times["torch"], ratio


def against_one_read() -> Iterator[Row]:
    """What clipping must cost at least: the plain step and one more read of the gradients."""
    work = Work("momentum", (64 << 20,), threads=2)
    grads = grads_of(work.sizes, work.dtype)
    two = partial(tw.set_num_threads, 2)
    contenders = {
        name: Contender(
            "opt.step()",
            {"opt": tw.SGD(work.params(), LR, MOMENTUM, grads=grads, max_norm=max_norm)},
            two,
        )
        for name, max_norm in (("clipped", MAX_NORM), ("plain", None))
    }
    contenders["read"] = Contender("grad.max()", {"grad": grads[0]})
    times = interleave("clip, 64 million", contenders, 7)
    least = times["plain"] + times["read"]
    yield (
        "clip + step, 64 million, 2 threads",
        "plain step + one read",
        times["clipped"],
        least,
        0.9,
    )
