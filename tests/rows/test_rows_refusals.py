"""Row gradients that are refused or left out: not one byte changes, and the words help."""

import itertools
import pickle
import re
import threading

import numpy as np
import pytest

import reference
import thalweg as tw
from bits import assert_same_bits
from refusing import everything, refused, rows
from rules import RULES
from twin import Twin

ADAGRAD_ROW = RULES["adagrad_row_inside"]
TABLE = (6, 4)
each_rule = pytest.mark.parametrize(
    "rule", [RULES[name] for name in ("heavy_ball", "adagrad_inside", "adagrad_row_inside")],
    ids=lambda rule: rule.kernel,
)  # fmt: skip


def row_grad(numbers, dtype=np.float64, shape=TABLE):
    return tw.RowGrad(np.array(numbers, np.int64), np.ones((len(numbers), *shape[1:]), dtype))


# rows, values; the exception and words of its message.
NOT_TOGETHER = {
    "none": (None, np.ones((1, 4)), TypeError, "received None"),
    "floats": (np.zeros(2), np.ones((2, 4)), TypeError, "dtype float64", "astype(np.int64)"),
    "mask": (np.ones(6, bool), np.ones((6, 4)), TypeError, "bool", "np.flatnonzero(mask)"),
    "durations": (np.zeros(2, "m8[s]"), np.ones((2, 4)), TypeError, "timedelta64[s]"),
    "objects": (np.array([0, 1], object), np.ones((2, 4)), TypeError, "dtype object"),
    "masked": (np.ma.array([0, 1]), np.ones((2, 4)), TypeError, "a masked array"),
    "2-D": (
        np.zeros((2, 1), int),
        np.ones((2, 4)),
        ValueError,
        "first axes (2, 1)",
        "shape (2, 4)",
    ),
    "shorter": (np.zeros(2, int), np.ones((3, 4)), ValueError, "axis of 2", "shape (3, 4)"),
    "longer": (np.zeros(2, int), np.ones((1, 4)), ValueError, "axis of 2", "shape (1, 4)"),
    "no axis": (np.zeros(1, int), np.array(1.0), ValueError, "axis of 1", "shape ()"),
    "values list": (np.zeros(1, int), [[1.0] * 4], TypeError, ".values", "received list"),
    "int values": (np.zeros(1, int), np.ones((1, 4), int), TypeError, ".values", "int64"),
    "complex": (np.zeros(1, int), np.ones((1, 4), complex), TypeError, "complex128"),
    "long double": (np.zeros(1, int), np.ones((1, 4), "g"), TypeError, ".values"),
    "swapped": (np.zeros(1, int), np.ones((1, 4), ">f4"), TypeError, "dtype >f4"),
    "masked values": (np.zeros(1, int), np.ma.ones((1, 4)), TypeError, "a masked array"),
}


@pytest.mark.parametrize("case", rows({k: (v,) for k, v in NOT_TOGETHER.items()}))
def test_what_does_not_go_together(case):
    """Refused when the RowGrad is made, and by the functions with nothing changed."""
    numbers, values, exception, *words = case
    table, state = np.ones(TABLE), np.zeros(TABLE)
    kept = [table, state, values, numbers]
    with refused(exception, "RowGrad.", *words, keeps=kept):
        tw.RowGrad(numbers, values)
    with refused(exception, *words, keeps=kept):
        tw.sgd_rows_(table, numbers, values, state, lr=0.1, momentum=0.9)
    with refused(exception, *words, keeps=kept):
        tw.adagrad_rows_(table, numbers, values, state, lr=0.1)


BAD_ROWS = {
    "negative": ([0, -1, 5], "received -1 at position 1"),
    "the end": ([0, 5, 6], "received 6 at position 2"),
    "the first of two": ([1, 9, 2, -7, 0], "received 9 at position 1"),
    "lowest": ([-(2**63)], f"received {-(2**63)} at position 0"),
    "highest": ([0, 2**63 - 1], f"received {2**63 - 1} at position 1"),
    "32 bits more": ([2**32 + 1], f"received {2**32 + 1} at position 0"),
}


