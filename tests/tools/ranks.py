"""What the ranks of one job do, case by case; run under mpiexec by test_mpi_ranks.py.

Every rank knows every rank's gradients, so each compares with the twin that is fed their sum.
"""

import os
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
from mpi4py import MPI

import reference
import thalweg as tw
import thalweg.mpi as tm
from bits import DTYPES, assert_same_bits
from rules import RULES
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


def shapes(dtype):
    made = {"w": (40_000,), "table": (211, 301), "bias": (3,), "scalar": (), "none": (0, 4)}
    rng = np.random.default_rng(7)
    return {name: rng.standard_normal(shape).astype(dtype) for name, shape in made.items()}


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


def compare(rule, dtype, grads, steps=3, average=True, scale=1.0, each=None, **options):
    """Some steps beside the twin; ``grads(params, step, rank)`` makes a rank's."""
    limits = {k: options.pop(k) for k in ("max_norm", "max_value", "on_nonfinite") if k in options}
    params = shapes(dtype)
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


@case
def bits_of_every_rule():
    def run():
        for rule in RULES.values():
            for dtype in DTYPES:
                compare(rule, dtype, dense, steps=2)

    everywhere(run)


LATER = [
    {"weight_decay": 0.1},
    {"weight_decay": 0.1, "decoupled": True},
    {"maximize": True},
    {"max_value": 0.5},
    {"max_norm": 1.0},
    {"max_norm": 1.0, "max_value": 0.3},
    {"max_norm": 1e9, "on_nonfinite": "skip"},
    {"on_nonfinite": "skip", "max_value": 0.5},
    {"lr": tw.schedules.Exponential(0.1, 0.9) if hasattr(tw.schedules, "Exponential") else 0.2},
]


@case
def bits_of_every_option():
    def run():
        for options in LATER:
            for name in ("heavy_ball", "adagrad_row_inside"):
                compare(RULES[name], np.float32, spoiled, **options)
        compare(RULES["heavy_ball"], np.float64, dense, max_norm=1.0, average=False, scale=0.7)
        compare(RULES["adagrad_inside"], np.float32, dense, lr_decay=0.1)
        compare(RULES["heavy_ball"], np.float32, dense, dampening=0.1)

    everywhere(run)


@case
def bits_by_rows():
    def run():
        for name in ("sgd", "heavy_ball", "adagrad_inside", "adagrad_row_outside"):
            for dtype in DTYPES:
                compare(RULES[name], dtype, with_rows)
        for options in ({"max_norm": 1.0}, {"on_nonfinite": "skip", "max_value": 0.5}):
            compare(RULES["adagrad_inside"], np.float32, with_rows, **options)
            compare(RULES["heavy_ball"], np.float32, partial(spoiled, make=with_rows), **options)

    everywhere(run)


@case
def none_and_missing_gradients():
    def some(params, step, rank):
        grads = dense(params, step, rank)
        if step == 0:
            del grads["table"]
        if step == 1:
            grads["w"] = None
        return grads

    everywhere(lambda: compare(RULES["heavy_ball"], np.float32, some))


@case
def gradients_of_other_dtypes_and_layouts():
    def other(params, step, rank):
        grads = dense(params, step, rank)
        grads["w"] = grads["w"].astype(np.float64)[::-1]
        grads["table"] = np.asfortranarray(grads["table"].astype(np.float16))
        return grads

    everywhere(lambda: compare(RULES["adagrad_inside"], np.float32, other))


