"""Options out of their range: when made, when set later, and when a schedule returns them."""

import math

import numpy as np
import pytest

import thalweg as tw
from conftest import told
from refusing import refused, rows

NAN, INF = math.nan, math.inf
BELOW = -5e-324
NOT_NUMBERS = [True, False, np.True_, "0.1", None, 1j, [0.1], np.array([0.1, 0.2]), object()]

# rule, option, other options it needs, what is expected, what is accepted and what is not by any
# array, and what only float64 arrays accept.
ZERO_UP = [0, 0.0, 5e-324, 1, 3.4e38, np.float32(0.5), np.array(0.5)], [BELOW, -1]
SMALL = 1e-46  # a float32 sees 0
BELOW_ONE = 1 - 1e-9  # a float32 sees 1
LIMITS = {
    "lr": (tw.SGD, {}, "a finite number >= 0", [*ZERO_UP[0], SMALL], ZERO_UP[1], [1e39]),
    "adagrad lr": (tw.Adagrad, {}, "a finite number >= 0", *ZERO_UP, [3.5e38]),
    "momentum": (
        tw.SGD,
        {"momentum": 0.5},
        "a number from 0 to 1",
        [0.0, 5e-324, 0.9, 1 - 2**-24, BELOW_ONE, 1 - 2**-53, 1, 1.0],
        [BELOW, -0.9, 1 + 2**-52, 1.5, 1e39],
        [],
    ),
    "dampening": (
        tw.SGD,
        {"momentum": 0.5},
        "a number from 0 to 1",
        [0.0, 5e-324, 0.5, 1],
        [BELOW, -0.1, 1 + 2**-52, 2, 1e39],
        [],
    ),
    "weight_decay": (tw.SGD, {}, "a finite number >= 0", *ZERO_UP, [1e39]),
    "eps": (tw.Adagrad, {}, "a finite number > 0", [1e-45, 1, 3e38], [0, 0.0, -1], [SMALL, 1e39]),
    "lr_decay": (tw.Adagrad, {}, "a finite number >= 0", *ZERO_UP, [1e39]),
    "initial_accumulator_value": (tw.Adagrad, {}, "a finite number >= 0", *ZERO_UP, [1e39]),
}


def cases(kind):
    """(rule, option, other options, expected, value) for each value of one kind."""
    for name, (rule, others, expected, good, bad, only64) in LIMITS.items():
        values = {
            "good": good,
            "bad": [*bad, NAN, INF, -INF, np.float64(NAN), 10**400, -(10**400)],
            "only float64": only64,
        }
        option = name.removeprefix("adagrad ")
        for value in values[kind]:
            shown = repr(value) if len(repr(value)) < 30 else "huge"
            yield pytest.param(rule, option, others, expected, value, id=f"{name}-{shown}")


def as_seen(value):
    try:
        return repr(float(value))
    except OverflowError:
        return "inf" if value > 0 else "-inf"


def refuse_everywhere(rule, option, others, value, dtype, exception, *words):
    """Made with it, in a group, set later, set through opt.lr, and returned by a schedule."""
    w, g = np.ones(3, dtype), np.ones(3)
    with refused(exception, f"{option}: ", *words, keeps=w):
        rule(w, **others | {option: value})
    groups = [{"params": np.ones(2)}, {"params": w, option: value}]
    with refused(exception, f'param_groups[1]["{option}"]: ', *words, keeps=w):
        rule(groups, **others)
    if option == "initial_accumulator_value":
        return
    opt = rule(w, **others)
    opt.step(g)
    with refused(exception, f"{option}: ", *words, keeps=opt):
        opt.param_groups[0][option] = value
    if option == "lr":
        with refused(exception, "lr: ", *words, keeps=opt):
            opt.lr = value
    if option in ("lr", "momentum", "weight_decay"):
        opt.param_groups[0][option] = lambda t: value if t == 2 else 0.5
        opt.step(g)
        with refused(exception, f"{option} (a schedule, at step 2): ", *words, keeps=opt):
            opt.step(g)


