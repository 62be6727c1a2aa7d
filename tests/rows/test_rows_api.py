"""Row gradients as objects, in trees and from scipy; one accumulator a row; memory; processes."""

import copy
import multiprocessing
import pickle
import time
from multiprocessing import shared_memory
from pathlib import Path

import numpy as np
import pytest

import thalweg as tw
from bits import assert_same_bits
from processes import run_python
from rules import RULES

TABLE = (6, 4)
BY_ROW = [RULES["adagrad_row_inside"], RULES["adagrad_row_outside"]]
each_by_row = pytest.mark.parametrize("rule", BY_ROW, ids=lambda rule: rule.kernel)


class Named(tw.RowGrad):
    """A RowGrad with something of its own."""


def test_a_row_grad_is_an_object_like_others():
    grad = Named(np.array([2, 0]), np.array([[1.0, 2.0], [3.0, 4.0]]))
    grad.note = "mine"
    assert repr(grad) == "Named(rows=array([2, 0]), values=array([[1., 2.],\n       [3., 4.]]))"
    plain = tw.RowGrad(grad.rows, grad.values)
    assert plain.rows is grad.rows
    assert plain.values is grad.values
    for other in (pickle.loads(pickle.dumps(grad)), copy.deepcopy(grad), copy.copy(grad)):
        assert type(other) is Named
        assert_same_bits(other.values, grad.values)
        assert other.rows.tolist() == [2, 0]
    again = eval(repr(plain), {"RowGrad": tw.RowGrad, "array": np.array})
    assert (again.rows.tolist(), again.values.tolist()) == ([2, 0], [[1, 2], [3, 4]])
    for name in ("rows", "values"):
        with pytest.raises(AttributeError):
            setattr(plain, name, np.zeros(2))
        with pytest.raises(AttributeError):
            delattr(plain, name)
    plain.__init__(np.zeros(2, int), np.zeros((2, 2)))
    assert plain.rows is grad.rows
    w, by_hand = np.zeros((3, 2)), np.zeros((3, 2))
    assert tw.SGD(w, 1.0).step(grad)
    by_hand[[2, 0]] -= grad.values
    assert_same_bits(w, by_hand)


@each_by_row
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_one_accumulator_for_each_row(rule, dtype):
    """State of shape (rows,): a D-th of the table's memory."""
    shapes = {"": (), "1": (7,), "2": (7, 8), "3": (7, 2, 3), "none": (0, 4), "empty": (3, 0)}
    shapes["table"] = (100_000, 128)
    params = {name: np.ones(shape, dtype) for name, shape in shapes.items()}
    opt = rule.make(params, "baseline", initial_accumulator_value=0.25)
    for name, w in params.items():
        state = opt.state[name]["accumulator"]
        assert (state.shape, state.dtype) == (w.shape[:1], w.dtype)
        assert (state == 0.25).all()
        assert state.base.nbytes == state.nbytes
        assert not np.shares_memory(state, w)
    table = opt.state["table"]["accumulator"]
    assert table.nbytes * 128 == params["table"].nbytes


@each_by_row
def test_copies_keep_the_accumulators(rule):
    rng = np.random.default_rng(1)
    params = {"E": rng.standard_normal(TABLE), "b": rng.standard_normal(3).astype(np.float32)}
    opt = rule.make(params, "baseline", lr_decay=0.1)
    grads = {"E": tw.RowGrad(np.array([1, 5, 1]), rng.standard_normal((3, 4))), "b": np.ones(3)}
    opt.step(grads)
    copies = [
        pickle.loads(pickle.dumps((params, opt))),
        copy.deepcopy((params, opt)),
        pickle.loads(pickle.dumps((params, opt), protocol=2)),
    ]
    opt.step(grads)
    for arrays, other in copies:
        assert other.state["E"]["accumulator"].shape == (6,)
        assert other.step(grads)
        assert repr(other) == repr(opt)
        for name, w in params.items():
            assert_same_bits(arrays[name], w, name)
            state = other.state[name]["accumulator"]
            assert_same_bits(state, opt.state[name]["accumulator"], name)