@case
def groups_and_frozen_params():
    def run():
        made = shapes(np.float32)
        params = [
            {"params": {"w": made["w"]}, "lr": 0.2},
            {"params": {"table": made["table"]}, "frozen": True},
            {"params": {"bias": made["bias"]}, "lr": lambda step: 0.1 / (1 + step)},
        ]
        copies = [g | {"params": {k: v.copy() for k, v in g["params"].items()}} for g in params]
        opt = tm.SGD(params, lr=0.1, momentum=0.9)
        alone = tw.SGD(copies, lr=0.1, momentum=0.9)
        for step in range(3):
            everyone = [dense(made, step, rank) for rank in range(SIZE)]
            summed = fed(everyone, made)
            mine = everyone[RANK]
            opt.step([{"w": mine["w"]}, {"table": mine["table"]}, {"bias": mine["bias"]}])
            alone.step(
                [{"w": summed["w"]}, {"table": summed["table"]}, {"bias": summed["bias"]}],
                scale=1 / SIZE,
            )
            if step == 1:
                for each in (opt, alone):
                    each.param_groups[1]["frozen"] = False
                    each.param_groups[0]["lr"] = 0.05
        for group, copy in zip(params, copies, strict=True):
            for name, w in group["params"].items():
                assert_same_bits(w, copy["params"][name], name)
        assert opt.last_lr == alone.last_lr

    everywhere(run)


def refused(opt, params, act, kinds=(TypeError, ValueError, IndexError, RuntimeError)):
    """All ranks raise within 5 seconds, and no byte has changed."""
    states = [np.array(s[opt._slot]) for s in opt.state.values() if opt._slot in s]
    before = [w.copy() for w in params.values()], opt.step_count, states
    start = time.monotonic()
    message = raised(act, kinds)
    assert time.monotonic() - start < 5
    for w, old in zip(params.values(), before[0], strict=True):
        assert_same_bits(w, old)
    after = [s[opt._slot] for s in opt.state.values() if opt._slot in s]
    for now, old in zip(after, states, strict=True):
        assert_same_bits(np.asarray(now), old)
    assert opt.step_count == before[1]
    return message


@case
def one_rank_wrong():
    def run():
        params = shapes(np.float32)
        opt = tm.SGD(params, lr=0.1, momentum=0.9, on_nonfinite="raise")
        good = dense(params, 0, RANK)
        wrongs = {
            "shape": {"w": np.zeros(3, np.float32)},
            "dtype": {"w": np.zeros(40_000, np.int64)},
            "None": {"w": None},
            "rows": {"table": tw.RowGrad(np.array([0]), np.zeros((1, 301), np.float32))},
            "row out of range": {"table": tw.RowGrad(np.array([9999]), np.zeros((1, 301)))},
            "unknown": {"who": good["w"]},
        }
        for culprit in range(SIZE):
            for what, wrong in wrongs.items():
                if SIZE == 1 and what in ("None", "rows"):
                    continue
                mine = good | wrong if culprit == RANK else good
                message = refused(opt, params, lambda m=mine: opt.step(m))
                if what in ("shape", "dtype") and culprit != RANK:
                    assert f"rank {culprit}: " in message, message
                    assert 'grads["w"]' in message, message
                if what in ("None", "rows"):
                    named = "w" if what == "None" else "table"
                    assert f'grads["{named}"]' in message, message
                    assert "on rank" in message, message
            missing = {k: v for k, v in good.items() if k != "w" or culprit != RANK}
            refused(opt, params, lambda m=missing: opt.step(m))
            bad = {k: v.copy() for k, v in good.items()}
            if culprit == RANK:
                bad["w"][17] = np.nan
            message = refused(opt, params, lambda b=bad: opt.step(b), FloatingPointError)
            assert 'grads["w"]: expected finite elements, received 1 NaN' in message, message
            assert "[17]" in message, message
            if SIZE > 1:
                scale = 2.0 if culprit == RANK else 1.0
                message = refused(opt, params, lambda s=scale: opt.step(good, scale=s))
                assert "scale" in message, message
                opt.lr = 0.3 if culprit == RANK else 0.1
                message = refused(opt, params, lambda: opt.step(good))
                assert "'lr'" in message, message
                opt.lr = 0.1

            def schedule(step, culprit=culprit):
                if culprit == RANK:
                    raise ZeroDivisionError("in the schedule")
                return 0.1

            opt.lr = schedule
            message = refused(
                opt, params, lambda: opt.step(good), (ZeroDivisionError, RuntimeError)
            )
            assert "in the schedule" in message
            opt.lr = 0.1
            assert opt.step(good) is True
            opt.check_synced()

    everywhere(run)