@each_rule
@pytest.mark.parametrize(("numbers", "words"), rows(BAD_ROWS))
def test_rows_that_the_table_does_not_have(rule, numbers, words):
    table = np.ones(TABLE)
    opt = rule.make({"E": table}, "baseline")
    opt.step({"E": row_grad([1, 2])})
    expected = 'grads["E"].rows: expected rows from 0 to 5, those of params["E"]'
    with refused(IndexError, expected, words, keeps=opt):
        opt.step({"E": row_grad(numbers)})
    if max(map(abs, numbers)) < 2**31:
        narrow = tw.RowGrad(np.array(numbers, np.int32)[::-1][::-1], np.ones((len(numbers), 4)))
        with refused(IndexError, expected, words, keeps=opt):
            opt.step({"E": narrow})
    state = [opt.state["E"][rule.slot]]
    with refused(IndexError, "grad", "from 0 to 5", words, keeps=[opt, table]):
        rule.apply([table], [row_grad(numbers)], state, "baseline")
    assert opt.step({"E": row_grad([1, 2])})


@each_rule
@pytest.mark.parametrize("long", [False, True])
def test_a_bad_row_in_any_of_fifty_arrays(rule, long):
    """None of the others has been touched, whether the GIL was let go or not."""
    shape = (6, 700) if long else TABLE
    params = [np.ones(shape, np.float32 if i % 2 else np.float64) for i in range(50)]
    opt = rule.make(params, "baseline", max_norm=1.0, on_nonfinite="skip")
    grads = [row_grad([5, 0, 5], shape=shape) for _ in params]
    assert opt.step(grads)
    for k in range(50):
        bad = [*grads[:k], row_grad([0, 1, 6], shape=shape), *grads[k + 1 :]]
        with refused(IndexError, f'grads["{k}"].rows', "received 6 at position 2", keeps=opt):
            opt.step(bad)
        with refused(ValueError, f'grads["{k}"].values', "expected shape (1, ", keeps=opt):
            opt.step([*grads[:k], row_grad([0], shape=(1, 9)), *grads[k + 1 :]])
    assert opt.step(grads)


def test_a_table_without_rows_has_none():
    opt = tw.SGD(np.ones((0, 4)), 0.1)
    assert opt.step(row_grad([]))
    with refused(IndexError, "received 0 at position 0", keeps=opt):
        opt.step(row_grad([0]))


@each_rule
def test_rows_of_another_shape_or_none_at_all(rule):
    opt = rule.make({"E": np.ones(TABLE), "x": np.array(1.0)}, "baseline")
    for shape in ((1, 3), (1, 4, 1), (1,), (1, 0)):
        words = 'grads["E"].values: expected shape (2, 4)', f"shape {(2, *shape[1:])}"
        with refused(ValueError, *words, keeps=opt):
            opt.step({"E": row_grad([0, 1], shape=shape), "x": 1.0})
    with refused(ValueError, 'grads["x"]', "received a RowGrad", "no rows", keeps=opt):
        opt.step({"E": row_grad([0]), "x": row_grad([0], shape=(1,))})


def test_arrays_that_changed_after_the_row_grad_was_made():
    opt = tw.SGD(np.ones(TABLE), 0.1)
    grad = row_grad([0, 1, 2, 3])
    grad.rows.shape = 2, 2
    with refused(ValueError, "grads.rows", "first axes (2, 2)", keeps=opt):
        opt.step(grad)
    grad = row_grad([0, 1])
    grad.values.shape = 4, 2
    with refused(ValueError, "grads.values", "shape (4, 2)", keeps=opt):
        opt.step(grad)


@each_rule
def test_values_in_the_memory_of_table_or_state(rule):
    memory = np.ones(100)
    table = memory[40:64].reshape(TABLE)
    opt = rule.make({"E": table}, "baseline")
    opt.step({"E": row_grad([0, 1])})
    state = opt.state["E"][rule.slot].reshape(6, -1)
    inside = {
        "rows of the table": table[:2],
        "all of it": table,
        "as float32": table.view(np.float32)[1:3, :4],
        "its last element": memory[63:71].reshape(2, 4),
        "its first element": memory[33:41].reshape(2, 4),
        "broadcast": np.broadcast_to(table[3, 3:], (2, 4)),
        "the state": np.broadcast_to(state[1:2, :1], (2, 4)),
    }
    for name, values in inside.items():
        numbers = np.arange(len(values))
        with refused(ValueError, 'grads["E"].values', "memory", '["E"]', keeps=[opt, memory]):
            opt.step({"E": tw.RowGrad(numbers, values)})
        if name != "the state":
            state_of = rule.state(table)
            with refused(ValueError, ".values", "memory", keeps=[opt, memory, state_of]):
                rule.apply([table], [tw.RowGrad(numbers, values)], [state_of], "baseline")
    for values in (memory[32:40], memory[64:72]):  # its neighbours
        assert opt.step({"E": tw.RowGrad(np.array([1, 1]), values.reshape(2, 4))})


