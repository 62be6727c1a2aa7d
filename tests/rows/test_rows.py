"""Gradients that name their rows: the bits are those of one update of each distinct row."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import reference
import thalweg as tw
from bits import DTYPES, GRAD_DTYPES, assert_same_bits, sample, sample_state
from layouts import LAYOUTS, assert_nothing_around_it_changed, lay
from rules import RULES
from strategies import arrays, checked, levels, options, rules
from thalweg import _core
from twin import Twin

THREADS = [1, 2, 7]
ID_DTYPES = [np.int32, np.int64]
NAMES = ["sgd", "heavy_ball_nesterov", "adagrad_inside", "adagrad_row_outside"]
each_name = pytest.mark.parametrize("name", NAMES)
each_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.__name__)
each_grad_dtype = pytest.mark.parametrize("grad_dtype", GRAD_DTYPES, ids=lambda d: d.__name__)


pytestmark = pytest.mark.usefixtures("threads")


@st.composite
def row_numbers(draw, table):
    """Numbers of rows that a table has, in any order and how often soever."""
    every = np.arange(table)
    kinds = {
        "any": lambda: draw(st.lists(st.integers(0, table - 1), max_size=40)),
        "equal": lambda: [draw(st.integers(0, table - 1))] * draw(st.integers(1, 40)),
        "every": lambda: draw(st.permutations(every)),
        "reversed": lambda: every[::-1],
        "twice": lambda: [*every[::-1], *every],
        "two in turn": lambda: [0, table - 1] * draw(st.integers(1, 20)),
    }
    chosen = draw(st.sampled_from(list(kinds))) if table else None
    rows = np.array(kinds[chosen]() if chosen else [], draw(st.sampled_from(ID_DTYPES)))
    layout = draw(st.sampled_from(["dense", "strided", "backwards", "unaligned", "repeated"]))
    if layout == "strided":
        wide = np.full((rows.size, 3), -1, rows.dtype)
        wide[:, 1] = rows
        return wide[:, 1]
    if layout == "backwards":
        return rows[::-1].copy()[::-1]
    if layout == "unaligned":
        return np.frombuffer(b"?" + rows.tobytes(), rows.dtype, offset=1)
    return np.broadcast_to(rows[:1], rows.shape) if layout == "repeated" else rows


@st.composite
def row_grads(draw, shape):
    """A RowGrad for a param of this shape; its values may be one, broadcast."""
    rows = draw(row_numbers(shape[0]))
    values = draw(arrays((rows.size, *shape[1:]), GRAD_DTYPES))
    if rows.size and draw(st.integers(0, 5)) == 0:
        values = np.broadcast_to(values[:1], values.shape)
    return tw.RowGrad(rows, values)


@st.composite
def any_gradient(draw, shape):
    kind = draw(st.sampled_from(["rows", "rows", "rows", "dense", "none"]))
    if kind == "none":
        return None
    return draw(row_grads(shape)) if kind == "rows" else draw(arrays(shape, GRAD_DTYPES))


tables = st.one_of(
    st.tuples(st.integers(0, 9)),
    st.tuples(st.integers(0, 70), st.integers(0, 20)),
    st.tuples(st.integers(1, 6), st.sampled_from([31, 64, 2047, 2048, 2049, 4097])),
    st.tuples(st.integers(0, 6), st.integers(0, 5), st.integers(1, 7)),
)
limits = st.fixed_dictionaries(
    {
        "max_norm": st.sampled_from([None, 1e-3, 1.0, 1e30]),
        "max_value": st.sampled_from([None, 0.5, 1e10]),
        "on_nonfinite": st.sampled_from(["propagate", "propagate", "skip"]),
    }
)


@checked
@given(st.data(), st.lists(tables, min_size=1, max_size=3), rules, levels, limits)
def test_any_rows_of_any_tables(data, shapes, rule, level, limits):
    """Row gradients, dense ones and None, in any order, of several params at once."""
    chosen = data.draw(options(rule), label="options")
    if rule.slot == "accumulator":
        chosen["initial_accumulator_value"] = data.draw(st.sampled_from([0.0, 0.1]))
    params = {str(i): data.draw(arrays(shape, DTYPES)) for i, shape in enumerate(shapes)}
    by_name = dict.fromkeys(params, chosen)
    if data.draw(st.booleans(), label="the first is frozen"):
        by_name = by_name | {"0": chosen | {"frozen": True}}
    tw.set_num_threads(data.draw(st.sampled_from(THREADS)))
    twin = Twin(rule, params, by_name, **limits)
    groups = [{"params": w, **by_name[name]} for name, w in params.items()]
    opt = rule.make(groups, level, **limits)
    for _ in range(data.draw(st.integers(1, 4), label="steps")):
        scale = data.draw(st.sampled_from([1.0, 0.1, 2.0**-10]), label="scale")
        grads = {name: data.draw(any_gradient(w.shape)) for name, w in params.items()}
        assert opt.step(list(grads.values()), scale=scale) == twin.step(grads, scale)
        twin.assert_equals(opt, params)


OPTIONS = [
    {},
    {"weight_decay": 0.1},
    {"weight_decay": 0.1, "decoupled": True, "scale": 0.3},
    {"maximize": True, "max_value": 0.7, "max_norm": 0.9},
]
# Parts of a row are prepared, summed and updated a tile at a time: 2,048 elements.
ROW_SIZES = [1, 7, 8, 9, 63, 2047, 2048, 2049, 4095, 4096, 4097, 6151]


@each_rule
@each_dtype
@each_grad_dtype
def test_rows_of_every_length(rule, dtype, grad_dtype, level):
    rng = np.random.default_rng(1)
    turns = itertools.cycle(OPTIONS)
    for size, times in itertools.product(ROW_SIZES, range(2)):
        chosen = dict(next(turns))
        scale = chosen.pop("scale", 1.0)
        limit = {key: chosen.pop(key) for key in ("max_norm", "max_value") if key in chosen}
        w = sample(rng, (5, size), dtype)
        twin = Twin(rule, {"": w}, {"": chosen}, **limit)
        opt = rule.make(w, level, **chosen, **limit)
        for rows in ([3, 1, 3, 3, 0], [4 * times]):
            values = sample(rng, (len(rows), size), grad_dtype)
            grad = tw.RowGrad(np.array(rows, ID_DTYPES[times]), values)
            assert opt.step(grad, scale=scale)
            assert twin.step({"": grad}, scale)
        twin.assert_equals(opt, {"": w}, f"rows of {size}, {chosen}, {limit}")


@each_name
@each_dtype
@pytest.mark.parametrize("shape", [(9,), (7, 5), (4, 3, 6), (3, 2050), (2, 40, 53)], ids=str)
def test_every_layout_of_table_values_and_state(name, shape, dtype):
    """No byte between the elements is touched, nor a row that is not named."""
    rule, rng = RULES[name], np.random.default_rng(2)
    rows = np.array([1, 0, 1, 1, shape[0] - 1])
    start = sample(rng, shape, dtype)
    before = sample_state(rng, rule.state(start).shape, dtype, rule.slot)
    given = {d: sample(rng, (rows.size, *shape[1:]), d) for d in GRAD_DTYPES}
    expected = {}
    for grad_dtype, values in given.items():
        w, s = start.copy(), before.copy()
        reference.by_rows(rule.twin, w, rows, values, s, 1)
        expected[grad_dtype] = w, s
    kinds = itertools.cycle(itertools.product(GRAD_DTYPES, _core.isa_supported))
    states = itertools.cycle([*LAYOUTS, "C"])
    for of_param, of_values in itertools.product(LAYOUTS, repeat=2):
        grad_dtype, level = next(kinds)
        of_state = next(states)
        context = f"table {of_param}, values {of_values}, state {of_state}, {grad_dtype}, {level}"
        base, w = lay(of_param, start)
        state_base, s = lay(of_state, before)
        grad = tw.RowGrad(rows, lay(of_values, given[grad_dtype])[1])
        rule.apply([w], [grad], [s], level)
        assert_same_bits(w, expected[grad_dtype][0], context)
        if rule.slot:
            assert_same_bits(s, expected[grad_dtype][1], f"state; {context}")
        assert_nothing_around_it_changed(of_param, base, w)
        assert_nothing_around_it_changed(of_state, state_base, s)


@each_name
@each_dtype
def test_many_rows_on_many_threads(name, dtype, threads):
    """Beyond 512 KiB of rows threads take part; a block of the norm is 16,384 elements."""
    rule, rng = RULES[name], np.random.default_rng(3)
    start = {"table": rng.standard_normal((9000, 40)).astype(dtype)}
    start["long"] = rng.standard_normal((40, 9000)).astype(dtype)
    steps = []
    for grad_dtype, id_dtype in ((dtype, np.int64), (np.float32, np.int32)):
        rows = {"table": rng.integers(0, 9000, 12_000), "long": rng.integers(0, 40, 60)}
        rows["table"][::3] = 4321  # one row of a third of them
        steps.append(
            {
                key: tw.RowGrad(
                    ids.astype(id_dtype),
                    rng.standard_normal((ids.size, start[key].shape[1])).astype(grad_dtype),
                )
                for key, ids in rows.items()
            }
        )
    limit = {"max_norm": 1.0, "on_nonfinite": "skip"}
    twin = Twin(rule, start, {key: {} for key in start}, **limit)
    for grads in steps:
        assert twin.step(grads)
    for level, count in itertools.product(_core.isa_supported, THREADS):
        threads(count)
        params = {key: w.copy() for key, w in start.items()}
        opt = rule.make(params, level, **limit)
        for grads in steps:
            assert opt.step(grads)
        twin.assert_equals(opt, params, f"{level}, {count} threads")


@each_grad_dtype
@each_dtype
def test_rows_are_summed_in_order_of_appearance(dtype, grad_dtype, level):
    """Converted first, and from the first one on."""
    large = 6e4 if grad_dtype is np.float16 else 1e15
    parts = np.array([large, -large, 0.1, 1e-3, 7.7], grad_dtype)
    found = set()
    for order in itertools.permutations(range(5)):
        values = parts[list(order)]
        # Two rows in turn, so that those of one row are not neighbours.
        both = np.stack([values, -values], 1).reshape(10, 1) * np.ones(3, grad_dtype)
        rows = np.tile([5, 2], 5)
        w = np.zeros((6, 3), dtype)
        opt = tw.SGD(w, lr=1.0, maximize=True)
        opt._use_level(level)
        opt.step(tw.RowGrad(rows, both))
        total = dtype(values[0])
        for value in values[1:]:
            total = total + dtype(value)
        assert_same_bits(w[5], np.full(3, 0 + total), str(order))
        assert_same_bits(w[2], np.full(3, 0 - total), str(order))
        assert not w[[0, 1, 3, 4]].any()
        found.add(total)
    # float64 holds every sum of float16 exactly.
    assert len(found) > 3 or (dtype, grad_dtype) == (np.float64, np.float16)


def test_the_first_of_a_sum_is_not_added_to_zero(level):
    """-0.0 - (-0.0) is 0.0, but -0.0 - 0.0 is -0.0."""
    for dtype, count in itertools.product(DTYPES, [1, 2, 3]):
        for size in (1, 2050):
            w = np.full((3, size), -0.0, dtype)
            grad = tw.RowGrad(np.ones(count, int), np.full((count, size), -0.0, np.float32))
            RULES["sgd"].apply([w], [grad], None, level)
            assert_same_bits(w, np.full((3, size), -0.0, dtype) + dtype([[-0.0], [0.0], [-0.0]]))


@each_rule
@each_dtype
@pytest.mark.parametrize("shape", [(700,), (300, 70), (5, 3, 2100)], ids=str)
def test_every_row_once_is_a_dense_step(rule, dtype, shape, level, threads):
    """In any order: params, state and norm, in dense blocks and with threads."""
    rng = np.random.default_rng(4)
    for grad_dtype, chosen in zip(itertools.cycle(GRAD_DTYPES), OPTIONS, strict=False):
        chosen = {"max_norm": 1.0} | chosen
        scale = chosen.pop("scale", 1.0)
        start = sample(rng, shape, dtype)
        dense, sparse = start.copy(), start.copy()
        threads(int(rng.choice(THREADS)))
        one, other = rule.make(dense, level, **chosen), rule.make(sparse, level, **chosen)
        for order in (np.arange(shape[0]), rng.permutation(shape[0])):
            grad = sample(rng, shape, grad_dtype)
            one.step(grad, scale=scale)
            other.step(tw.RowGrad(order, grad[order]), scale=scale)
            assert_same_bits(sparse, dense, f"{grad_dtype}, {chosen}")
            for slot, value in one.state[""].items():
                assert_same_bits(np.asarray(other.state[""][slot]), np.asarray(value), slot)
            assert_same_bits(np.float64(other.grad_norm), np.float64(one.grad_norm), "norm")


@each_name
def test_kinds_of_gradients_take_turns(name, level):
    """Every kind after every other, some of them after two others, on each of two params."""
    rule, rng = RULES[name], np.random.default_rng(5)
    kinds = ["dense", "rows", None, "few rows", "transposed", "no rows"]
    turns = [*itertools.product(kinds, repeat=2), *itertools.permutations(kinds[:4], 3)]
    turns = list(itertools.chain.from_iterable(turns))

    def gradient(kind, shape):
        if kind is None:
            return None
        if kind == "dense":
            return rng.standard_normal(shape)
        if kind == "transposed":
            return rng.standard_normal(shape[::-1]).astype(np.float32).T
        count = {"rows": 90, "few rows": 3, "no rows": 0}[kind]
        return tw.RowGrad(rng.integers(0, shape[0], count), rng.standard_normal((count, shape[1])))

    params = {"a": rng.standard_normal((60, 500)), "b": rng.standard_normal((7, 3))}
    limit = {"max_norm": 1.0, "on_nonfinite": "skip"}
    twin = Twin(rule, params, {"a": {}, "b": {}}, **limit)
    opt = rule.make(params, level, **limit)
    other = [*turns[1:], None]
    for t, pair in enumerate(zip(turns, other, strict=True)):
        shapes = [w.shape for w in params.values()]
        grads = dict(zip(params, map(gradient, pair, shapes), strict=True))
        assert opt.step(grads) == twin.step(grads)
        if t % 7 == 0 or t == len(turns) - 1:
            twin.assert_equals(opt, params, f"step {t}, {pair}")


def test_a_dense_gradient_is_measured_after_rows_and_none(level):
    """Whatever came before, each step's norm and verdict are of its own gradients."""
    for before in itertools.product(["rows", "none", "dense"], repeat=3):
        w = np.zeros((4, 2))
        opt = tw.SGD([w], lr=0.0, max_norm=1.0, on_nonfinite="skip")
        opt._use_level(level)
        one = tw.RowGrad(np.array([1]), np.ones((1, 2)))
        for kind in before:
            opt.step([{"rows": one, "none": None, "dense": np.ones((4, 2))}[kind]])
        assert opt.step([np.full((4, 2), 3.0)]), before
        assert opt.grad_norm == np.sqrt(72.0), before
        assert not opt.step([np.full((4, 2), np.nan)]), before