def test_bound_row_grads_are_pickled_with_their_optimizer():
    w, values = np.zeros(TABLE), np.ones((2, 4))
    grad = tw.RowGrad(np.array([5, 5]), values)
    opt = tw.SGD(w, 1.0, grads=grad)
    w2, values2, opt2 = copy.deepcopy((w, values, opt))
    values2[...] = 3
    assert opt2.step()
    assert w2[5].tolist() == [-6] * 4
    assert not w.any()


def test_the_option_is_shown_and_fixed():
    opt = tw.Adagrad(np.ones(TABLE), accumulator="row")
    assert opt.param_groups[0]["accumulator"] == "row"
    assert "accumulator='row'" in repr(opt)
    assert "accumulator='element'" in repr(tw.Adagrad(np.ones(TABLE)))
    with pytest.raises(ValueError, match="accumulator: fixed when the optimizer was made"):
        opt.param_groups[0]["accumulator"] = "element"
    with pytest.raises(AttributeError, match="param_groups"):
        opt.accumulator = "element"
    with pytest.raises(ValueError, match="accumulator: expected one of element, row, received"):
        tw.Adagrad(np.ones(TABLE), accumulator="column")
    with pytest.raises(TypeError):
        tw.SGD(np.ones(TABLE), accumulator="row")
    for name in tw.Adagrad._presets:
        overrides = {"lr": 0.1, "accumulator": "row"}
        like = tw.Adagrad.like(name, np.ones(TABLE), **overrides)
        assert like.param_groups[0]["accumulator"] == "row"
        assert like.state[""]["accumulator"].shape == (6,)


def test_groups_of_either_kind_and_a_group_that_is_added():
    params = [np.ones(TABLE) for _ in range(3)]
    first = [{"params": params[0], "accumulator": "row"}, {"params": params[1]}]
    opt = tw.Adagrad(first)
    opt.add_group({"params": params[2], "accumulator": "row"})
    assert [opt.state[str(i)]["accumulator"].shape for i in range(3)] == [(6,), TABLE, (6,)]
    grad = tw.RowGrad(np.array([3, 3]), np.full((2, 4), 0.5))
    assert opt.step([grad, grad, grad])
    assert [opt.state[str(i)]["accumulator"].sum() for i in range(3)] == [1, 4, 1]
    assert_same_bits(params[0], params[2])


def test_trees_of_any_form():
    def tree(leaf):
        return {"E": leaf(0), "layers": [leaf(1), {"deep": (leaf(2), [leaf(3)])}], 0: leaf(4)}

    params = [np.zeros(TABLE) for _ in range(5)]
    grads = [tw.RowGrad(np.array([i, i]), np.ones((2, 4))) for i in range(5)]
    opt = tw.SGD(tree(params.__getitem__), 1.0)
    assert opt.step(tree(grads.__getitem__))
    assert opt.step({"E": grads[0], "layers": (None, {"deep": [grads[2], [None]]})}, partial=True)
    for i, w in enumerate(params):
        assert w[i].tolist() == [-2 * (2 if i in (0, 2) else 1)] * 4
        assert np.count_nonzero(w) == 4
    lone = np.zeros(TABLE)
    assert tw.SGD(lone, 1.0).step(grads[1])
    assert lone[1].tolist() == [-2] * 4
    with pytest.raises(TypeError, match="a mapping with the keys"):
        opt.step(grads[0])


SPARSE = ["csr", "csc", "coo", "lil", "dok", "bsr"]