@case
def what_differs_when_it_is_made():
    odd = RANK == SIZE - 1
    if SIZE == 1:
        return
    makes = {
        "params": lambda: tm.SGD({"a": np.zeros(3), ("b" if odd else "c"): np.zeros(2)}),
        'params["a"]': lambda: tm.SGD({"a": np.zeros(4 if odd else 3)}),
        "'lr'": lambda: tm.SGD({"a": np.zeros(3)}, lr=0.1 if odd else 0.2),
        "max_norm": lambda: tm.SGD({"a": np.zeros(3)}, max_norm=1.0 if odd else None),
        "average": lambda: tm.SGD({"a": np.zeros(3)}, average=odd),
        "rule": lambda: (tm.SGD if odd else tm.Adagrad)({"a": np.zeros(3)}, lr=0.1),
        "expected": lambda: tm.SGD({"a": np.zeros(3, np.int32 if odd else np.float32)}),
    }
    for named, make in makes.items():
        message = raised(make, (ValueError, TypeError))
        assert named in message, message
        assert odd or f"rank {SIZE - 1}" in message, message


@case
def synced():
    def run():
        params = {"a": np.full(5, float(RANK)), "b": np.asfortranarray(np.full((4, 6), RANK + 0.5))}
        tm.SGD(params)
        assert (params["a"] == 0).all()
        assert (params["b"] == 0.5).all()
        opt = tm.SGD(params, momentum=0.9)
        opt.check_synced()
        if RANK == SIZE - 1 and SIZE > 1:
            params["b"][2, 3] = 9
        if SIZE > 1:
            message = raised(opt.check_synced, ValueError)
            assert 'params["b"]' in message, message
        opt.sync()
        opt.check_synced()
        kept = {"a": np.full(5, float(RANK))}
        tm.SGD(kept, broadcast=False)
        assert (kept["a"] == RANK).all()

    everywhere(run)


@case
def checkpoints_at_other_numbers_of_ranks():
    """Saved by the first job of the test, whatever its size; gone on with by all others."""
    folder = Path(os.environ["THALWEG_TEST_FOLDER"])
    for small in (1 << 20, 0):
        sizes(small)
        for name in ("heavy_ball", "adagrad_row_inside", "sgd"):
            rule = RULES[name]
            path = folder / f"{name}-{small}.npz"
            params = shapes(np.float32)
            opt = ours(rule, params)
            alone = shapes(np.float32)
            one = rule.optimizer(alone, **{"lr": 0.1} | rule.choices)
            if not path.exists() or os.environ.get("THALWEG_TEST_FIRST"):
                for step in range(2):
                    opt.step(dense(params, step, 0))
                tw.save_checkpoint(path, opt, extra={"epoch": 2})
            else:
                assert tw.load_checkpoint(path, opt) == {"epoch": 2}
            assert tw.load_checkpoint(path, one) == {"epoch": 2}
            opt.check_synced()
            summed = reference.rank_sum([dense(params, 2, rank)["w"] for rank in range(SIZE)], "f4")
            grads = {"w": dense(params, 2, RANK)["w"]}
            opt.step(grads, partial=True)
            one.step({"w": summed}, scale=1 / SIZE, partial=True)
            for key, w in params.items():
                assert_same_bits(w, alone[key], key)
            found, expected = opt.state_dict(), one.state_dict()
            for key, array in expected["arrays"].items():
                for slot, value in array.items():
                    if isinstance(value, np.ndarray):
                        assert_same_bits(found["arrays"][key][slot], value, key)
                    else:
                        assert found["arrays"][key][slot] == value
            opt.load_state_dict(expected)
            again = opt.state_dict()
            assert_same_bits(
                np.asarray(again["arrays"]["w"].get(rule.slot or "", 0.0)),
                np.asarray(expected["arrays"]["w"].get(rule.slot or "", 0.0)),
            )
            COMM.Barrier()


