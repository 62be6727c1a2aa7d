"""Parity with torch's SGD and Adagrad: 100 steps, each restarted from torch's params and state.

Bits differ, because torch fuses and associates in other ways; the bounds allow 4 roundings of each
term. ``python tests/test_torch_parity.py --record`` writes torch_parity.npz, which keeps the test
alive without torch.
"""

import json
import sys
from itertools import product
from pathlib import Path

import numpy as np
import pytest

import thalweg as tw

RECORD = Path(__file__).with_name("torch_parity.npz")
STEPS = 100
# The first steps have rules of their own (buf = g, no dampening); lr_decay shows in the last ones.
RECORDED_STEPS = [0, 1, 2, 50, 99]
RECORDED_SIZE, LIVE_SIZE = 5, 33
DTYPES = ["float32", "float64"]
STATE = {"SGD": ("momentum_buffer", "velocity"), "Adagrad": ("sum", "accumulator")}


def combinations(**choices):
    """All of them, and the defaults."""
    return [{}, *(dict(zip(choices, values, strict=True)) for values in product(*choices.values()))]


MOMENTUM = [
    {},
    {"momentum": 0.9},
    {"momentum": 0.9, "dampening": 0.5},
    {"momentum": 0.9, "nesterov": True},
]
CASES = {
    "SGD": [
        case | momentum
        for momentum in MOMENTUM
        for case in combinations(lr=[0.01, 0.5], weight_decay=[0.0, 0.1], maximize=[False, True])
    ],
    "Adagrad": combinations(
        lr=[0.01, 0.5],
        lr_decay=[0.0, 0.5],
        weight_decay=[0.0, 0.1],
        initial_accumulator_value=[0.0, 0.1],
        eps=[1e-10, 1e-3],
        maximize=[False, True],
    ),
}


def start(dtype, size):
    """Params and the gradients of all steps, over six orders of magnitude; one is always zero."""
    rng = np.random.default_rng(11)
    magnitude = 10.0 ** np.linspace(-3, 3, size)
    grads = rng.normal(size=(STEPS, size)) * magnitude
    grads[:, size // 2] = 0
    return rng.normal(size=size).astype(dtype), grads.astype(dtype)


def torch_trajectory(rule, options, param, grads, **implementation):
    """(step, 2, element): param and state before each step and after the last one."""
    import torch

    torch.set_num_threads(1)  # two that wait for each other take seconds on a busy machine
    w = torch.nn.Parameter(torch.tensor(param))
    opt = getattr(torch.optim, rule)([w], **options, **implementation)

    def snapshot():
        state = opt.state[w].get(STATE[rule][0])
        state = torch.zeros_like(w) if state is None else state
        return np.stack([w.detach().numpy(), state.detach().numpy()])

    trajectory = [snapshot()]
    for grad in grads:
        w.grad = torch.tensor(grad)
        opt.step()
        trajectory.append(snapshot())
    return np.stack(trajectory)


def bounds(rule, group, t, g, before, after):
    """How far param and state may be from torch's: 4 eps of each term."""
    w, state = abs(before)
    g = abs(g) + group["weight_decay"] * w
    if rule == "SGD":
        param = w + group["lr"] * (2 * g + group["momentum"] * state)
        state = group["momentum"] * state + g
    else:
        clr = group["lr"] / (1 + t * group["lr_decay"])
        param = w + clr * g / (np.sqrt(after[1]) + group["eps"])
        state = state + g * g
    return 4 * np.finfo(before.dtype).eps * np.stack([param, state])


def check_steps(rule, options, steps):
    """Take each (t, grad, before, after) with ours, from torch's ``before``, and compare."""
    steps = list(steps)
    w = np.zeros_like(steps[0][1])
    opt = getattr(tw, rule).like("torch", w, **options)
    slot = STATE[rule][1]
    for t, grad, before, after in steps:
        w[...] = before[0]
        if slot in opt.state[""]:
            opt.state[""][slot][...] = before[1]
        opt._set_counters(t, [t])
        opt.step(grad)
        ours = np.stack([w, opt.state[""].get(slot, after[1])])
        allowed = bounds(rule, opt.param_groups[0], t, grad, before, after)
        beyond = abs(ours - after) > allowed
        assert not beyond.any(), (
            f"{rule} {options} {w.dtype}, step {t}, (param or state, element) "
            f"{np.argwhere(beyond).tolist()}: {ours[beyond]}, torch {after[beyond]}"
        )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rule", CASES)
def test_recorded(rule, dtype):
    with np.load(RECORD) as record:
        cases, pairs = json.loads(str(record[f"{rule}_cases"])), record[f"{rule}_{dtype}"]
        grads = record[f"grad_{dtype}"]
    assert cases == CASES[rule], "the cases have changed; record them: see the top of this file"
    assert pairs.shape == (len(cases), len(RECORDED_STEPS), 2, 2, RECORDED_SIZE)
    assert pairs.dtype == grads.dtype == dtype
    for options, pair in zip(cases, pairs, strict=True):
        steps = zip(RECORDED_STEPS, grads, pair[:, 0], pair[:, 1], strict=True)
        check_steps(rule, options, steps)


@pytest.mark.parametrize("implementation", ["single", "foreach", "fused"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rule", CASES)
def test_live(rule, dtype, implementation):
    pytest.importorskip("torch", reason="torch is not installed; the recorded steps were checked")
    chosen = {name: name == implementation for name in ("foreach", "fused")}
    param, grads = start(dtype, LIVE_SIZE)
    for options in CASES[rule]:
        path = torch_trajectory(rule, options, param, grads, **chosen)
        check_steps(rule, options, zip(range(STEPS), grads, path[:-1], path[1:], strict=True))


def record():
    import torch

    arrays = {"torch": np.array(torch.__version__)}
    for rule, cases in CASES.items():
        arrays[f"{rule}_cases"] = np.array(json.dumps(cases))
        for dtype in DTYPES:
            param, grads = start(dtype, RECORDED_SIZE)
            paths = [torch_trajectory(rule, case, param, grads, foreach=False) for case in cases]
            pairs = [[path[[t, t + 1]] for t in RECORDED_STEPS] for path in paths]
            arrays[f"{rule}_{dtype}"] = np.array(pairs)
            arrays[f"grad_{dtype}"] = grads[RECORDED_STEPS]
    np.savez_compressed(RECORD, **arrays)
    print(f"{RECORD.name}: {RECORD.stat().st_size:,} bytes, torch {torch.__version__}")


if __name__ == "__main__":
    if sys.argv[1:] != ["--record"]:
        sys.exit("usage: python tests/test_torch_parity.py --record")
    record()
