"""Two optimizers stepped as one, and clipping by array: the targets.

``python bench/joint.py [--only WORD]``; the peer that needs torch is left out where there is none.
"""

import argparse
import os
from collections.abc import Iterator
from functools import partial
from itertools import cycle
from typing import Any

# One thread of BLAS: the read that the two by themselves are given is NumPy's dot.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np

import thalweg as tw
from sparse import EPS, WIDTH, batches
from timing import Contender, interleave

Row = tuple[str, str, float, float, float]  # work, against, ours, theirs, target ratio
Array = np.ndarray[Any, Any]

ROWS, COUNT, MAX_NORM, ROUNDS = 10**6, 8_192, 1.0, 15
HEAD = [(784, 256), (256,), (256, 10), (10,)]  # 203,530 floats


def head_of(seed: int = 0) -> list[Array]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape, np.float32) for shape in HEAD]


def one_thread() -> None:
    tw.set_num_threads(1)


def pair(**limits: Any) -> tuple[tw.Joint, list[Any], list[Any]]:
    """A Joint, and the gradients of the table and of the head for one step after the other."""
    table = np.ones((ROWS, WIDTH), np.float32)
    params = [np.ones(shape, np.float32) for shape in HEAD]
    emb, head = tw.Adagrad(table, 0.01, eps=EPS), tw.SGD(params, 0.01, 0.9)
    rows = [tw.RowGrad(*batch) for batch in batches("zipf", COUNT, ROWS)]
    return tw.Joint(emb=emb, head=head, **limits), rows, head_of()


def contender(step: Any, data: list[Any]) -> Contender:
    return Contender(
        "step(next(data))", {"step": step, "data": cycle(data), "next": next}, one_thread
    )


def together() -> Contender:
    joint, rows, head = pair(max_norm=MAX_NORM)
    return contender(joint.step, [{"emb": each, "head": head} for each in rows])


def apart() -> Contender:
    joint, rows, head = pair()
    emb, dense = joint["emb"].step, joint["head"].step

    def step(grad: Any) -> None:
        flat = grad.values.reshape(-1)
        np.dot(flat, flat)
        for each in head:
            flat = each.reshape(-1)
            np.dot(flat, flat)
        emb(grad)
        dense(head)

    return contender(step, rows)


def torch_pair() -> Contender:
    import torch

    table = torch.nn.Parameter(torch.ones(ROWS, WIDTH))
    params = [torch.nn.Parameter(torch.ones(shape)) for shape in HEAD]
    emb = torch.optim.Adagrad([table], lr=0.01, eps=EPS)
    dense = torch.optim.SGD(params, lr=0.01, momentum=0.9, fused=True)
    head = [torch.from_numpy(each) for each in head_of()]
    grads = [
        torch.sparse_coo_tensor(
            torch.from_numpy(ids)[None], torch.from_numpy(values), (ROWS, WIDTH)
        )
        for ids, values in batches("zipf", COUNT, ROWS)
    ]
    for param, grad in zip(params, head, strict=True):
        param.grad = grad

    def step(grad: Any) -> None:
        # clip_grad_norm_ takes no sparse gradient; these are its lines, on the distinct rows' sums.
        table.grad = grad.coalesce()
        dense_and_rows = [table.grad.values(), *head]
        norm = torch.nn.utils.get_total_norm(dense_and_rows)
        clip = torch.clamp(MAX_NORM / (norm + 1e-6), max=1.0)
        torch._foreach_mul_(dense_and_rows, clip)
        emb.step()
        dense.step()

    made = contender(step, grads)
    made.before = partial(torch.set_num_threads, 1)
    return made


def joined() -> Iterator[Row]:
    contenders = {"Joint": together(), "by themselves": apart()}
    work = "8,192 zipf ids of 10^6 x 64, and a head"
    try:
        contenders["torch"] = torch_pair()
    except ImportError:
        print("skipped: torch (no torch)")
    times = interleave(work, contenders, ROUNDS)
    yield work, "the two, unclipped, and a read", times["Joint"], times["by themselves"], 0.85
    if "torch" in times:
        yield work, "torch", times["Joint"], times["torch"], 4.0


def small() -> Iterator[Row]:
    def made() -> tuple[Any, ...]:
        # Six floats in two arrays each: the lecture's own model.
        params = [{"w": np.ones(5, np.float32), "b": np.ones(1, np.float32)} for _ in range(2)]
        return tw.SGD(params[0], 0.01, 0.9), tw.Adagrad(params[1], 0.01), params[0]

    one, two, grads = made()
    grads = {name: array.copy() for name, array in grads.items()}
    joint = tw.Joint(one=one, two=two)
    names = {"step": joint.step, "grads": {"one": grads, "two": grads}}
    one, two, _ = made()
    apart = {"one": one.step, "two": two.step, "grads": grads}
    contenders = {
        "ours": Contender("step(grads)", names, one_thread),
        "theirs": Contender("one(grads); two(grads)", apart, one_thread),
    }
    times = interleave("2 x 6 floats", contenders, ROUNDS)
    yield "2 x 6 floats, unclipped", "two steps", times["ours"], times["theirs"], 0.8


def clipped_by_array() -> Iterator[Row]:
    """Clip by array in NumPy as people write it, with temporaries, and our step behind it."""
    grads = head_of()
    params = [np.ones(shape, np.float32) for shape in HEAD]
    opt = tw.SGD(params, 0.01, 0.9, max_array_norm=MAX_NORM)
    plain = tw.SGD([w.copy() for w in params], 0.01, 0.9)

    def step() -> None:
        plain.step([g * min(1.0, MAX_NORM / (np.sqrt(np.sum(g * g)) + 1e-6)) for g in grads])

    contenders = {
        "ours": Contender("step(grads)", {"step": opt.step, "grads": grads}, one_thread),
        "NumPy": Contender("step()", {"step": step}, one_thread),
    }
    times = interleave("MLP 784-256-10", contenders, ROUNDS)
    work = "MLP 784-256-10, max_array_norm"
    yield work, "clip in NumPy, and step", times["ours"], times["NumPy"], 2.0


TARGETS = {"pair": joined, "small": small, "array": clipped_by_array}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=TARGETS)
    args = parser.parse_args()
    print(
        f"{'work':<42} {'against':<32} {'ours us':>9} {'theirs us':>9} {'ratio':>6} {'at least':>8}"
    )
    for name, target in TARGETS.items():
        if args.only not in (None, name):
            continue
        for work, against, ours, theirs, ratio in target():
            met = "" if theirs / ours >= ratio else "  MISSED"
            print(
                f"{work:<42} {against:<32} {ours * 1e6:>9.2f} {theirs * 1e6:>9.2f} "
                f"{theirs / ours:>6.2f} {ratio:>8.2f}{met}",
                flush=True,
            )


if __name__ == "__main__":
    main()