def test_row_numbers_in_the_memory_of_the_table(level):
    """Read once, before anything is written."""
    for dtype, id_dtype in itertools.product([np.float32, np.float64], [np.int32, np.int64]):
        table = np.zeros((6, 4), dtype)
        numbers = table.reshape(-1).view(id_dtype)[:5]
        numbers[...] = [3, 0, 0, 5, 3]
        expected, kept = table.copy(), numbers.copy()
        reference.by_rows(RULES["sgd"].twin, expected, kept, np.ones((5, 4)), None, 0)
        opt = RULES["sgd"].make(table, level)
        assert opt.step(tw.RowGrad(numbers, np.ones((5, 4))))
        assert_same_bits(table, expected)


@pytest.mark.parametrize("rule", [RULES["sgd"], ADAGRAD_ROW], ids=lambda rule: rule.kernel)
def test_row_numbers_that_another_thread_changes(rule):
    """Refused or not: nothing is written outside the table."""
    around, count = 64, 1 << 20  # so long that the other thread has its turn meanwhile
    memory = np.full((around + 1000 + around, 1), 7.0)
    table = memory[around:-around]
    numbers = np.arange(count)
    numbers %= 1000
    grad = tw.RowGrad(numbers, np.broadcast_to(1.0, (count, 1)))
    opt = rule.make(table, "baseline", lr=1e-9)
    done = threading.Event()

    def change():
        """The first of them alone: whoever reads them again finds another one there."""
        while not done.is_set():
            for number in (-1, 0, 1000, 0, -around, 0, 999 + around, 0):
                numbers[0] = number

    other = threading.Thread(target=change, daemon=True)
    other.start()
    taken = 0
    try:
        for _ in range(40):
            try:
                taken += opt.step(grad)
            except IndexError:
                continue
    finally:
        done.set()
        other.join()
    assert opt.step_count == taken
    assert (memory[:around] == 7).all()
    assert (memory[-around:] == 7).all()


@pytest.mark.parametrize(
    ("shape", "accumulator", "words"),
    rows(
        {
            "too many": (TABLE, (7,), "shape (6,), one element for each row"),
            "columns": (TABLE, (4,), "shape (6,)"),
            "a column": (TABLE, (6, 1), "shape (6, 4)"),
            "3-D": ((6, 2, 2), (6, 2), "shape (6, 2, 2)"),
            "1-D": ((6,), (5,), "shape (6,)"),
            "0-D": (TABLE, (), "shape (6, 4)"),
        }
    ),
)
def test_accumulators_of_another_shape(shape, accumulator, words):
    table, state = np.ones(shape), np.zeros(accumulator)
    grad = row_grad([0], shape=shape)
    with refused(ValueError, "accumulator", words, keeps=[table, state]):
        tw.adagrad_rows_(table, grad.rows, grad.values, state, lr=0.1)
    with refused(TypeError, "accumulator", "float32", keeps=[table]):
        tw.adagrad_rows_(table, grad.rows, grad.values, np.zeros(shape, "f4"), lr=0.1)
    with refused(TypeError, "velocity", "received None", keeps=[table]):
        tw.sgd_rows_(table, grad.rows, grad.values, lr=0.1, momentum=0.9)


def test_a_row_grad_whose_init_never_ran():
    opt = tw.SGD(np.ones(TABLE), 0.1)
    for use in (opt.step, repr, lambda g: g.rows, lambda g: g.values, pickle.dumps):
        with refused(TypeError, "never initialised", keeps=opt):
            use(tw.RowGrad.__new__(tw.RowGrad))


