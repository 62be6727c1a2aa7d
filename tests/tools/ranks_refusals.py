"""One rank is wrong: all raise, and nothing has changed."""

import copy
import os
import pickle
import signal
import time
from functools import partial

import numpy as np

import thalweg as tw
import thalweg.mpi as tm
from bits import assert_same_bits
from ranks import RANK, SIZE, case, dense, everywhere, raised, shapes


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
            "height": {
                "table": tw.RowGrad(np.array([0]), np.zeros((1, 301), np.float32), height=3)
            },
            "unknown": {"who": good["w"]},
            "structure": {"w": [good["w"]]},
            "object": {"w": "gradient"},
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
            container = [*good.values()] if culprit == RANK else good
            refused(opt, params, lambda c=container: opt.step(c))
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

            for error in (ZeroDivisionError, KeyboardInterrupt):

                def schedule(step, culprit=culprit, error=error):
                    if culprit == RANK:
                        raise error("in the schedule")
                    return 0.1

                opt.lr = schedule
                message = refused(opt, params, lambda: opt.step(good), (error, RuntimeError))
                assert "in the schedule" in message
                opt.lr = 0.1
            if SIZE > 1:
                opt.lr = lambda step, culprit=culprit: 0.1 + 0.1 * (culprit == RANK)
                message = refused(opt, params, lambda: opt.step(good))
                assert "param_groups[0]['lr'] of this step" in message, message
                opt.lr = 0.1
                partial_step = culprit == RANK
                message = refused(opt, params, lambda p=partial_step: opt.step(good, partial=p))
                assert "partial" in message, message
            if culprit == RANK:
                params["table"].shape = (301, 67)
            changed = refused(opt, params, lambda: opt.step(good), RuntimeError)
            assert 'params["table"]: expected the memory' in changed, changed
            params["table"].shape = (67, 301)
            held = params["w"]
            if culprit == RANK:
                params["w"] = held.copy()
            message = refused(opt, params, lambda: opt.step(good), RuntimeError)
            assert 'params["w"]: expected the array' in message, message
            params["w"] = held
            assert opt.step(good) is True
            opt.check_synced()

    everywhere(run)


@case
def what_differs_when_it_is_made():
    for culprit in range(SIZE if SIZE > 1 else 0):
        differs_on(culprit)


def differs_on(culprit):
    odd = culprit == RANK
    makes = {
        "params": lambda: tm.SGD({"a": np.zeros(3), ("b" if odd else "c"): np.zeros(2)}),
        'params["a"]': lambda: tm.SGD({"a": np.zeros(4 if odd else 3)}),
        "'lr'": lambda: tm.SGD({"a": np.zeros(3)}, lr=0.1 if odd else 0.2),
        "max_norm": lambda: tm.SGD({"a": np.zeros(3)}, max_norm=1.0 if odd else None),
        "average": lambda: tm.SGD({"a": np.zeros(3)}, average=odd),
        "lr: expected": lambda: tm.SGD({"a": np.zeros(3)}, lr=-1.0 if odd else 0.2),
        "frozen": lambda: tm.SGD([{"params": {"a": np.zeros(3)}, "frozen": odd}]),
        "norm_eps": lambda: tm.SGD({"a": np.zeros(3)}, norm_eps=0.0 if odd else 1e-6),
        "rule": lambda: (tm.SGD if odd else tm.Adagrad)({"a": np.zeros(3)}, lr=0.1),
        "expected": lambda: tm.SGD({"a": np.zeros(3, np.int32 if odd else np.float32)}),
    }
    for named, make in makes.items():
        message = raised(make, (ValueError, TypeError))
        assert named in message, message
        assert "rank" in message or odd, message


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
def pickling_is_refused():

    opt = tm.SGD(np.zeros(3))
    for act in (pickle.dumps, copy.copy, copy.deepcopy):
        raised(partial(act, opt), TypeError)


@case
def limits_that_exclude_each_other():
    def run():
        opt = tm.SGD({"a": np.zeros(3)}, max_norm=1.0)
        for name, value in (("max_array_norm", 1.0), ("max_norm", -1.0), ("norm_eps", -1.0)):
            raised(partial(setattr, opt, name, value), ValueError)
        assert (opt.max_norm, opt.max_array_norm, opt.norm_eps) == (1.0, None, 1e-6)
        raised(lambda: tm.SGD({"a": np.zeros(3)}, max_norm=1.0, max_array_norm=1.0), ValueError)
        for only in ({"zero_grads": True}, {"weight_average": 0.9}):
            raised(partial(tm.SGD, {"a": np.zeros(3)}, **only), TypeError)
            raised(partial(setattr, opt, *only.popitem()), TypeError)

    everywhere(run)


@case
def signals_wait_for_the_end_of_a_step():
    def run():
        params = shapes(np.float32)
        opt = tm.SGD(params, lr=0.1)
        seen = []
        before = signal.signal(signal.SIGUSR1, lambda *_: seen.append(opt.step_count))

        def lr(step):
            os.kill(os.getpid(), signal.SIGUSR1)
            return 0.1

        opt.lr = lr
        opt.step(dense(params, 0, RANK))
        assert seen == [1]
        assert signal.signal(signal.SIGUSR1, before) is not signal.SIG_DFL

    everywhere(run)


@case
def a_joint_does_not_take_it():
    opt = tm.SGD(np.zeros(3))
    message = raised(lambda: tw.Joint(a=opt, b=tw.SGD(np.zeros(2))), TypeError)
    assert "step is another one" in message, message
