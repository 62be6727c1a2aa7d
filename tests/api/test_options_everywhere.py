"""One table: what becomes of a bad number in every option, by every way into an optimizer."""

import math

import numpy as np
import pytest

import thalweg as tw
from conftest import told
from refusing import refused

NAN, INF = math.nan, math.inf
NEVER = [NAN, -INF, -1.0]
BOTH, FLOAT64, NONE = "both", "float64", "none"  # the dtypes of arrays that accept a value

# Option: the class, what else it takes to be allowed, and who accepts 0, 1e39 and 1e-46. A float32
# sees inf for 1e39 and 0 for 1e-46. Infinite is the max_norm that only measures, and nothing else.
TABLE = {
    "lr": (tw.SGD, {}, BOTH, FLOAT64, BOTH),
    "momentum": (tw.SGD, {"momentum": 0.5}, BOTH, NONE, BOTH),
    "dampening": (tw.SGD, {"momentum": 0.5}, BOTH, NONE, BOTH),
    "weight_decay": (tw.SGD, {}, BOTH, FLOAT64, BOTH),
    "eps": (tw.Adagrad, {}, NONE, FLOAT64, FLOAT64),
    "lr_decay": (tw.Adagrad, {}, BOTH, FLOAT64, BOTH),
    "initial_accumulator_value": (tw.Adagrad, {}, BOTH, FLOAT64, BOTH),
    "max_norm": (tw.SGD, {}, NONE, BOTH, FLOAT64),
    "norm_eps": (tw.SGD, {"max_norm": 0.5}, BOTH, FLOAT64, BOTH),
    "max_value": (tw.SGD, {}, NONE, FLOAT64, FLOAT64),
    "scale": (tw.SGD, {}, NONE, FLOAT64, BOTH),
}
LIMITS = "max_norm", "max_value"
OF_ALL_GROUPS = *LIMITS, "norm_eps"
RANGES = {"max_norm": "number", "max_value": "finite number"}
SCHEDULED = "lr", "momentum", "weight_decay"

CASES = [
    pytest.param(option, value, verdict, id=f"{option}-{value}")
    for option, (_, _, zero, large, small) in TABLE.items()
    for value, verdict in [
        *((x, NONE) for x in NEVER),
        (INF, BOTH if option == "max_norm" else NONE),
        (0, zero),
        (1e39, large),
        (1e-46, small),
    ]
]


def assign(opt, option, value):
    if option in OF_ALL_GROUPS:
        setattr(opt, option, value)
    else:
        opt.param_groups[0][option] = value


def current(opt, option):
    return getattr(opt, option) if option in OF_ALL_GROUPS else opt.param_groups[0][option]


def made(option, dtype, **options):
    rule, others, *_ = TABLE[option]
    w = np.ones(3, dtype)
    return w, lambda: rule(w, **others | options)


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])
@pytest.mark.parametrize(("option", "value", "verdict"), CASES)
class TestEveryWay:
    def fits(self, verdict, dtype):
        return verdict == BOTH or (verdict == FLOAT64 and dtype == np.float64)

    def test_when_made(self, option, value, verdict, dtype):
        if option == "scale":
            return self.a_scale(value, verdict, dtype)
        w, make = made(option, dtype, **{option: value})
        if self.fits(verdict, dtype):
            assert current(make(), option) == value
        else:
            with refused(ValueError, f"{option}: expected a ", ", received ", keeps=w):
                make()
        return None

    def test_when_set(self, option, value, verdict, dtype):
        if option in ("scale", "initial_accumulator_value"):  # given to each step; fixed
            return
        _, make = made(option, dtype)
        opt = make()
        opt.step(np.ones(3))
        if self.fits(verdict, dtype):
            assign(opt, option, value)
            assert current(opt, option) == value
            assert opt.step(np.ones(3))
        else:
            with refused(ValueError, f"{option}: expected a ", ", received ", keeps=opt):
                assign(opt, option, value)

    def test_when_a_schedule_returns_it(self, option, value, verdict, dtype):
        _, make = made(option, dtype)
        opt = make()
        if option not in SCHEDULED:
            if option not in ("scale", "initial_accumulator_value"):
                with refused(TypeError, f"{option}: expected ", keeps=opt):
                    assign(opt, option, lambda t: 0.5)
            return
        asked = []

        def schedule(t):
            asked.append(t)
            return value if t == 1 else 0.5

        assign(opt, option, schedule)
        assert opt.step(np.ones(3))
        if self.fits(verdict, dtype):
            assert opt.step(np.ones(3))
            return
        for _ in range(2):
            said = f"{option} (a schedule, at step 1): expected ", ", received "
            with refused(ValueError, *said, keeps=opt):
                opt.step(np.ones(3))
        assert asked == [0, 1, 1]
        assert opt.skipped_steps == 0

    def a_scale(self, value, verdict, dtype):
        w, make = made("scale", dtype)
        opt = make()
        assert opt.step(np.ones(3))
        if self.fits(verdict, dtype):
            assert opt.step(np.zeros(3), scale=value)
        else:
            with refused(ValueError, "scale: expected a ", ", received ", keeps=[w, opt]):
                opt.step(np.zeros(3), scale=value)


