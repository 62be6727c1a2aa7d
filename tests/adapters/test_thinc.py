"""thalweg.thinc: thinc's own numbers, momentum and Adagrad beside them, and all that thinc asks."""

import copy
import pickle

import numpy as np
import pytest

pytest.importorskip("thinc", reason="thinc is not installed")

import thinc.api as thinc
from thinc.optimizers import Optimizer

import reference
import thalweg.thinc as ours
from bits import assert_same_bits
from conftest import FULL
from their_tests import run_their_tests

KEYS = [(0, "W"), (0, "b"), (1, "W")]
SHAPES = [(5, 3), (7,), (2, 3, 4)]
STEPS = 25

# With no clipping, or a norm that is never reached, every bit is thinc's.
NUMBERS = {
    "plain": {"grad_clip": 0.0},
    "not reached": {"grad_clip": 1e6},
    "decay": {"grad_clip": 0.0, "L2": 0.01},
    "L2": {"grad_clip": 0.0, "L2": 0.01, "L2_is_weight_decay": False},
    "L2, not reached": {"grad_clip": 1e6, "L2": 0.01, "L2_is_weight_decay": False},
    "no averages": {"grad_clip": 0.0, "use_averages": False},
    "schedule": {"grad_clip": 0.0, "learn_rate": lambda: thinc.warmup_linear(0.3, 5, 40)},
    "list": {"grad_clip": 0.0, "learn_rate": [0.3, 0.2, 0.1]},
}
CLIPPED = {
    "clip": {"grad_clip": 0.5},
    "clip, decay": {"grad_clip": 0.5, "L2": 0.1},
    "clip, L2": {"grad_clip": 0.5, "L2": 0.1, "L2_is_weight_decay": False},
    "clip by schedule": {"grad_clip": [0.5, 100.0, 0.0]},
}


def made(rule, **options):
    rate = options.pop("learn_rate", 0.1)
    return rule(rate() if callable(rate) else rate, **options)


def number(option, step=0):
    """In thinc 9 it is a schedule."""
    return option(step) if callable(option) else option


def gradients():
    rng = np.random.default_rng(11)
    return [[rng.standard_normal(s).astype("f") for s in SHAPES] for _ in range(STEPS)]


def run(optimizer, lr_scale=1.0):
    """Weights after some steps; all gradients come back as zeros."""
    rng = np.random.default_rng(12)
    weights = [rng.standard_normal(s).astype("f") for s in SHAPES]
    for grads in gradients():
        for key, w, g in zip(KEYS, weights, grads, strict=True):
            back, zeros = optimizer(key, w, g, lr_scale=lr_scale)
            assert back is w
            assert zeros is g
            assert not g.any()
        optimizer.step_schedules()
    return weights


@pytest.mark.parametrize("lr_scale", [1.0, 0.3])
@pytest.mark.parametrize("options", NUMBERS.values(), ids=NUMBERS)
def test_the_bits_are_thincs(options, lr_scale):
    theirs, mine = (made(module.SGD, **options) for module in (thinc, ours))
    for a, b in zip(run(mine, lr_scale), run(theirs, lr_scale), strict=True):
        assert_same_bits(a, b)
    if options.get("use_averages", True):
        assert mine.averages.keys() == theirs.averages.keys() == {*KEYS}
        for key in KEYS:
            assert_same_bits(mine.averages[key], theirs.averages[key])
    else:
        assert mine.averages is None
    assert mine.nr_update == theirs.nr_update
    assert number(mine.learn_rate, STEPS) == number(theirs.learn_rate, STEPS)


@pytest.mark.parametrize("options", CLIPPED.values(), ids=CLIPPED)
def test_clipped_it_is_thincs_to_the_rounding_of_the_norm(options):
    """thinc sums the norm's squares in float32."""
    clipped, found = (run(made(module.SGD, **options)) for module in (thinc, ours))
    for a, b in zip(found, clipped, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=STEPS * 4 * np.finfo("f").eps)
    free = run(made(ours.SGD, **{**options, "grad_clip": 0.0}))
    assert np.abs(free[0] - clipped[0]).max() > 0.01


