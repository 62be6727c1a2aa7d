"""find_rate: where theory says, a rate that trains, and nothing left changed."""

import math
import random
import signal
import sys
from functools import partial

import numpy as np
import pytest

import thalweg as tw
from bits import assert_same_bits
from conftest import FULL
from example_code import AIRFOIL, load, write_like_airfoil

CURVATURE = np.array([0.2, 4.0])  # f = 0.1 x1^2 + 2 x2^2, so that L = 4
L = 4.0


def valley(make, **options):
    x = np.array([-5.0, -2.0])
    opt = make(x)
    return tw.find_rate(opt, lambda: ((CURVATURE * x * x).sum() / 2, CURVATURE * x), **options)


@pytest.mark.parametrize("mu", [0.0, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("form", ["heavy_ball", "classic"])
def test_valley_diverges_where_theory_says(mu, form):
    found = valley(partial(tw.SGD, momentum=mu, form=form))
    assert found.diverged == pytest.approx(2 * (1 + mu) / L, rel=0.05)


def test_other_rules_diverge_where_theory_says():
    mu = 0.9
    nesterov = valley(partial(tw.SGD, momentum=mu, nesterov=True))
    assert nesterov.diverged == pytest.approx(2 * (1 + mu) / (1 + 2 * mu) / L, rel=0.05)
    average = valley(partial(tw.SGD, momentum=mu, form="ema"))
    assert average.diverged == pytest.approx(2 * (1 + mu) / (1 - mu) / L, rel=0.05)
    decayed = valley(partial(tw.SGD, weight_decay=1.0))
    assert decayed.diverged == pytest.approx(2 / (L + 1.0), rel=0.05)


@pytest.mark.parametrize("mu", [0.99, 0.999])
def test_a_slow_swing_is_no_divergence(mu):
    """With so much momentum the loss rises again and again, but not above where it began."""
    x = np.ones(1)
    opt = tw.SGD(x, momentum=mu)
    found = tw.find_rate(opt, lambda: (float(x[0] ** 2) / 2, x.copy()), low=1e-4)
    assert found.diverged == pytest.approx(2 * (1 + mu), rel=0.05)
    assert not any(trial.diverged for trial in found.trials if trial.rate < found.diverged)
    assert found.trials[0].rate < 0.01


def test_a_hollow_on_the_way_does_not_hold_it():
    x = np.ones(1)
    opt = tw.SGD(x, lr=1e-6)

    def loss_and_grads():
        def hollow(at):
            return np.exp(-((np.log(opt.lr / at) / 1.4) ** 2))

        return 1 - 0.4 * hollow(0.3) - 0.6 * hollow(0.02), np.zeros(1)

    assert tw.find_rate(opt, loss_and_grads).suggestion == pytest.approx(0.02, rel=0.2)


def test_adagrad_diverges_nowhere():
    found = valley(tw.Adagrad)
    assert found.diverged is None
    assert "none diverges up to 10" in found.reason
    assert "diverged=nowhere" in repr(found)


def test_the_suggestion_is_well_below_the_divergence():
    found = valley(tw.SGD)
    assert found.suggestion <= 0.5 * found.diverged
    assert "half of the rate from which on steps diverge" in found.reason
    assert [trial.rate for trial in found.trials] == sorted(trial.rate for trial in found.trials)
    assert all(trial.diverged == math.isinf(trial.loss) for trial in found.trials)


RULES = {
    "descent": tw.SGD,
    "momentum": partial(tw.SGD, momentum=0.9),
    "nesterov": partial(tw.SGD, momentum=0.9, nesterov=True),
    "adagrad": tw.Adagrad,
}


@pytest.fixture(params=["nasa", "like nasa's"])
def data(request, monkeypatch, tmp_path):
    airfoil = load("airfoil", monkeypatch)
    path = AIRFOIL
    if request.param != "nasa":
        path = tmp_path / "synthetic.dat"
        write_like_airfoil(path)
    elif not path.exists():
        pytest.skip(f"needs the airfoil data: {AIRFOIL.name} at $THALWEG_AIRFOIL")
    return airfoil, *airfoil.read(path)


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES)
def test_airfoil_trains_within_two_percent_of_the_best_rate(data, rule):
    airfoil, X, y = data

    def end(lr, seed):
        return airfoil.train(partial(RULES[rule], lr=lr), X, y, 2, seed)[1][-1]

    for seed in range(3 if FULL else 1):
        rng = np.random.default_rng(seed)
        params = {"w": rng.normal(0, 0.01, X.shape[1]), "b": np.zeros(1)}

        def loss_and_grads(params=params, rng=rng):
            rows = rng.integers(0, len(X), airfoil.BATCH)
            loss = airfoil.half_mse(params, X[rows], y[rows])
            return loss, airfoil.gradients(params, X, y, rows)

        found = tw.find_rate(RULES[rule](params), loss_and_grads, rng=rng)
        with np.errstate(all="ignore"):
            best = np.nanmin([end(lr, seed) for lr in np.geomspace(1e-4, 3, 60 if FULL else 25)])
        assert end(found.suggestion, seed) < 1.02 * best


class Loop:
    """A training loop that has gone on for a while, with all that a search could change."""

    def __init__(self, fail_at=None, failure=None, **options):
        self.rng, self.legacy = np.random.default_rng(3), np.random.RandomState(4)
        self.python = random.Random(5)
        self.params = {
            "W": np.asfortranarray(self.rng.standard_normal((4, 3)).astype(np.float32)),
            "b": self.rng.standard_normal(6)[::2],
        }
        self.lr = tw.schedules.Exponential(0.01, 0.9)
        groups = [{"params": self.params, "lr": self.lr}, {"match": "*.b", "lr": 0.02}]
        self.opt = tw.SGD(groups, momentum=0.9, max_norm=5.0, **options)
        self.calls, self.fail_at, self.failure = -(10**9), fail_at, failure
        for _ in range(3):
            self.opt.step(self()[1])
        self.calls = 0
        self.before = self.seen()

    def __call__(self):
        self.calls += 1
        if self.calls == self.fail_at:
            raise self.failure
        noise = self.rng.normal() + self.legacy.normal() + self.python.random()
        grads = {k: (w + 0.1 * noise).astype(w.dtype) for k, w in self.params.items()}
        return sum(float((w**2).sum()) for w in self.params.values()) / 2, [grads]

    def seen(self):
        opt = self.opt
        arrays = [*self.params.values(), *(opt.state[n]["velocity"] for n in opt.state)]
        counters = [opt.step_count, opt.skipped_steps, opt.grad_norm, opt.last_lr]
        counters += [opt.state[name]["step"] for name in opt.state]
        rates = [group["lr"] for group in opt.param_groups]
        generators = [self.rng.bit_generator.state, self.python.getstate()]
        legacy = [part.tolist() for part in map(np.asarray, self.legacy.get_state())]
        return [a.copy() for a in arrays], [*counters, rates, generators, legacy]

    def find(self, **options):
        rng = [self.rng, self.legacy, self.python]
        return tw.find_rate(self.opt, self, steps=40, rng=rng, **options)

    def assert_unchanged(self):
        arrays, others = self.seen()
        for found, kept in zip(arrays, self.before[0], strict=True):
            assert_same_bits(found, kept)
        assert others == self.before[1]
        assert self.opt.param_groups[0]["lr"] is self.lr


def test_everything_is_put_back():
    loop = Loop()
    loop.find()
    assert loop.calls > 100
    loop.assert_unchanged()


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), ValueError("mine"), StopIteration()])
@pytest.mark.parametrize("at", [1, 2, 40, 41, 60, 150])
def test_everything_is_put_back_after_an_exception(at, failure):
    loop = Loop(at, failure)
    with pytest.raises(type(failure)) as raised:
        loop.find()
    assert raised.value is failure
    loop.assert_unchanged()