@each_rule
def test_buffers_that_are_refilled(rule, level):
    """Bound once; rows, values and the dense gradient beside them change between the steps."""
    rng = np.random.default_rng(6)
    params = {"table": rng.standard_normal((50, 6)), "b": np.ones(6, np.float32)}
    rows, values, b = np.zeros(20, np.int32), np.zeros((20, 6)), np.zeros(6, np.float32)
    grads = {"table": tw.RowGrad(rows, values), "b": b}
    twin = Twin(rule, params, {"table": {}, "b": {}}, max_norm=2.0)
    opt = rule.make(params, level, grads=grads, max_norm=2.0)
    for _ in range(6):
        rows[...] = rng.integers(0, 50, 20)
        values[...] = rng.standard_normal((20, 6))
        b[...] = rng.standard_normal(6)
        assert opt.step(scale=0.3)
        assert twin.step(grads, 0.3)
        twin.assert_equals(opt, params)


FUNCTIONS = {
    "sgd": (tw.sgd_rows_, {}),
    "heavy_ball": (tw.sgd_rows_, {"momentum": 0.9, "dampening": 0.5}),
    "heavy_ball_nesterov": (tw.sgd_rows_, {"momentum": 0.9, "nesterov": True}),
    "classic": (tw.sgd_rows_, {"momentum": 0.9, "form": "classic"}),
    "classic_nesterov": (tw.sgd_rows_, {"momentum": 0.9, "form": "classic", "nesterov": True}),
    "ema": (tw.sgd_rows_, {"momentum": 0.9, "form": "ema"}),
    "adagrad_inside": (tw.adagrad_rows_, {"eps": 1e-3}),
    "adagrad_outside": (tw.adagrad_rows_, {"eps": 1e-3, "eps_placement": "outside"}),
    "adagrad_row_inside": (tw.adagrad_rows_, {"eps": 1e-3}),
    "adagrad_row_outside": (tw.adagrad_rows_, {"eps": 1e-3, "eps_placement": "outside"}),
}