@pytest.mark.parametrize(("rule", "option", "others", "expected", "value"), list(cases("bad")))
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_out_of_range(dtype, rule, option, others, expected, value):
    words = f"expected {expected}", f"received {as_seen(value)}"
    refuse_everywhere(rule, option, others, value, dtype, ValueError, *words)


@pytest.mark.parametrize(
    ("rule", "option", "others", "expected", "value"), list(cases("only float64"))
)
def test_out_of_range_once_rounded(rule, option, others, expected, value):
    words = f"expected {expected}", f"received {value!r}, which float32 arrays see as "
    refuse_everywhere(rule, option, others, value, np.float32, ValueError, *words)
    opt = rule(np.ones(3), **others | {option: value})
    assert opt.param_groups[0][option] == value
    opt.step(np.ones(3))


@pytest.mark.parametrize(("rule", "option", "others", "expected", "value"), list(cases("good")))
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_in_range(dtype, rule, option, others, expected, value):
    made = rule(np.ones(3, dtype), **others | {option: value})
    opts = [made]
    if option != "initial_accumulator_value":
        opts.append(rule(np.ones(3, dtype), **others))
        opts[1].param_groups[0][option] = value
    for opt in opts:
        assert opt.param_groups[0][option] == float(value)
        assert opt.step(np.zeros(3))


@pytest.mark.parametrize("value", NOT_NUMBERS, ids=told)
@pytest.mark.parametrize("name", LIMITS)
def test_not_a_number(name, value):
    rule, others, expected, *_ = LIMITS[name]
    words = f"expected {expected}", f"received {type(value).__name__} "
    option = name.removeprefix("adagrad ")
    refuse_everywhere(rule, option, others, value, np.float64, TypeError, *words)


@pytest.mark.parametrize("value", [0, 0.0, -1.0, NAN, INF, -INF, 10**400])
def test_scale_out_of_range(value):
    w, s = np.ones(3), np.ones(3)
    opt = tw.SGD([w, np.ones(1, np.float32)], grads=[np.ones(3), np.ones(1)])
    words = "scale: expected a finite number > 0", f"received {as_seen(value)}"
    with refused(ValueError, *words, keeps=opt):
        opt.step(scale=value)
    with refused(ValueError, *words, keeps=opt):
        opt.step([np.ones(3), np.ones(1)], scale=value)
    with refused(ValueError, *words, keeps=[w, s]):
        tw.adagrad_(w, np.ones(3), s, lr=0.1, scale=value)
    with refused(ValueError, *words, keeps=w):
        tw.sgd_(w, np.ones(3), lr=0.1, scale=value)


def test_scale_at_its_limits():
    w = np.ones(1, np.float32)
    opt = tw.SGD([np.ones(3), w], 0.5)
    with refused(ValueError, "received 1e+39, which float32 arrays see as inf", keeps=opt):
        opt.step([np.ones(3), np.ones(1)], scale=1e39)
    assert opt.step([np.ones(3), np.ones(1)], scale=1e-300)
    assert w == 1  # the gradient underflowed
    assert tw.SGD(np.ones(3)).step(np.ones(3), scale=1e39)


@pytest.mark.parametrize("value", NOT_NUMBERS, ids=told)
def test_scale_is_not_a_number(value):
    opt = tw.SGD(np.ones(3))
    with refused(TypeError, "scale: expected a finite number > 0, received ", keeps=opt):
        opt.step(np.ones(3), scale=value)
    with refused(TypeError, "scale: expected a finite number > 0, received ", keeps=opt):
        opt.step(np.ones(3), scale=lambda t: 1.0)