def test_everything_is_put_back_when_it_is_interrupted_again(monkeypatch):
    from thalweg._range_test.kept import KeptAll

    loop = Loop(60, ValueError("mine"))
    put_back, left = KeptAll.put_back, [3]

    def interrupted(self):
        if loop.calls >= 60 and left[0]:
            left[0] -= 1
            raise KeyboardInterrupt
        put_back(self)

    monkeypatch.setattr(KeptAll, "put_back", interrupted)
    with pytest.raises(KeyboardInterrupt):
        loop.find()
    assert left == [0]
    loop.assert_unchanged()


@pytest.mark.skipif(sys.platform == "win32", reason="setitimer is POSIX's")
def test_everything_is_put_back_whenever_ctrl_c_comes():
    def interrupt(*_):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    interrupted = 0
    try:
        for i in range(400 if FULL else 60):
            loop = Loop()
            signal.setitimer(signal.ITIMER_REAL, 1e-4 + 2e-4 * i)
            try:
                loop.find()
            except KeyboardInterrupt:
                interrupted += 1
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
            loop.assert_unchanged()
    finally:
        signal.signal(signal.SIGALRM, before)
    assert interrupted > 10


def test_every_run_has_the_same_batches():
    rng = np.random.default_rng(0)
    w = np.ones(1)
    drawn = []

    def loss_and_grads():
        drawn.append(rng.random())
        return float(w[0] ** 2), 2 * w

    found = tw.find_rate(tw.SGD(w), loss_and_grads, rng=rng)
    starts = [i for i, value in enumerate(drawn) if value == drawn[0]]
    assert len(starts) == 1 + len(found.trials)
    runs = [drawn[i:j] for i, j in zip(starts, [*starts[1:], len(drawn)], strict=True)]
    longest = max(runs, key=len)
    assert all(run == longest[: len(run)] for run in runs)


