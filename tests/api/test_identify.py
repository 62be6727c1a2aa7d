"""identify: forty updates named rightly, and what it says where it cannot know."""

import itertools

import numpy as np
import pytest

import thalweg as tw
import written_updates
from written_mistakes import WRONG
from written_updates import LR, MU, RIGHT, kept, over


def model(dtype=np.float64):
    return {"W": np.zeros((6, 8), dtype), "b": np.zeros(8, dtype)}


def plain(options):
    return {name: repr(value) if callable(value) else value for name, value in options.items()}


def test_there_are_forty():
    assert len(RIGHT) + len(WRONG) == 40


@pytest.mark.parametrize("make", RIGHT, ids=lambda make: make.__name__)
def test_right_updates_are_named(make):
    verdict, rule, options = RIGHT[make]
    found = tw.identify(make())
    said = f"{found.verdict}: {found.reason}" if found.reason else found.verdict
    assert said.startswith(verdict), found
    assert (found.rule, plain(found.options)) == (rule, options)
    assert found.first is None


@pytest.mark.parametrize("make", WRONG, ids=lambda make: make.__name__)
def test_mistakes_are_named(make):
    found = tw.identify(make())
    assert found.verdict == "none"
    assert WRONG[make] in found.reason, found
    with pytest.raises(ValueError, match="make: expected an update that is one of these"):
        found.make(model())


@pytest.mark.parametrize(
    "make", [make for make in RIGHT if RIGHT[make][0] == "same"], ids=lambda make: make.__name__
)
def test_what_is_made_does_the_same(make):
    """On gradients and params of its own, where the bits are said to be the same."""
    rng = np.random.default_rng(9)
    shapes = [(6, 8), (8,)]
    for kind in (list, dict, np.ndarray):
        update, theirs = make(), [rng.standard_normal(shape) for shape in shapes]
        form = {
            list: lambda arrays: [*arrays],
            dict: lambda arrays: dict(zip("ab", arrays, strict=True)),
            np.ndarray: lambda arrays: arrays[0],
        }[kind]
        try:
            tw.identify(make(), form([w.copy() for w in theirs]))
        except (TypeError, AttributeError, KeyError, IndexError):
            continue  # it takes the others
        ours = form([w.copy() for w in theirs])
        opt = tw.identify(make()).make(ours)
        params = form(theirs)
        call = getattr(update, "update", getattr(update, "update_params", update))
        first = make.__name__ == "gradients_first"
        for _ in range(5):
            grads = form([rng.standard_normal(shape) for shape in shapes])
            opt.step(grads)
            returned = call(grads, params) if first else call(params, grads)
            params = params if returned is None else returned
        values = [
            x if isinstance(x, np.ndarray) else [*x.values()] if kind is dict else x
            for x in (ours, params)
        ]
        for mine, their in zip(*values, strict=True):
            assert np.asarray(mine).tobytes() == np.asarray(their).tobytes()
        return
    raise AssertionError("no form of params that it takes")


OPTIONS = [
    ("SGD", {"lr": 0.003}),
    ("SGD", {"lr": 0.1, "weight_decay": 0.01}),
    ("SGD", {"lr": 0.1, "weight_decay": 0.01, "decoupled": True}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "form": "ema", "weight_decay": 0.1}),
    ("SGD", {"lr": 0.1, "momentum": 0.95, "nesterov": True, "max_norm": 1.0}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "dampening": 0.3, "maximize": True}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "max_value": 2.5}),
    ("SGD", {"lr": 0.1, "max_array_norm": 5.0, "norm_eps": 0.0}),
    ("SGD", {"lr": 0.1, "max_norm": 5.0, "norm_eps": 0.0}),
    ("SGD", {"lr": tw.schedules.InverseTime(0.1, 0.3), "weight_decay": 0.01}),
    ("SGD", {"lr": tw.schedules.InverseSqrt(0.1), "momentum": 0.8, "form": "classic"}),
    ("SGD", {"lr": tw.schedules.Exponential(0.1, 0.9), "momentum": 0.8, "nesterov": True}),
    ("Adagrad", {"lr": 0.1, "eps": 1e-6}),
    ("Adagrad", {"lr": 0.1, "eps": 1e-6, "max_norm": 2.0}),
    ("Adagrad", {"lr": 0.1, "eps": 1e-10, "eps_placement": "outside", "maximize": True}),
    ("Adagrad", {"lr": 0.1, "eps": 1e-7, "initial_accumulator_value": 0.1}),
    ("Adagrad", {"lr": 0.1, "eps": 1e-8, "weight_decay": 0.01, "decoupled": True}),
    ("Adagrad", {"lr": 0.1, "eps": 1e-8, "accumulator": "row"}),
    ("Adagrad", {"lr": 0.1, "lr_decay": 0.1, "eps": 1e-8}),
    (
        "Adagrad",
        {
            "lr": 0.1,
            "eps": 1e-10,
            "eps_placement": "outside",
            "initial_accumulator_value": 0.1,
            "weight_decay": 0.01,
        },
    ),
]