@each_rule
@each_dtype
@pytest.mark.parametrize("shape", [(9,), (8, 5), (3, 2, 4)], ids=str)
def test_the_functions(rule, dtype, shape):
    """One table, or lists in which one gradient names its rows; the state is the caller's."""
    function, fixed = FUNCTIONS[rule.kernel]
    rng = np.random.default_rng(7)
    rows = np.array([2, 0, 2, 1, 2], np.int32)
    for chosen in ({}, {"weight_decay": 0.1, "decoupled": True}, {"maximize": True, "scale": 0.3}):
        start, values = sample(rng, shape, dtype), sample(rng, (5, *shape[1:]), np.float64)
        before = sample_state(rng, rule.state(start).shape, dtype, rule.slot)
        w, s, other = start.copy(), before.copy(), np.ones(3)
        reference.by_rows(rule.twin, w, rows, values, s, 1, **fixed, **chosen)
        table, state = start.copy(), before.copy()
        given = [state] if rule.slot else []
        function(table, rows, values, *given, lr=0.1, **fixed, **chosen)
        assert_same_bits(table, w)
        assert_same_bits(state, s)
        if "row" in rule.kernel and len(shape) > 1:
            continue
        table, state = start.copy(), before.copy()
        given = [[state, np.ones(3)]] if rule.slot else []
        in_lists = tw.adagrad_ if rule.slot == "accumulator" else tw.sgd_
        grads = [tw.RowGrad(rows, values), np.ones(3)]
        in_lists([table, other], grads, *given, lr=0.1, **fixed, **chosen)
        assert_same_bits(table, w)
        assert_same_bits(state, s)
        assert (other != 1).all()