@pytest.mark.parametrize("option", LIMITS)
@pytest.mark.parametrize("value", [True, "1", 1j, [1.0], lambda t: 1.0, np.ones(2)], ids=told)
def test_a_limit_is_a_number_or_none(option, value):
    w = np.ones(3)
    said = f"{option}: expected a {RANGES[option]} > 0, or None, received "
    with refused(TypeError, said, keeps=w):
        tw.SGD(w, **{option: value})
    opt = tw.Adagrad(w, **{option: 2})
    with refused(TypeError, said, keeps=opt):
        setattr(opt, option, value)
    assert getattr(opt, option) == 2.0
    setattr(opt, option, None)
    assert getattr(opt, option) is None


@pytest.mark.parametrize("option", LIMITS)
def test_a_limit_is_that_of_all_groups(option):
    """It is no option of one group, and the narrowest dtype decides."""
    params = [{"params": np.ones(2)}, {"params": np.ones(2, np.float32)}]
    with refused(ValueError, f"{option}: ", "which float32 arrays see as 0.0", keeps=params):
        tw.SGD(params, **{option: 1e-46})
    with refused(TypeError, f'params["0.{option}"]: expected an array', keeps=params):
        tw.SGD([{**params[0], option: 1.0}])
    opt = tw.SGD(params)
    with refused(KeyError, option, keeps=opt):
        opt.param_groups[0][option] = 1.0
    with refused(ValueError, f"{option}: ", "see as 0.0", keeps=opt):
        setattr(opt, option, 1e-46)


@pytest.mark.parametrize("asked", [0, 1])
def test_what_a_schedule_sets_holds_from_the_next_step(asked):
    """A step is one thing: a schedule called in the middle of it changes no part of it."""
    w = np.zeros(2)

    def lr(t):
        opt.max_value, opt.max_norm, opt.on_nonfinite = 1.0, 1.5, "skip"
        opt.param_groups[1 - asked]["lr"] = 0.5
        return 1.0

    groups = [{"params": w[:1], "lr": 1.0}, {"params": w[1:], "lr": 1.0}]
    opt = tw.SGD(groups)
    opt.param_groups[asked]["lr"] = lr
    assert opt.step([np.full(1, 8.0)] * 2)
    assert (w == -8.0).all()
    assert opt.grad_norm is None
    for bad in ([np.full(1, NAN), np.zeros(1)], [np.zeros(1), np.full(1, NAN)]):
        assert not opt.step(bad)
    assert opt.step([np.full(1, 8.0)] * 2)
    assert (w == [-9.0, -8.5] if asked == 0 else w == [-8.5, -9.0]).all()
    assert opt.grad_norm == math.sqrt(2)


def test_a_schedule_that_another_one_replaces_is_asked_once_more():
    w = np.zeros(2)

    def first(t):
        opt.param_groups[1]["lr"] = 0.25
        return 1.0

    opt = tw.SGD([{"params": w[:1], "lr": first}, {"params": w[1:], "lr": lambda t: 1.0}])
    for expected in ([-1, -1], [-2, -1.25]):
        assert opt.step([np.ones(1)] * 2)
        assert w.tolist() == expected


@pytest.mark.parametrize("option", ["lr", "weight_decay"])
def test_a_value_that_steps_while_it_is_read(option):
    """What is set then holds all the same."""
    w = np.zeros(2)
    opt = tw.SGD(w, 1.0)

    class Stepping:
        def __float__(self):
            opt.step(np.zeros(2))
            return 0.5

    opt.param_groups[0][option] = Stepping()
    opt.step(np.ones(2))
    opt.step(np.zeros(2))
    assert w.tolist() == [-0.5] * 2  # 0 - 0.5 * 1, or 0 - 1, less half of itself


def test_the_schedule_of_a_frozen_group_is_not_asked():
    w = np.zeros(2)
    groups = [{"params": w[:1]}, {"params": w[1:], "frozen": True, "lr": lambda t: 1 / 0}]
    opt = tw.SGD(groups, 1.0)
    assert opt.step([np.ones(1), None])
    assert w.tolist() == [-1.0, 0.0]


def test_a_frozen_group_is_said_with_a_bool():
    for value in (1, 0, None, "yes", np.int64(1)):
        w = np.ones(2)
        with refused(TypeError, f"frozen: expected True or False, received {value!r}", keeps=w):
            tw.SGD([{"params": w, "frozen": value}])
        opt = tw.SGD(w)
        with refused(TypeError, "frozen: expected True or False, received ", keeps=opt):
            opt.param_groups[0]["frozen"] = value