@pytest.mark.parametrize("kind", ["array", "matrix"])
@pytest.mark.parametrize("layout", SPARSE)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_from_scipy(layout, kind, dtype):
    sparse = pytest.importorskip("scipy.sparse", reason="scipy is not installed")
    rng = np.random.default_rng(2)
    for density in (0.0, 0.02, 0.3):
        dense = np.where(rng.random((40, 30)) < density, rng.standard_normal((40, 30)), 0)
        dense = dense.astype(dtype)
        matrix = getattr(sparse, f"{layout}_{kind}")(dense)
        grad = tw.RowGrad.from_scipy(matrix)
        assert type(grad.values) is np.ndarray
        assert grad.values.dtype == dtype
        assert grad.rows.tolist() == np.flatnonzero(dense.any(1)).tolist()
        w, v = np.ones((40, 30), dtype), np.ones((40, 30), dtype)
        tw.SGD(w, 0.1, max_norm=1.0).step(grad)
        tw.SGD(v, 0.1, max_norm=1.0).step(dense)
        assert_same_bits(w, v)
        assert_same_bits(matrix.toarray(), dense)


def test_from_scipy_sums_what_is_stored_twice():
    sparse = pytest.importorskip("scipy.sparse", reason="scipy is not installed")
    places = np.array([3, 0, 3, 3]), np.array([1, 1, 1, 0])
    coo = sparse.coo_array((np.array([1.0, 2.0, 4.0, 8.0]), places), shape=(5, 2))
    csr = sparse.csr_array((np.ones(3), np.zeros(3, int), np.array([0, 0, 3, 3])), shape=(3, 1))
    grad = tw.RowGrad.from_scipy(coo)
    assert (grad.rows.tolist(), grad.values.tolist()) == ([0, 3], [[0, 2], [8, 5]])
    grad = tw.RowGrad.from_scipy(csr)
    assert (grad.rows.tolist(), grad.values.tolist()) == ([1], [[3]])
    # A zero that is stored names its row.
    stored = sparse.csr_array((np.zeros(1), ([2], [0])), shape=(3, 1))
    assert tw.RowGrad.from_scipy(stored).rows.tolist() == [2]
    for thing in (np.ones((2, 2)), [[1.0]], None, sparse.coo_array(np.ones(3))):
        with pytest.raises(TypeError, match=r"matrix: expected a 2-D scipy.sparse matrix"):
            tw.RowGrad.from_scipy(thing)
    with pytest.raises(TypeError, match=r"RowGrad.values.*int64"):
        tw.RowGrad.from_scipy(sparse.csr_array(np.ones((2, 2), np.int64)))


# Each update takes this from an element; its multiples have bits in every byte.
STEP = np.float64(0.1)
UPDATES = 3000
# Name, dtype, columns of a row and the step between them. eps drowns the accumulator: r is 2**30.
HOGWILD = [
    ("sgd", "f4", 64, 1),
    ("sgd", "f8", 33, 2),
    ("adagrad_inside", "f4", 64, 1),
    ("adagrad_row_inside", "f8", 64, 1),
    ("adagrad_row_inside", "f4", 21, 3),
]
ROWS = 24


def shared_arrays(memory, case):
    """The table and its accumulator in the shared memory."""
    name, dtype, columns, apart = case
    whole = np.ndarray((2, ROWS, columns * apart), dtype, memory.buf)
    table, state = whole[:, :, ::apart]
    return table, state[:, 0] if "row" in name else state