def expected(rule, state, **options):
    """The weights after the twin's steps with these options, as the optimizer has them."""
    rng = np.random.default_rng(12)
    weights = [rng.standard_normal(s).astype("f") for s in SHAPES]
    limit, momentum = options.pop("grad_clip", 0.0), options.pop("momentum", None)
    for t, grads in enumerate(gradients()):
        if momentum is not None:
            options["momentum"] = momentum[min(t, 2)] if isinstance(momentum, list) else momentum
        for w, g, s in zip(weights, grads, state, strict=True):
            norm = reference.grad_norm([g], ["f"])
            clip = reference.clip_factor(limit, norm, 0.0) if limit else 1.0
            rule(w, g, s, t, lr=0.1, clip=clip, **options)
    return weights


@pytest.mark.parametrize(
    "options",
    [
        {"momentum": 0.9},
        {"momentum": 0.9, "nesterov": True},
        {"momentum": 0.9, "form": "classic"},
        {"momentum": 0.9, "form": "ema"},
        {"momentum": [0.0, 0.0, 0.7]},
        {"momentum": 0.5, "grad_clip": 0.5},
        {"momentum": 0.0, "grad_clip": 0.5},
    ],
    ids=str,
)
def test_momentum_is_thalwegs(options):
    optimizer = ours.SGD(0.1, use_averages=False, **{"grad_clip": 0.0, **options})
    found = run(optimizer)
    state = [np.zeros(s, "f") if options["momentum"] else None for s in SHAPES]
    for w, other in zip(found, expected(reference.sgd, state, **options), strict=True):
        assert_same_bits(w, other)
    if options["momentum"]:
        assert [*optimizer.mom1] == KEYS
        for key, v in zip(KEYS, state, strict=True):
            assert_same_bits(optimizer.mom1[key], v)
    else:
        assert optimizer.mom1 == {}


@pytest.mark.parametrize(
    "options", [{}, {"eps": 1e-3, "eps_placement": "outside"}, {"grad_clip": 0.5}], ids=str
)
@pytest.mark.parametrize("start", [0.0, 0.1])
def test_adagrad_is_thalwegs(options, start):
    optimizer = ours.Adagrad(
        0.1, use_averages=False, initial_accumulator_value=start, **{"grad_clip": 0.0, **options}
    )
    found = run(optimizer)
    state = [np.full(s, start, "f") for s in SHAPES]
    for w, other in zip(found, expected(reference.adagrad, state, **options), strict=True):
        assert_same_bits(w, other)
    for key, s in zip(KEYS, state, strict=True):
        assert_same_bits(optimizer.mom2[key], s)


CONFIG = """
[sgd]
@optimizers = "thalweg.SGD.v1"
momentum = 0.9
nesterov = true

[sgd.learn_rate]
@schedules = "constant.v1"
rate = 0.25

[adagrad]
@optimizers = "thalweg.Adagrad.v1"
eps_placement = "outside"
"""


def test_configs_know_them():
    found = thinc.registry.resolve(thinc.Config().from_str(CONFIG))
    assert (type(found["sgd"]), type(found["adagrad"])) == (ours.SGD, ours.Adagrad)
    assert found["sgd"].nesterov is True
    assert number(found["sgd"].learn_rate) == 0.25
    assert number(found["sgd"].b1) == 0.9
    assert found["adagrad"].eps_placement == "outside"
    assert all(isinstance(each, Optimizer) for each in found.values())


def test_a_model_trains():
    X = np.random.default_rng(3).standard_normal((200, 4)).astype("f")
    Y = X @ np.array([[1.0], [-2.0], [0.5], [0.0]], "f")
    for optimizer in (ours.SGD(0.1, momentum=0.5), ours.Adagrad(0.5)):
        model = thinc.chain(thinc.Linear(8), thinc.Linear(1)).initialize(X, Y)
        for _ in range(60):
            guess, backprop = model.begin_update(X)
            backprop((guess - Y) / len(X))
            model.finish_update(optimizer)
            optimizer.step_schedules()
        assert np.mean((model.predict(X) - Y) ** 2) < 0.01
        with model.use_params(optimizer.averages):
            assert np.mean((model.predict(X) - Y) ** 2) < 0.2


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_copy_goes_on_with_the_same_bits(copied):
    for optimizer in (ours.SGD(0.1, momentum=0.9), ours.Adagrad(0.1)):
        run(optimizer)
        for a, b in zip(run(copied(optimizer)), run(optimizer), strict=True):
            assert_same_bits(a, b)


def everything(optimizer, *arrays):
    held = [*optimizer.mom1.values(), *optimizer.mom2.values(), *optimizer.averages.values()]
    return [a.tobytes() for a in (*held, *arrays)], dict(optimizer.nr_update)


def locked(array):
    array = array.copy()
    array.flags.writeable = False
    return array