@pytest.mark.parametrize(("rule", "options"), OPTIONS, ids=str)
def test_our_own_optimizers_are_named(rule, options):
    params = model()
    before = {k: w.copy() for k, w in params.items()}
    found = tw.identify(getattr(tw, rule)(params, **options), params)
    assert (found.verdict, found.rule, found.options) == ("same", rule, options), found
    assert all(np.array_equal(params[k], before[k]) for k in params)


@pytest.mark.parametrize(
    ("rule", "options"),
    [
        ("SGD", {"lr": 0.1, "momentum": 0.9}),
        ("SGD", {"lr": 0.01, "momentum": 0.9, "form": "classic", "nesterov": True}),
        ("SGD", {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01, "max_value": 5.0}),
        ("Adagrad", {"lr": 0.1, "eps": 1e-8}),
        ("Adagrad", {"lr": 0.01, "eps": 1e-7, "eps_placement": "outside"}),
        ("Adagrad", {"lr": 0.001, "eps": 1e-7, "initial_accumulator_value": 0.1}),
    ],
    ids=str,
)
def test_float32_is_enough(rule, options):
    params = model(np.float32)
    found = tw.identify(getattr(tw, rule)(params, **options), params)
    assert (found.verdict, found.rule) == ("same", rule), found
    if "initial_accumulator_value" not in options:
        assert found.options == options


def test_an_update_that_computes_in_float64_is_told_so():
    def step(w, g, s, t):
        v = kept(s, "v", w)
        v[...] = np.float64(MU) * v + g
        w[...] = w - np.float64(LR) * v.astype(np.float64)

    found = tw.identify(over(step), model(np.float32))
    assert found.verdict == "close"
    assert "it computes in float64" in found.reason
    assert found.options == {"lr": 0.1, "momentum": 0.9}


class Settable:
    """Momentum whose rate counts where it is said to."""

    def __init__(self, lr, inside, outside):
        self.lr, self.inside, self.outside, self.v = lr, inside, outside, {}

    def step(self, params, grads):
        for k in params:
            self.v[k] = MU * self.v.get(k, 0.0) + (self.lr if self.inside else 1.0) * grads[k]
            params[k] -= (self.lr if self.outside else 1.0) * self.v[k]


def test_a_change_of_rate_tells_what_one_rate_cannot():
    # With a power of 2 as rate, no rounding tells them apart.
    for inside in (True, False):
        found = tw.identify(Settable(0.125, inside, not inside))
        assert found.verdict == "same"
        assert found.options.get("form", "heavy_ball") == ("classic" if inside else "heavy_ball")
        assert not any("has the same bits here" in note for note in found.notes)
        assert "at lr=0.0375" in found.asked

    def silent():
        update = Settable(0.125, True, False)
        return lambda params, grads: update.step(params, grads)

    found = tw.identify(silent(), model())
    assert any("form='classic') has the same bits here" in note for note in found.notes), found


def test_a_rate_that_counts_twice_or_not_at_all():
    found = tw.identify(Settable(0.125, True, True))
    assert found.verdict == "none"
    assert "the rate counts twice" in found.reason
    assert found.first > 36
    settable = Settable(0.125, False, True)

    def update(params, grads):
        settable.step(params, grads)

    found = tw.identify(update, model(), set_lr=lambda lr: None)
    assert "setting the rate changes nothing" in found.reason


def test_a_rate_as_argument_is_set():
    velocity = {}

    def update(params, grads, lr=0.25):
        for k in params:
            velocity[k] = MU * velocity.get(k, 0.0) - lr * grads[k]
            params[k] += velocity[k]

    found = tw.identify(update, model())
    assert (found.verdict, found.options["form"]) == ("same", "classic")
    assert "at lr=0.0375" in found.asked


def test_a_mean_over_examples_is_seen_in_the_rate():
    def update(params, grads, lr=0.5):
        for k in params:
            params[k] -= lr * (grads[k] / 32)

    found = tw.identify(update, model())
    assert found.verdict != "none"
    assert found.options == {"lr": 0.5 / 32}


