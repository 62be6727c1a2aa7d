"""The targets of thalweg.torch: torch's own loop, its optimizers exchanged."""

import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from typing import Any

import thalweg as tw
from contenders import LR, MOMENTUM
from timing import Contender, interleave

Row = tuple[str, str, float, float, float]  # work, against, ours, theirs, target ratio
Shapes = list[tuple[int, ...]]

LINEAR: Shapes = [(1, 5), (1,)]
OPTIONS: dict[str, tuple[str, dict[str, float]]] = {
    "momentum": ("SGD", {"lr": LR, "momentum": MOMENTUM}),
    "Adagrad": ("Adagrad", {"lr": LR}),
}
IMPORT_SECONDS = 0.02


def resnet34(part: int = 1) -> Shapes:
    """Its 110 arrays, with every width divided by ``part``."""
    first = 64 // part
    shapes: Shapes = [(first, 3, 7, 7), (first,), (first,)]
    width = first
    for stage, blocks in enumerate((3, 4, 6, 3)):
        wide = first << stage
        for block in range(blocks):
            for _ in range(2):
                shapes += [(wide, width, 3, 3), (wide,), (wide,)]
                width = wide
            if stage and not block:
                shapes += [(wide, wide // 2, 1, 1), (wide,), (wide,)]
    return [*shapes, (1000, width), (1000,)]


# Shapes, threads, rounds, and the least ratios for each rule.
WORK: dict[str, tuple[Shapes, int, int, dict[str, float]]] = {
    "Linear(5,1)": (LINEAR, 1, 31, {"momentum": 15, "Adagrad": 18}),
    "150 x 16": ([(16,)] * 150, 1, 31, {"momentum": 4, "Adagrad": 7}),
    "ResNet-34 / 8": (resnet34(8), 1, 31, {"momentum": 2}),
    "MLP 784-256-10": (
        [(256, 784), (256,), (10, 256), (10,)],
        1,
        31,
        {"momentum": 2.5, "Adagrad": 1.7},
    ),
    "ResNet-34": (resnet34(), 1, 7, {"momentum": 1.0}),
    "ResNet-34, 2 threads": (resnet34(), 2, 7, {"momentum": 1.0}),
}


def steps() -> Iterator[Row]:
    """``step()`` with gradients that stay, against the fused step."""
    try:
        import torch

        import thalweg.torch
    except ImportError:
        print("skipped: thalweg.torch (no torch)")
        return

    def set_threads(threads: int) -> None:
        torch.set_num_threads(threads)
        tw.set_num_threads(threads)

    for name, (shapes, threads, rounds, ratios) in WORK.items():
        for rule, ratio in ratios.items():
            kind, options = OPTIONS[rule]
            contenders = {}
            for who, module, further in (
                ("ours", thalweg.torch, {}),
                ("fused", torch.optim, {"fused": True}),
            ):
                params = [torch.nn.Parameter(torch.ones(s)) for s in shapes]
                for param in params:
                    param.grad = torch.randn_like(param)
                opt = getattr(module, kind)(params, **options, **further)
                contenders[who] = Contender(
                    "opt.step()", {"opt": opt}, partial(set_threads, threads)
                )
            times = interleave(name, contenders, rounds)
            yield f"torch, {rule}, {name}", "torch fused", times["ours"], times["fused"], ratio


def iterations() -> Iterator[Row]:
    """The lecture's whole iteration: forward, zero_grad, backward, step."""
    try:
        import torch

        import thalweg.torch
    except ImportError:
        return
    x, y = torch.randn(10, 5), torch.randn(10, 1)
    loss_of = torch.nn.MSELoss()
    ways: dict[str, tuple[Any, dict[str, Any]]] = {
        "ours": (thalweg.torch, {}),
        "torch fused": (torch.optim, {"fused": True}),
        "torch foreach": (torch.optim, {"foreach": True}),
    }
    contenders = {}
    for who, (module, further) in ways.items():
        net = torch.nn.Linear(5, 1)
        opt = module.SGD(net.parameters(), lr=1e-4, momentum=MOMENTUM, **further)
        contenders[who] = Contender(
            "opt.zero_grad(); loss_of(net(x), y).backward(); opt.step()",
            {"opt": opt, "net": net, "loss_of": loss_of, "x": x, "y": y},
            partial(torch.set_num_threads, 1),
        )
    times = interleave("iteration", contenders, 31)
    for against, ratio in (("torch fused", 1.5), ("torch foreach", 1.8)):
        name = "torch, iteration, Linear(5,1)"
        yield name, against, times["ours"], times[against], ratio


def imports() -> Iterator[Row]:
    """``import thalweg.torch`` after torch; the fastest of five processes."""
    code = (
        "import torch, time; start = time.perf_counter(); import thalweg.torch; "
        "print(time.perf_counter() - start)"
    )
    runs = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        for _ in range(5)
    ]
    if all(run.returncode == 0 for run in runs):
        seconds = min(float(run.stdout) for run in runs)
        yield "import thalweg.torch", "20 ms", seconds, IMPORT_SECONDS, 1.0


def against_torch() -> Iterator[Row]:
    yield from steps()
    yield from iterations()
    yield from imports()