@pytest.mark.parametrize("option", ["decoupled", "maximize", "nesterov"])
@pytest.mark.parametrize("value", [1, 0, None, "yes", np.int64(1), 0.0, [True]], ids=repr)
def test_flag_is_no_bool(option, value):
    w = np.ones(3)
    words = f"{option}: expected True or False, received {value!r}"
    with refused(TypeError, words, keeps=w):
        tw.SGD(w, 0.1, 0.9, **{option: value})
    if option == "nesterov":
        return
    with refused(TypeError, words, keeps=w):
        tw.Adagrad(w, 0.1, **{option: value})
    opt = tw.SGD(w)
    with refused(TypeError, words, keeps=opt):
        opt.param_groups[0][option] = value


@pytest.mark.parametrize("value", ["Heavy_Ball", "nag", "", None, True, 1, b"ema", ["ema"]])
def test_choice_is_refused(value):
    w = np.ones(3)
    for rule, option in ((tw.SGD, "form"), (tw.Adagrad, "eps_placement")):
        with refused(ValueError, f"{option}: expected one of ", f"received {value!r}", keeps=w):
            rule(w, **{option: value})


EMA = {"form": "ema", "momentum": 0.9}
NESTEROV = {"nesterov": True, "momentum": 0.9}
EXCLUDED = {
    "nesterov, dampened": (NESTEROV | {"dampening": 0.1}, "dampening=0.1"),
    "nesterov, ema": (EMA | {"nesterov": True}, "a form other than ema", "form='ema'"),
    "dampening alone": ({"dampening": 0.1}, "dampening: expected 0 unless", "received 0.1 with"),
    "dampening, ema": (EMA | {"dampening": 0.1}, "dampening: expected 0", "form='ema'"),
    "dampening, classic": (
        {"form": "classic", "momentum": 0.9, "dampening": 1},
        "unless form is heavy_ball and momentum > 0, received 1 with form='classic'",
    ),
    "dampening is nan": ({"dampening": NAN}, "dampening: expected 0 unless", "received nan"),
}


@pytest.mark.parametrize(
    ("options", "words"), rows({name: (row[0], row[1:]) for name, row in EXCLUDED.items()})
)
def test_options_that_exclude_each_other(options, words):
    w = np.ones(3)
    with refused(ValueError, *words, keeps=w):
        tw.SGD(w, **options)
    with refused(ValueError, *words, keeps=w):
        tw.SGD([{"params": np.ones(1)}, {"params": w, **options}])


SET_LATER = {
    "momentum": ({}, "momentum", 0.9, "made with momentum=0 and holds no velocity, received 0.9"),
    "momentum 0": ({}, "momentum", 0.0, "make a new optimizer with momentum > 0"),
    "schedule": ({}, "momentum", lambda t: 0.9, "holds no velocity, received <function"),
    "form": (EMA, "form", "classic", "form: fixed when the optimizer was made, received 'classic'"),
    "same form": (EMA, "form", "ema", "form: fixed when the optimizer was made"),
    "nesterov": (NESTEROV, "nesterov", False, "nesterov: fixed when the optimizer was made"),
    "dampened": (NESTEROV, "dampening", 0.1, "nesterov: expected no dampening"),
    "dampening": ({}, "dampening", 0.1, "dampening: expected 0 unless", "received 0.1"),
    "dampened ema": (EMA, "dampening", 0.1, "dampening: expected 0 unless", "form='ema'"),
}


@pytest.mark.parametrize(
    ("options", "option", "value", "words"),
    rows({name: (*row[:3], row[3:]) for name, row in SET_LATER.items()}),
)
def test_options_that_cannot_be_set_later(options, option, value, words):
    opt = tw.SGD(np.ones(3), **options)
    opt.step(np.ones(3))
    with refused(ValueError, f"{option}: " if words[0][0] != "n" else "", *words, keeps=opt):
        opt.param_groups[0][option] = value


