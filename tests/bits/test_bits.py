"""The bits of every rule, at every ISA level, are those of the NumPy twin."""

import inspect
import itertools

import numpy as np
import pytest

import reference
import thalweg as tw
from bits import DTYPES, GRAD_DTYPES, assert_same_bits, place, random_bits, sample, sample_state
from conftest import expected_levels
from rules import RULES
from thalweg import _core
from thalweg._optimizer.base import Optimizer

each_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
VELOCITY_RULES = [rule for rule in RULES.values() if rule.slot == "velocity"]
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.__name__)

# Around the tile of 1,024 elements and the block of 16,384.
EDGES = [1023, 1024, 1025, 2047, 2049, 3072, 16383, 16384, 16385, 32768 + 17]


def test_every_level_of_this_cpu_is_found():
    assert set(_core.isa_supported) == expected_levels()


def test_every_optimizer_has_a_twin_with_its_options_and_defaults():
    own = {"params", "grads", "scale", "param", "grad", "velocity", "accumulator", "t"}
    # Of the arrays as they are made, and of the step as a whole.
    own |= {"initial_accumulator_value", "max_norm", "on_nonfinite", "clip"}
    own |= {"max_array_norm", "norm_eps", "state", "watch"}
    own |= {"zero_grads", "weight_average"}
    own |= {"per"}  # accumulator="row", by the name that the state leaves free
    for optimizer in Optimizer.__subclasses__():
        if getattr(tw, optimizer.__name__, None) is not optimizer:
            continue
        twin = getattr(reference, optimizer.__name__.lower())
        options = [inspect.signature(f).parameters for f in (optimizer, twin)]
        ours, theirs = ({k: p for k, p in o.items() if k not in own} for o in options)
        assert set(ours) == set(theirs)
        required = inspect.Parameter.empty
        for name, parameter in theirs.items():
            assert parameter.default in (ours[name].default, required), name
        assert any(rule.optimizer is optimizer for rule in RULES.values())