class Elsewhere:
    """Of another library, as an array on a GPU is."""

    shape = (3,)

    def __len__(self):
        return 3


ONES = np.ones(3, "f")
REFUSED = {
    "read-only weights": (locked(ONES), ONES, ValueError, "read-only"),
    "read-only gradient": (ONES, locked(ONES), ValueError, r"gradient of \(5, 'W'\).*pass a copy"),
    "weights of another shape": (np.ones(4, "f"), np.ones(4, "f"), ValueError, r"mom|averages"),
    "gradient of another shape": (ONES, np.ones(2, "f"), ValueError, "shape"),
    "integers": (ONES, np.ones(3, int), TypeError, "int64"),
    "elsewhere": (Elsewhere(), ONES, TypeError, r"received test_thinc\.Elsewhere"),
    "gradient elsewhere": (ONES, Elsewhere(), TypeError, r"gradient of \(5, 'W'\).*use thinc's"),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize(
    ("rule", "options"),
    [(ours.SGD, {}), (ours.SGD, {"momentum": 0.9}), (ours.Adagrad, {})],
)
@pytest.mark.parametrize("L2", [0.0, 0.1])
def test_what_is_refused_leaves_no_trace(rule, options, case, L2):
    optimizer = rule(0.1, L2=L2, L2_is_weight_decay=False, **options)
    optimizer((5, "W"), ONES.copy(), ONES.copy())
    weights, gradient, error, words = REFUSED[case]
    arrays = [a.copy() if a is ONES else a for a in (weights, gradient)]
    real = [a for a in arrays if isinstance(a, np.ndarray)]
    before = everything(optimizer, *real)
    with pytest.raises(error, match=words):
        optimizer((5, "W"), *arrays)
    assert everything(optimizer, *real) == before


def frozen(average):
    average.flags.writeable = False


AVERAGES = {
    "read-only": lambda table, w, g: frozen(table[5, "W"]),
    "another dtype": lambda table, w, g: table.update({(5, "W"): table[5, "W"].astype("d")}),
    "the weights": lambda table, w, g: table.update({(5, "W"): w}),
    "the gradient": lambda table, w, g: table.update({(5, "W"): g[::-1]}),
}


@pytest.mark.parametrize("change", AVERAGES.values(), ids=AVERAGES)
@pytest.mark.parametrize("rule", [ours.SGD, ours.Adagrad])
def test_an_average_that_cannot_be_stepped_is_refused_before_the_weights(rule, change):
    optimizer = rule(0.1, L2=0.1)
    optimizer((5, "W"), ONES.copy(), ONES.copy())
    weights, gradient = ONES.copy(), ONES.copy()
    change(optimizer.averages, weights, gradient)
    before = everything(optimizer, weights, gradient)
    with pytest.raises(ValueError, match=r"averages\.pop\(key\)"):
        optimizer((5, "W"), weights, gradient)
    assert everything(optimizer, weights, gradient) == before


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_an_accumulator_that_cannot_begin_there_is_refused(value):
    with pytest.raises(ValueError, match="initial_accumulator_value: expected a finite number"):
        ours.Adagrad(initial_accumulator_value=value)


@pytest.mark.parametrize("name", ["L2", "learn_rate", "grad_clip"])
@pytest.mark.parametrize("rule", [ours.SGD, ours.Adagrad])
def test_numbers_out_of_range_are_refused_without_a_trace(rule, name):
    optimizer, arrays = made(rule, **{name: -1.0}), [ONES.copy(), ONES.copy()]
    with pytest.raises(ValueError, match=f"{name}|lr|max_norm"):
        optimizer((5, "W"), *arrays)
    assert all((a == ONES).all() for a in arrays)
    assert not any((optimizer.nr_update, optimizer.mom1, optimizer.mom2, optimizer.averages))


def test_no_gradient_is_no_step():
    optimizer = ours.SGD(0.1)
    w, g = np.ones((1, 2), "f"), np.zeros(0, "f")
    assert optimizer((0, "W"), w, g) == (w, g)
    assert not optimizer.nr_update


def test_names_are_locked_as_thincs_are():
    with pytest.raises(AttributeError):
        ours.SGD(0.1).lr = 0.2


@pytest.mark.slow
def test_their_tests_pass(tmp_path):
    name = "thinc.tests" if FULL else "thinc.tests.test_optimizers"
    passed = run_their_tests("their_thinc", tmp_path, "--pyargs", name)
    assert passed >= (1200 if FULL else 20)