@pytest.mark.parametrize("option", ["eps_placement", "initial_accumulator_value"])
def test_adagrad_keeps_what_it_was_made_with(option):
    opt = tw.Adagrad(np.ones(3))
    value = opt.param_groups[0][option]
    with refused(ValueError, f"{option}: fixed when the optimizer was made", keeps=opt):
        opt.param_groups[0][option] = value


def test_a_later_momentum_of_zero_is_accepted():
    for options in (NESTEROV, EMA, {"momentum": 0.9, "dampening": 0.5}):
        opt = tw.SGD(np.ones(3), **options)
        opt.param_groups[0]["momentum"] = 0.0
        assert opt.step(np.ones(3))


def test_unknown_options():
    opt = tw.SGD(np.ones(3))
    with refused(KeyError, "'eps': expected one of lr, momentum, dampening", keeps=opt):
        opt.param_groups[0]["eps"] = 1
    with refused(KeyError, "eps", keeps=opt):
        opt.param_groups[0]["eps"]
    with refused(TypeError, "lr: an option cannot be deleted; assign its default", keeps=opt):
        del opt.param_groups[0]["lr"]
    with pytest.raises(TypeError, match="'eps'"):
        tw.SGD(np.ones(3), eps=1)


def test_shrinking_factor_out_of_range():
    options = {"weight_decay": 1e30, "decoupled": True}
    opt = tw.SGD(np.ones(3, np.float32), 1e30, **options)
    words = "weight_decay: expected a finite 1 - lr * weight_decay", "received lr 1e+30 and weight"
    with refused(ValueError, *words, keeps=opt):
        opt.step(np.ones(3))
    assert tw.SGD(np.ones(3), 1e30, **options).step(np.ones(3))


def test_setting_lr_for_all_groups_is_all_or_nothing():
    opt = tw.SGD([{"params": np.ones(2)}, {"params": np.ones(2, np.float32), "lr": 0.5}], 0.25)
    with refused(ValueError, 'param_groups[1]["lr"]: ', "see as inf", keeps=opt):
        opt.lr = 1e39

    class Moody:
        def __float__(self):
            raise KeyboardInterrupt

    with refused(KeyboardInterrupt, keeps=opt):
        opt.lr = Moody()


PRESETS = {
    "unknown": (tw.SGD, "pytorch", {}, ValueError, "like: expected one of torch, d2l", "'pytorch'"),
    "of the other": (tw.Adagrad, "sklearn", {}, ValueError, "expected one of torch, d2l, keras"),
    "form": (tw.SGD, "keras", {"form": "ema"}, ValueError, "form='classic'", "received 'ema'"),
    "placement": (
        tw.Adagrad,
        "torch",
        {"eps_placement": "inside"},
        ValueError,
        "expected eps_placement='outside', which makes 'torch' what it is, received 'inside'",
    ),
    "chainer": (tw.SGD, "chainer", {"nesterov": True}, ValueError, "no nesterov for 'chainer'"),
    "no velocity": (tw.SGD, "torch", {"nesterov": True}, ValueError, "expected momentum > 0 for"),
    "lr of d2l": (tw.SGD, "d2l", {}, TypeError, "like: expected lr, received none; 'd2l' has no"),
    "lr of optax": (tw.Adagrad, "optax", {"eps": 1e-3}, TypeError, "expected lr, received none"),
    "lr of openai": (tw.SGD, "openai_es", {}, TypeError, "expected lr, received none"),
    "bad lr": (tw.SGD, "torch", {"lr": NAN}, ValueError, "lr: expected a finite", "received nan"),
    "option": (tw.SGD, "torch", {"eps": 1}, TypeError, "eps"),
}


@pytest.mark.parametrize(
    ("rule", "name", "overrides", "exception", "words"),
    rows({key: (*row[:4], row[4:]) for key, row in PRESETS.items()}),
)
def test_preset_is_refused(rule, name, overrides, exception, words):
    w = np.ones(3)
    with refused(exception, *words, keeps=w):
        rule.like(name, w, **overrides)
