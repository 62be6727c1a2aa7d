"""Ids of any integer dtype and shape, heights, and RowGrads joined."""

import copy
import pickle

import numpy as np
import pytest

import thalweg as tw
from bits import assert_same_bits
from refusing import refused

IDS = [[2, 0, 2], [5, 2, 1]]


def stepped(ids, values, dtype=np.float32):
    table = np.ones((6, 4), dtype)
    opt = tw.Adagrad({"E": table}, lr=0.5)
    assert opt.step({"E": tw.RowGrad(ids, values)})
    called, state = np.ones((6, 4), dtype), np.zeros((6, 4), dtype)
    assert tw.adagrad_rows_(called, ids, values, state, lr=0.5)
    assert_same_bits(called, table)
    return table


@pytest.mark.parametrize("dtype", ["i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", ">i4", ">u2"])
@pytest.mark.parametrize("shape", [(6,), (2, 3), (1, 6), (3, 1, 2)])
def test_any_integers_of_any_shape(dtype, shape):
    values = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    expected = stepped(np.array(IDS).ravel(), values)
    ids = np.array(IDS).reshape(shape).astype(dtype)
    assert_same_bits(stepped(ids, values.reshape(*shape, 4)), expected)
    assert_same_bits(stepped(ids.tolist(), values.reshape(*shape, 4)), expected)
    strided = np.stack([values, values], axis=1)[:, 0].reshape(*shape, 4)
    assert_same_bits(stepped(np.asfortranarray(ids), strided), expected)


def test_one_id_and_none():
    for one in (np.int64(3), np.uint8(3), 3, np.array(3)):
        assert_same_bits(stepped(one, np.ones(4)), stepped(np.array([3]), np.ones((1, 4))))
    for none in ([], (), np.zeros((0,), np.uint8), np.zeros((2, 0), np.int16)):
        values = np.ones((*np.shape(none), 4))
        assert_same_bits(stepped(none, values), np.ones((6, 4), np.float32))


def test_ids_that_are_as_a_step_reads_them_are_held():
    for ids in (np.array([1, 2]), np.array([1, 2], np.int32), np.arange(6)[::2]):
        values = np.ones((len(ids), 4))
        grad = tw.RowGrad(ids, values)
        assert grad.rows is ids
        assert grad.values is values


@pytest.mark.parametrize(
    ("ids", "exception", "words"),
    [
        ([0.5], TypeError, "expected integers"),
        ([True, False], TypeError, "expected integers"),
        (np.array([True, False]), TypeError, "np.flatnonzero(mask)"),
        (["a"], TypeError, "expected integers"),
        (np.zeros((2, 3), int), ValueError, "first axes (2, 3)"),
    ],
)
def test_ids_that_are_none(ids, exception, words):
    values = np.ones((2, 4))
    with refused(exception, "RowGrad", words, keeps=values):
        tw.RowGrad(ids, values)


def test_an_id_beyond_int64():
    with refused(IndexError, str(2**63), keeps=[]):
        tw.RowGrad(np.array([0, 2**63], np.uint64), np.ones((2, 4)))


def test_a_height_is_that_of_the_table():
    table = np.zeros((6, 4))
    opt = tw.SGD({"E": table}, lr=1.0)
    grad = tw.RowGrad(np.array([1]), np.ones((1, 4)), height=6)
    for same in (grad, pickle.loads(pickle.dumps(grad)), copy.deepcopy(grad)):
        assert same.height == 6
        assert "height=6" in repr(same)
        assert opt.step({"E": same})
    for other in (5, 7, 0, np.int64(3)):
        wrong = tw.RowGrad(np.array([1]), np.ones((1, 4)), other)
        said = 'grads["E"]: expected a RowGrad of height 6', f"received height {other}"
        with refused(ValueError, *said, keeps=opt):
            opt.step({"E": wrong})
        with refused(ValueError, "of height 6", keeps=table):
            tw.sgd_(table, wrong, lr=1.0)
    assert tw.RowGrad(np.array([1]), np.ones((1, 4))).height is None
    for bad, exception in (
        (-1, ValueError),
        (True, ValueError),
        ("6", TypeError),
        (1.0, TypeError),
    ):
        with refused(exception, "", keeps=[]):
            tw.RowGrad(np.array([1]), np.ones((1, 4)), bad)


def test_from_scipy_keeps_the_height():
    sparse = pytest.importorskip("scipy.sparse", reason="scipy is not installed")
    table = np.zeros((10, 2))
    opt = tw.SGD(table, lr=1.0)
    for height in (3, 100):
        grad = sparse.csr_array((np.ones(1), ([0], [0])), shape=(height, 2))
        with refused(ValueError, f"received height {height}", keeps=opt):
            opt.step(tw.RowGrad.from_scipy(grad))
    for kind in (sparse.csr_array, sparse.coo_matrix, sparse.csc_array):
        grad = kind((np.ones(1), ([4], [0])), shape=(10, 2))
        assert tw.RowGrad.from_scipy(grad).height == 10
        assert opt.step(tw.RowGrad.from_scipy(grad))
    assert table[4].tolist() == [-3.0, 0.0]


def test_concat():
    r = np.random.default_rng(0)
    parts = [
        tw.RowGrad(np.array([0, 2, 2]), r.normal(size=(3, 4)).astype(np.float16)),
        tw.RowGrad(np.array([2, 1], np.int32), r.normal(size=(2, 4)).astype(np.float32), 6),
        tw.RowGrad([], np.ones((0, 4), np.float32)),
    ]
    joined = tw.RowGrad.concat(iter(parts))
    assert joined.height == 6
    assert joined.rows.tolist() == [0, 2, 2, 2, 1]
    values = np.concatenate([part.values.astype(np.float32) for part in parts])
    assert_same_bits(stepped(joined.rows, joined.values), stepped(joined.rows, values))
    assert type(tw.RowGrad.concat(parts[:1])) is tw.RowGrad
    one, tall = parts[0], tw.RowGrad([0], np.ones((1, 4)), 7)
    for wrong, exception, word in (
        ([], ValueError, "none"),
        ([one, np.ones((6, 4))], TypeError, "concat[1]: expected a RowGrad, received ndarray"),
        ([one, tw.RowGrad([0], np.ones((1, 3)))], ValueError, "one table"),
        ([parts[1], tall], ValueError, "heights [6, 7]"),
    ):
        with refused(exception, "concat", word, keeps=[]):
            tw.RowGrad.concat(wrong)