def update_shared(name, seed, barrier):
    """A process of two: updates half of the rows at a time, chosen anew for each step."""
    memory = shared_memory.SharedMemory(name)
    rng = np.random.default_rng(seed)
    for case in HOGWILD:
        table, state = shared_arrays(memory, case)
        values = np.full((ROWS // 2, table.shape[1]), STEP, table.dtype)
        barrier.wait(60)
        for _ in range(UPDATES):
            numbers = rng.permutation(ROWS)[: ROWS // 2]
            if case[0] == "sgd":
                tw.sgd_rows_(table, numbers, values, lr=1.0)
            else:
                tw.adagrad_rows_(table, numbers, values, state, lr=2.0**30, eps=2.0**60)
        barrier.wait(60)
        del table, state
    memory.close()


def possible(start, change, dtype):
    """What any number of updates by both processes can make of an element."""
    change = np.dtype(dtype).type(change)
    found = np.full(2 * UPDATES + 1, start, dtype)
    for i in range(2 * UPDATES):
        found[i + 1] = found[i] + change
    return found


def test_two_processes_on_one_table():
    """Updates may be lost to each other, but no element is one that neither has written."""
    context = multiprocessing.get_context("spawn")
    memory = shared_memory.SharedMemory(create=True, size=2 * ROWS * 66 * 8)
    barrier = context.Barrier(3)
    workers = [
        context.Process(target=update_shared, args=(memory.name, seed, barrier), daemon=True)
        for seed in (1, 2)
    ]
    try:
        for worker in workers:
            worker.start()
        for case in HOGWILD:
            memory.buf[:] = bytes(len(memory.buf))
            table, state = shared_arrays(memory, case)
            step = table.dtype.type(STEP)
            values = possible(0, -step, table.dtype)
            states = possible(0, 0 if case[0] == "sgd" else step * step, table.dtype)
            looks = []  # by arithmetic, which reads whole elements: a copy may be made byte by byte
            barrier.wait(60)
            end = time.monotonic() + 60
            while barrier.n_waiting < 2 and time.monotonic() < end:
                looks[40:] = [(table + 0, state + 0)]
                time.sleep(0.001)
            looks.append((table + 0, state + 0))
            barrier.wait(60)
            for w, s in looks:
                assert np.isin(w, values).all(), case
                assert np.isin(s, states).all(), case
            done = np.searchsorted(-values, -looks[-1][0])
            # Each process alone named every row about half of the times.
            assert done.min() > UPDATES // 4, case
            del table, state
        for worker in workers:
            worker.join(60)
            assert worker.exitcode == 0
    finally:
        for worker in workers:
            worker.kill()
            worker.join()
        memory.close()
        memory.unlink()


KIB = 1 << 10


def highest():
    """The most memory that this process ever had resident, in KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def watch_memory():
    """Prints by how much steps raised the peak, in KiB: few rows of a large table, then a batch
    of a million. And how many threads there are."""
    tw.set_num_threads(4)
    ids = np.arange(64)
    made = []
    # Small first: code and buffers that every size needs.
    for size in (1000, 1 << 22):
        table = np.ones((size, 8), np.float32)
        grad = tw.RowGrad(ids * (size // 64), np.ones((64, 8), np.float32))
        opts = [
            tw.SGD(table, max_norm=1.0, on_nonfinite="skip"),
            tw.Adagrad(table, accumulator="row"),
        ]
        made.append(opts)
        before = highest()
        for _ in range(20):
            for opt in opts:
                opt.step(grad)
            tw.sgd_rows_(table, grad.rows, grad.values, lr=0.1)
        few = highest() - before
    count = 1 << 20
    rows, values = np.arange(count), np.ones((count, 1), np.float32)
    rows %= 5000
    table = np.ones((5000, 1), np.float32)
    before = highest()
    for _ in range(5):
        tw.sgd_rows_(table, rows, values, lr=0.1)
    batch = highest() - before
    table = np.ones((5000, 64), np.float32)
    tw.sgd_rows_(table, rows[:5000], table.copy(), lr=0.1)
    print(few, batch, len(list(Path("/proc/self/task").iterdir())))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc/self to ask")
def test_memory_grows_with_the_batch_and_not_with_the_table():
    """A byte for each of 2^22 rows would be 4 MiB; a batch takes two words for a row, and one for
    each distinct one."""
    done = run_python(__file__)
    assert (done.returncode, done.stderr) == (0, "")
    few, batch, threads = map(int, done.stdout.split())
    assert few < 512, done.stdout
    assert 16 * KIB - 512 < batch < 20 * KIB, done.stdout
    assert threads == 4, done.stdout


if __name__ == "__main__":
    watch_memory()
