"""What the cases of ranks_*.py share; run_ranks.py runs them under mpiexec.

Every rank knows every rank's gradients, so each compares with the twin that is fed their sum.
"""

import numpy as np
from mpi4py import MPI

import reference
import thalweg as tw
import thalweg.mpi as tm
from bits import assert_same_bits
from thalweg._optimizer.groups import LIMITS
from thalweg.mpi import base, link
from twin import Twin, assert_same_norm

COMM = MPI.COMM_WORLD
RANK, SIZE = COMM.rank, COMM.size
CASES = {}


def case(function):
    CASES[function.__name__] = function
    return function


def sizes(small=0, piece=4096):
    """Params beyond so many bytes are cut, and messages are no longer than that."""
    base.SMALL, link.PIECE = small, piece


def ours(rule, params, **options):
    return getattr(tm, rule.optimizer.__name__)(params, **{"lr": 0.1} | rule.choices | options)


def shapes(dtype, part=1.0):
    rows = int(67 * part)
    made = {
        "w": (int(40_000 * part),),
        "table": (rows, 301),
        "bias": (3,),
        "scalar": (),
        "none": (0, 4),
    }
    rng = np.random.default_rng(7)
    params = {name: rng.standard_normal(shape).astype(dtype) for name, shape in made.items()}
    params["table"][:, 0] = -0.0  # where a gradient's sign of zero can be seen
    return params


def dense(params, step, rank):
    rng = np.random.default_rng([step, rank])
    return {
        name: np.asarray(rng.standard_normal(w.shape)).astype(w.dtype) for name, w in params.items()
    }


def with_rows(params, step, rank, count=90):
    rng = np.random.default_rng([step, rank, 1])
    grads = dense(params, step, rank)
    table = params["table"]
    rows = rng.integers(0, len(table), count + rank)
    values = rng.standard_normal((count + rank, *table.shape[1:])).astype(table.dtype)
    values[rows == rows[0]] = -0.0  # 0 more would be another bit
    return grads | {"table": tw.RowGrad(rows, values)}


def fed(everyone, params):
    """The sum of the ranks' gradients, as the twin is fed it."""
    found = {}
    for name, param in params.items():
        grads = [grads.get(name) for grads in everyone]
        if grads[0] is None:
            continue
        if isinstance(grads[0], tw.RowGrad):
            values = np.concatenate([g.values.astype(param.dtype) for g in grads])
            found[name] = tw.RowGrad(np.concatenate([g.rows for g in grads]), values)
        else:
            found[name] = reference.rank_sum(grads, param.dtype)
    return found


def assert_equals(opt, params, twin, context):
    for name, w in params.items():
        assert_same_bits(w, twin.params[name], f"{name} {context}")
        state = opt.state[name]
        assert state["step"] == twin.steps[name], (name, context)
        if twin.rule.slot:
            first, last = state["range"]
            expected = np.atleast_1d(twin.states[name])[first:last]
            own = np.atleast_1d(state[twin.rule.slot])
            assert_same_bits(own, expected, f"state of {name} {context}")
    assert_same_norm(opt.grad_norm, twin.grad_norm, context)
    assert (opt.step_count, opt.skipped_steps) == (twin.step_count, twin.skipped_steps), context


def compare(rule, dtype, grads, steps=3, average=True, scale=1.0, made=shapes, **options):
    """Some steps beside the twin; ``grads(params, step, rank)`` makes a rank's."""
    limits = {k: options.pop(k) for k in LIMITS if k in options}
    params = made(dtype)
    numbers = {"lr": 0.1} | options
    twin = Twin(rule, params, dict.fromkeys(params, numbers), **limits)
    opt = ours(rule, params, average=average, **options, **limits)
    for step in range(steps):
        everyone = [grads(params, step, rank) for rank in range(SIZE)]
        factor = scale / SIZE if average else scale
        applied = twin.step(fed(everyone, params), factor)
        assert opt.step(everyone[RANK], scale=scale, partial=True) is applied
        assert_equals(opt, params, twin, f"{rule.kernel} {np.dtype(dtype)} {options} {limits}")
    return opt


def spoiled(params, step, rank, make=dense):
    """In the second step the last rank has a NaN in what another may own."""
    grads = make(params, step, rank)
    if step == 1 and rank == SIZE - 1:
        grads["w"][11] = np.nan
    return grads


def everywhere(run):
    """Small params whole, and cut."""
    for small in (1 << 20, 0):
        sizes(small)
        run()


def raised(act, kinds=Exception):
    """The words of the error that ``act`` must raise."""
    try:
        act()
    except kinds as error:
        return str(error)
    raise AssertionError(f"rank {RANK} did not raise")