def test_groups_keep_the_ratios_of_their_rates():
    x, y = np.array([1.0]), np.array([1.0])
    opt = tw.SGD([{"params": x, "lr": 0.1}, {"params": y, "lr": 0.4}])

    def loss_and_grads():
        first, second = (group["lr"] for group in opt.param_groups)
        assert second == pytest.approx(4 * first)
        return float(x[0] ** 2 + y[0] ** 2) / 2, [x.copy(), y.copy()]

    # y is the first to diverge, at 2 for itself.
    assert tw.find_rate(opt, loss_and_grads).diverged == pytest.approx(0.5, rel=0.05)


@pytest.mark.parametrize("failing", [False, True])
def test_joint_keeps_the_ratios_and_is_put_back(failing):
    x, y = np.array([1.0]), np.array([1.0])
    rates = tw.schedules.Constant(0.1), 0.4
    slow, fast = tw.SGD(x, lr=rates[0], momentum=0.9), tw.SGD(y, lr=rates[1])
    joint = tw.Joint(slow=slow, fast=fast, max_norm=math.inf, on_nonfinite="skip")
    joint.step({"slow": x.copy(), "fast": y.copy()})
    kept = x.copy(), y.copy(), slow.state[""]["velocity"].copy()
    counters = joint.step_count, joint.grad_norm, joint.skipped_steps, slow.last_lr
    calls = 0

    def loss_and_grads():
        nonlocal calls
        calls += 1
        if failing and calls == 300:
            raise ZeroDivisionError
        assert fast.lr == pytest.approx(4 * (slow.lr(0) if callable(slow.lr) else slow.lr))
        return float(x[0] ** 2 + y[0] ** 2) / 2, {"slow": x.copy(), "fast": y.copy()}

    if failing:
        with pytest.raises(ZeroDivisionError):
            tw.find_rate(joint, loss_and_grads)
    else:
        assert tw.find_rate(joint, loss_and_grads).diverged == pytest.approx(0.5, rel=0.05)
    assert (slow.lr, fast.lr) == rates
    for array, before in zip((x, y, slow.state[""]["velocity"]), kept, strict=True):
        assert_same_bits(array, before)
    assert counters == (joint.step_count, joint.grad_norm, joint.skipped_steps, slow.last_lr)


def test_joint_with_bound_gradients():
    x, g = np.array([1.0]), np.array([1.0])
    joint = tw.Joint(one=tw.SGD(x, grads=g))

    def loss_and_grads():
        np.copyto(g, x)
        return float(x[0] ** 2) / 2, None

    assert tw.find_rate(joint, loss_and_grads).diverged == pytest.approx(2.0, rel=0.05)


def test_all_rates_zero_are_one_rate():
    x = np.array([1.0, 1.0])
    opt = tw.SGD([{"params": x[:1]}, {"params": x[1:]}], lr=0.0)
    found = tw.find_rate(opt, lambda: (float((x**2).sum()) / 2, [x[:1].copy(), x[1:].copy()]))
    assert found.diverged == pytest.approx(2.0, rel=0.05)