@case
def a_keeper():
    folder = COMM.bcast(tempfile.mkdtemp() if RANK == 0 else None)
    sizes()
    params = shapes(np.float32)
    opt = tm.Adagrad(params, lr=0.1)
    keeper = tw.CheckpointKeeper(folder, keep=2, every=2)
    assert keeper.restore(opt) is None
    for step in range(5):
        opt.step(dense(params, step, RANK))
        assert keeper.save(opt, extra={"step": step}) is (opt.step_count % 2 == 0)
    after = {k: w.copy() for k, w in params.items()}
    assert tw.CheckpointKeeper(folder).restore(opt) == {"step": 3}
    assert opt.step_count == 4
    opt.step(dense(params, 4, RANK))
    for k, w in params.items():
        assert_same_bits(w, after[k], k)
    raised(lambda: tw.save_checkpoint(Path(folder) / "nowhere" / "a.npz", opt), OSError)
    COMM.Barrier()
    if RANK == 0:
        keeper.close()


@case
def tables():
    folder = COMM.bcast(tempfile.mkdtemp() if RANK == 0 else None)
    rows = 1001

    def fill(first, last):
        return np.arange(first * 3, last * 3, dtype=np.float32).reshape(-1, 3)

    for rule, options in (
        (tw.SGD, {"momentum": 0.9}),
        (tw.Adagrad, {}),
        (tw.Adagrad, {"accumulator": "row"}),
        (tw.Adagrad, {"max_norm": 0.5, "on_nonfinite": "skip"}),
    ):
        table = tm.Table(rows, 3, rule=rule, fill=fill, lr=0.1, **options)
        whole = fill(0, rows)
        alone = rule(whole, lr=0.1, **options)
        for step in range(3):
            everyone = []
            for rank in range(SIZE):
                rng = np.random.default_rng([step, rank])
                ids = rng.integers(0, rows, 200 + rank)
                values = rng.standard_normal((200 + rank, 3)).astype(np.float32)
                everyone.append((ids, values))
            if step == 2 and options.get("on_nonfinite"):
                everyone[-1][1][3] = np.inf
            both = [np.concatenate(each) for each in zip(*everyone, strict=True)]
            applied = alone.step(tw.RowGrad(*both), scale=1 / SIZE)
            assert table.step(*everyone[RANK]) is applied
            assert_same_bits(table.lookup(np.arange(rows)), whole, str(options))
            ids = everyone[RANK][0].reshape(-1, 1)
            assert_same_bits(table.lookup(ids), whole[ids])
        assert_same_norm(table.optimizer.grad_norm, alone.grad_norm)
        path = f"{folder}/{rule.__name__}{len(options)}"
        table.save(path)
        other = tm.Table(rows, 3, rule=rule, lr=0.1, **options)
        other.load(path)
        assert_same_bits(other.lookup(np.arange(rows)), whole)
    for wrong in (5000, -1):
        ids = np.array([wrong if RANK == SIZE - 1 else 0])
        for act in (lambda i=ids: table.lookup(i), lambda i=ids: table.step(i, np.ones((1, 3)))):
            raised(act, (IndexError, ValueError))
    table.lookup(np.array([0]))


@case
def pickling_is_refused():
    import copy
    import pickle

    opt = tm.SGD(np.zeros(3))
    for act in (pickle.dumps, copy.copy, copy.deepcopy):
        raised(partial(act, opt), TypeError)


def main(names):
    for name in names or CASES:
        sizes(1 << 20, 1 << 20)
        CASES[name]()
        COMM.Barrier()
        if RANK == 0:
            print(f"passed {name}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