def not_finite():
    """values of rows [4, 1, 4, 0, 1], an option of the step, and what is said of them."""
    big = np.finfo(np.float32).max
    ones = np.ones((5, 4))

    def with_(*changes):
        values = ones.copy()
        for i, j, value in changes:
            values[i, j] = value
        return values

    return {
        "nan": (with_((3, 2, np.nan)), 1.0, "1 NaN and 0 inf, the first at [0, 2]"),
        "inf": (with_((2, 3, np.inf)), 1.0, "0 NaN and 1 inf, the first at [4, 3]"),
        "-inf": (with_((4, 0, -np.inf)), 1.0, "0 NaN and 1 inf, the first at [1, 0]"),
        "max + max": (with_((0, 1, big), (2, 1, big)), 1.0, "0 NaN and 1 inf, the first at [4, 1]"),
        "summed, then scaled": (
            with_((1, 1, big), (4, 1, big)),
            0.25,
            "0 NaN and 1 inf, the first at [1, 1]",
        ),
        "inf - inf": (
            with_((0, 0, np.inf), (2, 0, -np.inf)),
            1.0,
            "1 NaN and 0 inf, the first at [4, 0]",
        ),
        "too large for float32": (
            with_((3, 1, 1e39)),
            1e-9,
            "0 NaN and 1 inf, the first at [0, 1]",
        ),
        "scaled": (with_((0, 3, 1e38)), 100.0, "0 NaN and 1 inf, the first at [4, 3]"),
        "many": (
            with_((0, 0, np.nan), (1, 3, np.inf), (4, 2, np.inf), (2, 0, 1)),
            1.0,
            "1 NaN and 2 inf, the first at [1, 2]",
        ),
    }


@each_rule
@pytest.mark.parametrize("limit", [{}, {"max_value": 0.5, "max_norm": 1.0}], ids=str)
@pytest.mark.parametrize(("values", "scale", "words"), rows(not_finite()))
def test_no_trace_of_what_is_not_finite(rule, limit, values, scale, words, level):
    """Judged are the sums of the rows; the array beside it is left alone, too."""
    for on_nonfinite in ("skip", "raise"):
        params = {"E": np.ones(TABLE, np.float32), "b": np.ones(3)}
        opt = rule.make(params, level, on_nonfinite=on_nonfinite, **limit)
        good = {"E": row_grad([4, 1, 4]), "b": np.ones(3)}
        bad = {"E": tw.RowGrad(np.array([4, 1, 4, 0, 1]), values), "b": np.ones(3)}
        for _ in range(2):
            before = everything(opt)
            if on_nonfinite == "skip":
                assert opt.step(bad, scale=scale) is False
            else:
                expected = f'grads["E"]: expected finite elements, received {words}; nothing'
                with pytest.raises(FloatingPointError, match=re.escape(expected)):
                    opt.step(bad, scale=scale)
            assert everything(opt) == before
            assert opt.step(good)
        assert opt.skipped_steps == 2 * (on_nonfinite == "skip")


def test_what_only_looks_not_finite_is_taken(level):
    """A square that overflows, and rows that none of the sums names."""
    for limits in ({}, {"max_norm": 1.0, "max_value": 1.0}):
        w = np.ones((6, 4))
        opt = tw.SGD(w, 0.1, on_nonfinite="raise", **limits)
        opt._use_level(level)
        assert opt.step(tw.RowGrad(np.array([2]), np.full((1, 4), 1e200)))
        assert opt.step(tw.RowGrad(np.zeros(0, int), np.full((9, 4), np.nan)[:0]))
        assert (w[[0, 1, 3, 4, 5]] == 1).all()


def test_the_position_is_found_in_long_and_in_deep_rows(level):
    for shape, where in (
        ((3000, 40), (2999, 39)),
        ((3, 9000), (1, 8191)),
        ((50, 7, 90), (49, 6, 1)),
    ):
        values = np.ones(shape, np.float32)
        values[where] = np.inf
        order = np.random.default_rng(1).permutation(shape[0])
        for numbers, given in ((order, values[order]), (order, np.asfortranarray(values[order]))):
            opt = tw.SGD(np.ones(shape, np.float32), on_nonfinite="raise")
            opt._use_level(level)
            with refused(FloatingPointError, f"the first at {list(where)};", keeps=opt):
                opt.step(tw.RowGrad(numbers, given))


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_propagate_is_what_numpy_does(rule, level):
    for values, scale, _ in not_finite().values():
        for dtype, max_norm in itertools.product([np.float32, np.float64], [None, 1.0]):
            w = {"": np.ones(TABLE, dtype)}
            opt = rule.make(w[""], level, max_norm=max_norm)
            twin = Twin(rule, w, {"": {}}, max_norm=max_norm)
            for numbers in ([4, 1, 4, 0, 1], [0, 0, 0, 0, 0]):
                grad = tw.RowGrad(np.array(numbers), values)
                assert opt.step(grad, scale=scale)
                assert twin.step({"": grad}, scale)
            twin.assert_equals(opt, w)