class Row:
    """Arrays of many sizes in one buffer, with gaps between them that nobody may write."""

    def __init__(self, sizes):
        starts = list(itertools.accumulate(((n + 16) // 16 * 16 + 16 for n in sizes), initial=0))
        self.length = starts.pop()
        self.spans = [slice(start, start + n) for start, n in zip(starts, sizes, strict=True)]
        self.inside = np.zeros(self.length, bool)
        for span in self.spans:
            self.inside[span] = True

    def arrays(self, buffer):
        return [buffer[span] for span in self.spans]

    def expected(self, rule, param, grad, state, t, **options):
        """Param and state after the twin's step; every rule is elementwise."""
        after = param.copy(), state.copy()
        rule.twin(after[0], grad, after[1], t, **options)
        return [np.where(self.inside, x, old) for x, old in zip(after, (param, state), strict=True)]

    def operands(self, rule, dtype, seed, grad_dtype=None):
        rng = np.random.default_rng(seed)
        return (
            sample(rng, self.length, dtype),
            sample(rng, self.length, grad_dtype or dtype),
            sample_state(rng, self.length, dtype, rule.slot),
        )


@each_rule
@each_dtype
def test_every_size_at_every_byte_offset(rule, dtype, level):
    row = Row(range(257))
    param, grad, state = row.operands(rule, dtype, 1)
    expected = row.expected(rule, param, grad, state, 1)
    for k, apart in itertools.product(range(16), (False, True)):
        offsets = (k, 5 * k % 16, 11 * k % 16) if apart else (k, k, k)
        w, g, s = (place(x, at) for x, at in zip((param, grad, state), offsets, strict=True))
        rule.apply(row.arrays(w), row.arrays(g), row.arrays(s), level)
        assert_same_bits(w, expected[0], f"param at byte offsets {offsets}")
        assert_same_bits(s, expected[1], f"state at byte offsets {offsets}")
        assert_same_bits(g, grad, "gradient")


@each_rule
@each_dtype
def test_every_size_at_every_byte_offset_in_an_optimizer(rule, dtype, level):
    row = Row(range(257))
    param, first, _ = row.operands(rule, dtype, 2)
    second = sample(np.random.default_rng(3), row.length, dtype)
    state = np.zeros_like(param)
    after_first = row.expected(rule, param, first, state, 0)
    expected, state = row.expected(rule, after_first[0], second, after_first[1], 1)
    for k in range(16):
        w, g = place(param, k), place(first, 7 * k % 16)
        opt = rule.make(row.arrays(w), level)
        assert opt.step(row.arrays(g))
        g[...] = second
        assert opt.step(row.arrays(g))
        assert_same_bits(w, expected, f"param at byte offset {k}")
        if rule.slot:
            states = np.concatenate([opt.state[name][rule.slot] for name in opt.state])
            assert_same_bits(states, state[row.inside], f"state at byte offset {k}")


@each_rule
@each_dtype
@pytest.mark.parametrize("grad_dtype", GRAD_DTYPES, ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_sizes_around_tiles_and_blocks(rule, dtype, grad_dtype, scale):
    row = Row(EDGES)
    param, grad, state = row.operands(rule, dtype, 4, grad_dtype)
    expected = row.expected(rule, param, grad, state, 1, scale=scale)
    for level, offset in itertools.product(_core.isa_supported, (0, 3, 8)):
        w, g, s = place(param, offset), place(grad, 16 - offset), place(state, offset)
        rule.apply(row.arrays(w), row.arrays(g), row.arrays(s), level, scale=scale)
        assert_same_bits(w, expected[0], f"param at {level}, byte offset {offset}")
        assert_same_bits(s, expected[1], f"state at {level}, byte offset {offset}")


@each_rule
@each_dtype
def test_any_bit_pattern(rule, dtype, level):
    rng = np.random.default_rng(5)
    for options in ({}, {"scale": 3.0, "maximize": True}, {"weight_decay": 0.1}):
        w, g, s = (random_bits(rng, 20_011, dtype) for _ in range(3))
        w, s = w.copy(), s.copy()
        expected, state = w.copy(), s.copy()
        for _ in range(2):
            rule.twin(expected, g, state, 1, **options)
            rule.apply([w], [g], [s], level, **options)
            assert_same_bits(w, expected, f"param with {options}")
            if rule.slot:
                assert_same_bits(s, state, f"state with {options}")


@each_rule
@each_dtype
def test_subnormals(rule, dtype, level):
    rng = np.random.default_rng(6)
    tiny = np.finfo(dtype).tiny
    w, g, s = (np.abs(rng.standard_normal(4099) * 4).astype(dtype) * tiny for _ in range(3))
    expected, state = w.copy(), s.copy()
    for _ in range(3):
        rule.twin(expected, g, state, 1)
        rule.apply([w], [g], [s], level)
    assert_same_bits(w, expected, "param")
    if rule.slot:
        assert_same_bits(s, state, "state")


@each_rule
@each_dtype
def test_a_shift_changes_no_element(rule, dtype, level):
    rng = np.random.default_rng(7)
    param, grad = sample(rng, 1500, dtype), sample(rng, 1500, dtype)
    state = sample_state(rng, 1500, dtype, rule.slot)
    whole, whole_state = param.copy(), state.copy()
    rule.apply([whole], [grad], [whole_state], level)
    for shift in range(1, 64):
        for kept in (slice(None), slice(shift, None)):
            w, g, s = (place(x[kept], shift * x.itemsize) for x in (param, grad, state))
            rule.apply([w], [g], [s], level)
            assert_same_bits(w, whole[kept], f"param shifted by {shift}")
            assert_same_bits(s, whole_state[kept], f"state shifted by {shift}")


OPTIONS = {
    "weight_decay": [0.0, 0.3],
    "decoupled": [False, True],
    "maximize": [False, True],
    "scale": [1.0, 0.3],
    "schedule": [False, True],
    "grad_dtype": GRAD_DTYPES,
}


def option_runs(name):
    """All combinations; each is cheap enough not to leave any out."""
    own = {
        "heavy_ball": {"dampening": [0.0, 0.4]},
        "adagrad_inside": {"lr_decay": [0.0, 0.5], "initial_accumulator_value": [0.0, 0.1]},
        "adagrad_outside": {"lr_decay": [0.0, 0.5], "initial_accumulator_value": [0.0, 0.1]},
    }
    grid = OPTIONS | own.get(name, {})
    return (dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values()))


@each_rule
@each_dtype
def test_every_combination_of_options(rule, dtype):
    """Four steps; one array misses the second, so that its own count of steps falls behind."""
    rng = np.random.default_rng(8)
    start = [sample(rng, n, dtype) for n in (37, 5)]
    for run in option_runs(rule.kernel):
        grads = [[sample(rng, w.size, run["grad_dtype"]) for w in start] for _ in range(4)]
        grads[1][1] = None
        initial = run.get("initial_accumulator_value", 0.0)
        numbers = {k: x for k, x in run.items() if k in ("dampening", "lr_decay", "weight_decay")}
        fixed = numbers | {k: run[k] for k in ("decoupled", "maximize")}
        varying = {"lr": [0.1, 0.05, 0.2, 0.0]}
        if rule.optimizer is tw.SGD and rule.slot:
            varying["momentum"] = [0.9, 0.5, 0.0, 0.0]
        per_step = [
            {k: x[t] for k, x in varying.items()} if run["schedule"] else {} for t in range(4)
        ]

        expected = [w.copy() for w in start]
        states = [np.full_like(w, initial) for w in start]
        steps = [0, 0]
        for options, step_grads in zip(per_step, grads, strict=True):
            for i, g in enumerate(step_grads):
                if g is not None:
                    rule.twin(
                        expected[i], g, states[i], steps[i], **fixed, **options, scale=run["scale"]
                    )
                    steps[i] += 1

        made_with = fixed | {k: x for k, x in run.items() if k == "initial_accumulator_value"}
        if run["schedule"]:
            made_with |= {k: x.__getitem__ for k, x in varying.items()}
        for level in _core.isa_supported:
            params = [w.copy() for w in start]
            opt = rule.make(params, level, **made_with)
            for g in grads:
                opt.step(g, scale=run["scale"])
            for i, w in enumerate(params):
                assert_same_bits(w, expected[i], f"params[{i}] at {level} with {run}")
                assert opt.state[str(i)]["step"] == steps[i]
                if rule.slot:
                    state = opt.state[str(i)][rule.slot]
                    assert_same_bits(state, states[i], f"state[{i}] at {level} with {run}")


def random_numbers(rng, rule):
    """Options with all their digits."""
    numbers = {"lr": 10 ** rng.uniform(-4, 1), "weight_decay": 10 ** rng.uniform(-4, 1)}
    if rule.slot == "velocity":
        numbers["momentum"] = rng.uniform()
    if rule.kernel == "heavy_ball":
        numbers["dampening"] = rng.uniform()
    if rule.slot == "accumulator":
        numbers |= {"eps": 10 ** rng.uniform(-9, 0), "lr_decay": 10 ** rng.uniform(-2, 1)}
    return numbers


@each_rule
@each_dtype
@pytest.mark.parametrize("decoupled", [False, True], ids=["coupled", "decoupled"])
def test_every_scalar_is_rounded_once(rule, dtype, decoupled, level):
    rng = np.random.default_rng(10)
    for _ in range(100):
        options = random_numbers(rng, rule) | {"decoupled": decoupled}
        scale = 10 ** rng.uniform(-2, 2)
        w, expected, state = rng.standard_normal((3, 20)).astype(dtype)
        expected[...], state[...] = w, 0
        opt = rule.make(w, level, **options)
        for t in range(3):
            grad = rng.standard_normal(20).astype(dtype)
            opt.step(grad, scale=scale)
            rule.twin(expected, grad, state, t, **options, scale=scale)
        assert_same_bits(w, expected, f"{options}, scale {scale}")


@pytest.mark.parametrize("rule", VELOCITY_RULES, ids=lambda rule: rule.kernel)
def test_momentum_set_to_zero_later_keeps_the_form(rule, level):
    rng = np.random.default_rng(9)
    w = sample(rng, 100, np.float32)
    expected, velocity = w.copy(), np.zeros_like(w)
    opt = rule.make(w, level)
    for t, momentum in enumerate([0.9, 0.0, 0.9]):
        g = sample(rng, 100, np.float32)
        opt.param_groups[0]["momentum"] = momentum
        opt.step(g)
        rule.twin(expected, g, velocity, t, momentum=momentum)
    assert_same_bits(w, expected, "param")
    assert_same_bits(opt.state[""]["velocity"], velocity, "velocity")


def test_a_velocity_without_gradient_ends_at_zero(level):
    w = np.zeros(5, np.float32)
    opt = tw.SGD(w, lr=1e-3, momentum=0.5)
    opt._use_level(level)
    opt.step(np.ones(5, np.float32))
    for _ in range(126):
        opt.step(np.zeros(5, np.float32))
    assert (opt.state[""]["velocity"] == np.finfo(np.float32).tiny).all()
    opt.step(np.zeros(5, np.float32))
    assert not opt.state[""]["velocity"].any()


@pytest.mark.parametrize(
    ("make", "end"),
    [
        (lambda x: tw.SGD(x, lr=0.4), (-0.9434666458139824, -7.312316880125978e-05)),
        (lambda x: tw.SGD(x, lr=0.6), (-0.38781396819094793, -1673.365108505695)),
        (lambda x: tw.SGD(x, lr=0.6, momentum=0.5), (0.007187866737294238, 0.0025532747547120736)),
        (lambda x: tw.Adagrad(x, lr=0.4, eps=1e-6), (-2.382562771979649, -0.15859055003666966)),
    ],
    ids=["descent", "divergence", "momentum", "adagrad"],
)
def test_the_valley(make, end, level):
    """f = 0.1 x1^2 + 2 x2^2, twenty steps from (-5, -2): D2L chapter 12."""
    x = np.array([-5.0, -2.0])
    opt = make(x)
    opt._use_level(level)
    for _ in range(20):
        opt.step(np.array([0.2, 4.0]) * x)
    np.testing.assert_allclose(x, end, rtol=1e-12, atol=1e-12)