def test_clipping_in_another_place():
    def after_decay():
        def step(w, g, s, t):
            g = np.clip(g + 0.1 * w, -5, 5)
            s["v"] = MU * s.get("v", 0.0) + g
            w -= LR * s["v"]

        return over(step)

    found = tw.identify(after_decay())
    assert found.verdict == "none"
    assert "it clips after the decay is added" in found.reason

    def of_the_step():
        def step(w, g, s, t):
            s["v"] = MU * s.get("v", 0.0) + g
            w -= np.clip(LR * s["v"], -1, 1)

        return over(step)

    found = tw.identify(of_the_step())
    assert "it clips the step, not the gradient" in found.reason


def test_mistakes_with_decay_are_named():
    def step(w, g, s, t):
        g = g + 0.01 * w
        w -= LR * g / np.sqrt(g * g + 1e-8)

    found = tw.identify(over(step))
    assert "the accumulator is not carried over" in found.reason
    assert found.options["weight_decay"] == pytest.approx(0.01)


def test_one_array_that_stays():
    def update(params, grads):
        params[0] -= LR * grads[0]

    found = tw.identify(update)
    assert "in the order of params, 1 never move" in found.reason


def test_nothing_usual():
    count = itertools.count()

    def update(params, grads):
        for w, g in zip(params, grads, strict=True):
            w -= LR * g * np.tanh(1 + next(count))

    found = tw.identify(update)
    assert found.verdict == "none"
    assert found.reason == "none of the usual mistakes"
    assert "the nearest is tw.SGD" in repr(found)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_no_numbers_at_all(value):
    def update(params, grads):
        for w in params:
            w[...] = value

    found = tw.identify(update)
    assert found.verdict == "none"
    assert "usual mistake" in found.reason


def test_a_rate_that_is_a_third():
    found = tw.identify(lambda w, g: w - 1 / 3 * g)
    assert (found.verdict, found.options) == ("same", {"lr": 1 / 3})


def test_what_is_not_known_is_said():
    found = tw.identify(written_updates.global_norm_clipped(), [np.zeros((6, 8))])
    assert any("max_norm is over all arrays" in text for text in found.unknown)
    memory = np.zeros(12)

    def update(w, g):
        memory[...] += g * g
        w -= LR * g / np.sqrt(memory + 1e-8)

    found = tw.identify(update, np.zeros(12))
    assert found.verdict == "same"
    assert any("no array had rows" in text for text in found.unknown)


def test_repr_and_make():
    found = tw.identify(written_updates.Momentum())
    assert repr(found).splitlines() == [
        "tw.SGD(params, lr=0.01, momentum=0.9, form='classic'): same bits",
        "  asked: 44 steps of 56 elements in 2 arrays, float64, the last 8 at lr=0.0375",
    ]
    assert str(found) == repr(found).splitlines()[0]
    opt = found.make(model(), lr=0.5)
    assert opt.lr == 0.5
    assert opt.param_groups[0]["form"] == "classic"


@pytest.mark.parametrize(
    ("update", "params", "error", "message"),
    [
        (7, None, TypeError, "expected a function of .* received int"),
        (lambda a, b, c: None, None, TypeError, r"received one of \(a, b, c\)"),
        (lambda p, g: None, np.zeros(8, int), TypeError, "float32 or float64, received int64"),
        (lambda p, g: None, np.zeros(7), ValueError, "expected at least 8 elements"),
        (lambda p, g: [p], np.zeros(8), ValueError, r"of shape \(8,\) back, received shape"),
        (lambda p, g: p.astype("f4"), np.zeros(8), TypeError, "of float64 back, received float32"),
        (lambda p, g: ([], p), [np.zeros(9)], TypeError, "in the structure it was given"),
        (lambda p, g: 1 / 0, np.zeros(8), ZeroDivisionError, "division by zero"),
        (lambda p, g: 1 / 0, None, ValueError, "hand in params. It raised with list: ZeroDiv"),
    ],
)
def test_what_is_refused(update, params, error, message):
    with pytest.raises(error, match=message):
        tw.identify(update, params)


def test_params_that_an_object_holds_get_their_values_back():
    rng = np.random.default_rng(0)
    params = {"w": rng.standard_normal(20)}
    kept_values = params["w"].copy()

    class Held:
        def step(self, grads):
            params["w"] -= 0.3 * grads["w"]

    assert tw.identify(Held(), params).options == {"lr": 0.3}
    assert np.array_equal(params["w"], kept_values)
