"""Scale, limits, decay, rule and groups in one step are the reference's, bit for bit."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import reference
import thalweg as tw
from bits import DTYPES, GRAD_DTYPES, as_integers, sample
from layouts import laid_out
from rules import RULES
from strategies import checked, gradients, levels, options, paths, rules, trees
from thalweg import _core
from twin import Twin, assert_same_norm

THREADS = [1, 2, 7]

# Every value of one meets every value of each other.
FACTORS = {
    "kernel": list(RULES),
    "dtype": DTYPES,
    "grad_dtype": GRAD_DTYPES,
    "layout": ["C", "F", "strided", "broadcast", "backwards"],
    "max_norm": [None, 3.7, 1e6],
    "max_value": [None, 0.7],
    "scale": [1.0, 0.3],
    "maximize": [False, True],
    "weight_decay": [0.0, 0.3],
    "decoupled": [False, True],
    "own": [False, True],  # what only this rule has: dampening, lr_decay
    "varying": [False, True],
    "some_none": [False, True],
    "groups": [False, True],
    "on_nonfinite": ["propagate", "skip", "raise"],
}
OWN = {
    "heavy_ball": {"dampening": 0.4},
    "adagrad_inside": {"lr_decay": 0.5, "initial_accumulator_value": 0.1},
    "adagrad_outside": {"lr_decay": 0.5, "initial_accumulator_value": 0.1},
    "adagrad_row_inside": {"lr_decay": 0.5, "initial_accumulator_value": 0.1},
    "adagrad_row_outside": {"lr_decay": 0.5, "initial_accumulator_value": 0.1},
}


def pairs(row):
    return set(itertools.combinations(row.items(), 2))


def pairwise():
    """Rows that hold every pair of values of two factors at least once."""
    rng = np.random.default_rng(1)
    missing = {
        ((a, x), (b, y))
        for a, b in itertools.combinations(FACTORS, 2)
        for x, y in itertools.product(FACTORS[a], FACTORS[b])
    }
    rows = []
    while missing:
        candidates = [
            {name: values[rng.integers(len(values))] for name, values in FACTORS.items()}
            for _ in range(40)
        ]
        best = max(candidates, key=lambda row: len(pairs(row) & missing))
        missing -= pairs(best)
        rows.append(best)
    return rows


def group_options(row):
    """Options of the two groups."""
    rule = RULES[row["kernel"]]
    common = {name: row[name] for name in ("maximize", "weight_decay", "decoupled")}
    common |= OWN.get(row["kernel"], {}) if row["own"] else {}
    if row["varying"]:
        common["lr"] = [0.1, 0.03, 0.2].__getitem__
        if rule.slot == "velocity":
            common["momentum"] = [0.9, 0.5, 0.0].__getitem__
    if not row["groups"]:
        return [common, common]
    return [common, common | {"lr": 0.025, "weight_decay": 0.07, "maximize": True}]


@pytest.mark.parametrize("row", pairwise(), ids=lambda row: row["kernel"])
def test_every_pair_of_options(row, threads):
    """Three steps; the large array brings the threads in."""
    rng = np.random.default_rng(2)
    rule, (first, second) = RULES[row["kernel"]], group_options(row)
    shapes = {"0.big": (300, 500), "0.b": (33,), "1.W": (40, 27), "1.c": (31,)}
    start = {
        name: rng.standard_normal(shape).astype(row["dtype"]) for name, shape in shapes.items()
    }
    # The matrices' gradients lie in this layout; the vectors' are dense beside them.
    steps = []
    for t in range(3):
        grads = {
            name: laid_out(
                rng.standard_normal(shape).astype(row["grad_dtype"]),
                row["layout"] if len(shape) == 2 else "C",
            )
            for name, shape in shapes.items()
        }
        if row["some_none"] and t != 1:
            grads["1.W" if t == 0 else "0.big"] = None
        steps.append(grads)
    limits = {name: row[name] for name in ("max_norm", "max_value", "on_nonfinite")}
    by_name = {name: first if name[0] == "0" else second for name in shapes}
    twin = Twin(rule, start, by_name, **limits)
    for grads in steps:
        assert twin.step(grads, row["scale"])

    before = [{name: g if g is None else g.copy() for name, g in grads.items()} for grads in steps]
    for level, count in itertools.product(_core.isa_supported, THREADS):
        threads(count)
        w = {name: x.copy() for name, x in start.items()}
        trees = [{"big": w["0.big"], "b": w["0.b"]}, {"W": w["1.W"], "c": w["1.c"]}]
        if row["groups"]:
            groups = [{"params": trees[0], **first}, {"params": trees[1], **second}]
            opt = rule.make(groups, level, **limits)
        else:
            opt = rule.make(trees, level, **first, **limits)
        for grads in steps:
            given = [{key: grads[f"{i}.{key}"] for key in tree} for i, tree in enumerate(trees)]
            assert opt.step(given, scale=row["scale"])
        twin.assert_equals(opt, w, f"at {level}, {count} threads, {row}")
    for grads, kept in zip(steps, before, strict=True):
        for name, g in grads.items():
            assert g is None or (as_integers(g) == as_integers(kept[name])).all()


# Around the lanes, the tile and the block of the sum.
SIZES = [0, 1, 31, 32, 33, 63, 65, 1023, 1024, 1025, 1057, 4095, 4096, 4097]
SIZES += [16383, 16384, 16385, 16417, 32768, 49169]


@pytest.mark.parametrize("grad_dtype", GRAD_DTYPES, ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.__name__)
def test_the_norm_at_every_size(dtype, grad_dtype, level):
    rng = np.random.default_rng(3)
    for size in SIZES:
        # Magnitudes apart, so that another order of sums gives other bits.
        grad = (rng.standard_normal(size) * 2.0 ** rng.integers(-9, 9, size)).astype(grad_dtype)
        for scale, max_value in itertools.product([1.0, 0.3], [None, 2.5]):
            opt = tw.SGD(np.ones(size, dtype), 0.0, max_norm=1.0, max_value=max_value)
            opt._use_level(level)
            opt.step(grad, scale=scale)
            expected = reference.grad_norm([grad], [dtype], scale=scale, max_value=max_value)
            assert_same_norm(opt.grad_norm, expected, f"of {size}, {scale=}, {max_value=}")


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.__name__)
def test_the_norm_depends_on_values_alone(dtype, threads):
    """Any layout of param and gradient, any level and number of threads: the same bits."""
    rng = np.random.default_rng(4)
    shapes = [(90, 70, 31), (17,), (129, 1025), (), (33, 2)]
    values = [
        (rng.standard_normal(s) * 2.0 ** rng.integers(-9, 9, s)).astype(dtype) for s in shapes
    ]
    expected = reference.grad_norm(values, [dtype] * len(values))
    layouts = ["C", "F", "strided"]
    for like, layout in itertools.product(layouts, layouts):
        params = [laid_out(np.zeros(s, dtype), like if s else "C") for s in shapes]
        grads = [laid_out(g, layout if g.shape else "C") for g in values]
        for level, count in itertools.product(_core.isa_supported, THREADS):
            threads(count)
            opt = tw.SGD(params, 0.0, max_norm=1.0)
            opt._use_level(level)
            opt.step(grads)
            assert_same_norm(opt.grad_norm, expected, f"{like}, {layout}, {level}, {count}")
    apart = (g.astype(np.float64).ravel() for g in values)
    assert expected == pytest.approx(np.linalg.norm(np.concatenate([*apart])), rel=1e-12)


def test_the_order_of_arrays_is_that_of_params():
    rng = np.random.default_rng(5)
    grads = [rng.standard_normal(5) * 10.0**k for k in (0, -7, 8, 1, -3)]
    for order in itertools.permutations(range(5)):
        opt = tw.SGD({k: np.ones(5) for k in order}, max_norm=1.0)
        opt.step({k: grads[k] for k in sorted(order)})
        expected = reference.grad_norm([grads[k] for k in order], [np.float64] * 5)
        assert_same_norm(opt.grad_norm, expected, str(order))


NORMS = {
    "overflow": [1e200, -1e200, 3.0],
    "inf": [np.inf, 1.0, -2.0],
    "-inf": [1.0, -np.inf, 0.0],
    "nan": [np.nan, 1.0, 0.0],
    "both": [np.nan, np.inf, 1.0],
    "zero": [0.0, -0.0, 0.0],
    "underflow": [1e-200, -1e-200, 5e-324],
    "exactly max_norm": [0.6, 0.8, 0.0],
    "just below": [0.5999994, 0.7999992, 0.0],
}


@pytest.mark.parametrize("grad", NORMS.values(), ids=NORMS)
@pytest.mark.parametrize("on_nonfinite", ["propagate", "skip"])
def test_norms_at_the_edge(grad, on_nonfinite, level):
    """As NumPy: an infinite norm gives c = 0, a NaN c = NaN. Judged, neither is a step."""
    params = {"0": np.array([1.0, -2.0, 3.0]), "1": np.ones(2, np.float32)}
    grads = {"0": np.array(grad), "1": np.zeros(2)}
    for rule in RULES.values():
        limits = {"max_norm": 1.0, "on_nonfinite": on_nonfinite}
        twin = Twin(rule, params, {"0": {}, "1": {}}, **limits)
        w = {name: x.copy() for name, x in params.items()}
        opt = rule.make([w["0"], w["1"]], level, **limits)
        for _ in range(2):
            applied = opt.step([grads["0"], grads["1"]])
            assert applied == twin.step(grads)
            assert applied == (
                on_nonfinite == "propagate" or math.isfinite(sum(g * g for g in grad))
            )
        twin.assert_equals(opt, w, rule.kernel)


def test_the_factor_is_rounded_once_and_applied_below_one():
    rng = np.random.default_rng(6)
    for dtype in DTYPES:
        for max_norm in 10 ** rng.uniform(-3, 2, 300):
            grad = rng.standard_normal(9).astype(dtype)
            w, twin = np.zeros(9, dtype), Twin(RULES["sgd"], {"": np.zeros(9, dtype)}, {"": {}})
            twin.max_norm = max_norm
            opt = tw.SGD(w, 0.1, max_norm=max_norm)
            assert opt.step(grad)
            assert twin.step({"": grad})
            twin.assert_equals(opt, {"": w}, f"max_norm {max_norm!r}")


def test_limits_can_be_changed_between_steps():
    w, grads = np.zeros(3), [np.array([3.0, 4.0, 0.0])] * 4
    opt, twin = tw.SGD(w, 0.1), Twin(RULES["sgd"], {"": w}, {"": {}})
    assert (opt.max_norm, opt.max_value, opt.on_nonfinite) == (None, None, "propagate")
    for grad, limits in zip(grads, [{}, {"max_norm": 2}, {"max_value": 0.5}, {}], strict=True):
        for name in ("max_norm", "max_value"):
            setattr(opt, name, limits.get(name))
            setattr(twin, name, limits.get(name))
        opt.step(grad)
        twin.step({"": grad})
        twin.assert_equals(opt, {"": w}, str(limits))
    assert opt.grad_norm == 5.0  # of the last step that clipped


@checked
@given(st.data(), trees.filter(paths), rules, levels)
def test_any_tree_with_any_limits(data, tree, rule, level):
    chosen = data.draw(options(rule), label="options")
    limits = {
        "max_norm": data.draw(st.sampled_from([None, 1e-3, 1.0, 1e30]), label="max_norm"),
        "max_value": data.draw(st.sampled_from([None, 0.5, 1e10]), label="max_value"),
        "on_nonfinite": data.draw(st.sampled_from(["propagate", "skip"]), label="on_nonfinite"),
    }
    arrays = paths(tree)
    twin = Twin(rule, arrays, dict.fromkeys(arrays, chosen), **limits)
    opt = rule.make(tree, level, **chosen, **limits)
    for _ in range(data.draw(st.integers(1, 3), label="steps")):
        scale = data.draw(st.sampled_from([1.0, 0.1, 2.0**-10]), label="scale")
        grads, named = data.draw(gradients(tree, False), label="gradients")
        assert opt.step(grads, scale=scale) == twin.step(named, scale)
    twin.assert_equals(opt, arrays)


@checked
@given(
    st.lists(st.integers(0, 70_000), min_size=1, max_size=3),
    st.sampled_from(DTYPES),
    st.sampled_from(GRAD_DTYPES),
    levels,
    st.integers(0, 2**32 - 1),
)
def test_the_norm_of_any_sizes(sizes, dtype, grad_dtype, level, seed):
    """Any bits, too: a NaN or an infinity anywhere is in the norm."""
    rng = np.random.default_rng(seed)
    fill = sample if seed % 2 else lambda rng, n, dtype: rng.standard_normal(n).astype(dtype)
    grads = [fill(rng, n, grad_dtype) for n in sizes]
    opt = tw.SGD([np.zeros(n, dtype) for n in sizes], max_norm=1.0)
    opt._use_level(level)
    opt.step(grads)
    assert_same_norm(opt.grad_norm, reference.grad_norm(grads, [dtype] * len(sizes)))