def test_bound_gradients_and_what_the_optimizer_refuses():
    x, g = np.array([1.0], np.float32), np.array([1.0], np.float32)

    def loss_and_grads():
        with np.errstate(all="raise"):
            g[...] = np.clip(2 * x, -3e38, 3e38)
        return float(x[0]) ** 2, None

    for on_nonfinite in ("propagate", "skip", "raise"):
        opt = tw.SGD(x, grads=g, on_nonfinite=on_nonfinite)
        assert tw.find_rate(opt, loss_and_grads).diverged == pytest.approx(1.0, rel=0.05)
        assert x == 1
        assert opt.step_count == opt.skipped_steps == 0


def test_a_gradient_that_is_not_finite_is_a_divergence():
    x = np.array([1.0])

    def loss_and_grads():
        g = 2 * x if abs(x[0]) < 3 else x * np.inf
        return min(float(x[0] ** 2), 4.0), g

    for on_nonfinite in ("skip", "raise"):
        opt = tw.SGD(x, on_nonfinite=on_nonfinite)
        assert tw.find_rate(opt, loss_and_grads).diverged == pytest.approx(1.0, rel=0.05)


def test_nothing_warns_and_the_modes_stay():
    before = np.geterr()
    seen = []

    def loss_and_grads():
        seen.append(np.geterr())
        return float(x[0] ** 2), 2 * x

    x = np.array([1.0], np.float32)
    tw.find_rate(tw.SGD(x), loss_and_grads)
    assert np.geterr() == before
    assert all(mode["over"] == "ignore" for mode in seen)


def wrong(**options):
    x = np.ones(2)
    arguments = {"opt": tw.SGD(x), "loss_and_grads": lambda: (float((x**2).sum()), 2 * x)}
    return tw.find_rate(**arguments | options)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"opt": np.ones(2)}, TypeError, "opt: expected SGD, Adagrad or Joint, received ndarray"),
        ({"loss_and_grads": 1.0}, TypeError, r"expected a callable, .* received float"),
        ({"loss_and_grads": lambda: 1.0}, TypeError, r"expected a pair, .* received float"),
        ({"loss_and_grads": lambda: ("a", 0)}, TypeError, "expected a number as loss, .* str"),
        ({"loss_and_grads": lambda: (np.nan, 0)}, ValueError, "expected a finite loss"),
        ({"loss_and_grads": lambda: (1.0, np.ones(3))}, ValueError, r"shape \(2,\)"),
        ({"low": 0.0}, ValueError, "0 < low < high"),
        ({"low": "1"}, TypeError, "low: expected a number"),
        ({"high": 1e-7}, ValueError, "0 < low < high"),
        ({"high": np.inf}, ValueError, "0 < low < high"),
        ({"low": 2.0}, ValueError, "low: expected a rate at which the loss does not diverge"),
        ({"steps": 19}, ValueError, "steps: expected a whole number >= 20, received 19"),
        ({"steps": 1e3}, ValueError, "steps: expected a whole number"),
        ({"tolerance": 0}, ValueError, "tolerance: expected a number from 0 to 1"),
        ({"smoothing": 1.0}, ValueError, "smoothing: expected a number from 0 to 1"),
        ({"rng": 7}, TypeError, "rng: expected numpy.random.Generator, .* received int"),
    ],
)
def test_what_is_refused(options, error, message):
    with pytest.raises(error, match=message):
        wrong(**options)


def test_uphill_is_refused_with_the_cure():
    x = np.ones(1)
    with pytest.raises(ValueError, match="look at the gradients' sign"):
        tw.find_rate(tw.SGD(x), lambda: (float(x[0] ** 2), -2 * x), low=1e-2)


def test_plot_draws(monkeypatch, tmp_path):
    load("airfoil", monkeypatch)
    import matplotlib.pyplot as plt

    found = valley(tw.SGD)
    axes = found.plot()
    texts = [text.get_text() for text in axes.get_legend().get_texts()]
    assert "diverges from 0.499 on" in texts
    assert axes.get_xscale() == "log"
    assert found.plot(axes) is axes
    plt.close(axes.figure)
    assert len(valley(tw.Adagrad).plot().lines) == 4
    plt.close("all")
