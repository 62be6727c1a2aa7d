"""state=tree: the caller's own arrays as velocity or accumulator."""

import copy
import pickle

import numpy as np
import pytest

import thalweg as tw
from bits import assert_same_bits
from refusing import refused, rows

MAKERS = {
    "sgd": lambda w, **o: tw.SGD(w, 0.1, 0.9, **o),
    "adagrad": lambda w, **o: tw.Adagrad(w, 0.1, **o),
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_it_is_used_as_it_is(make):
    g = {"a": np.ones((3, 2)), "b": [np.ones(2)]}
    w = {"a": np.ones((3, 2)), "b": [np.ones(2)]}
    usual = make(w)
    for _ in range(3):
        usual.step(g)
    copied = {"a": w["a"].copy(), "b": [w["b"][0].copy()]}
    slot = usual._slot
    given = {"a": usual.state["a"][slot].copy(), "b": (usual.state["b.0"][slot].copy(),)}
    resumed = make(copied, state=given)
    usual.step(g)
    resumed.step(g)
    for mine, other in ((copied["a"], w["a"]), (copied["b"][0], w["b"][0])):
        assert_same_bits(mine, other)
    assert_same_bits(given["a"], usual.state["a"][slot])
    assert np.shares_memory(resumed.state["a"][slot], given["a"])


def test_none_is_ours():
    v = np.full(2, 3.0)
    opt = tw.Adagrad(
        {"a": np.ones(2), "b": np.ones(2)},
        initial_accumulator_value=0.5,
        state={"a": v, "b": None},
    )
    assert opt.state["a"]["accumulator"].tolist() == [3, 3]
    assert opt.state["b"]["accumulator"].tolist() == [0.5, 0.5]


def test_a_velocity_takes_part_without_momentum():
    for form in ("heavy_ball", "classic", "ema"):
        w, v, g = np.ones(3), np.full(3, 5.0), np.arange(3.0)
        opt = tw.SGD(w, 0.1, form=form, state=v)
        x, y = w.copy(), v.copy()
        opt.step(g)
        tw.sgd_(x, g, y, lr=0.1, form=form)
        assert_same_bits(w, x)
        assert_same_bits(v, y)
        opt.param_groups[0]["momentum"] = 0.5  # there is a velocity


def test_groups_and_rows():
    s = np.zeros(4, np.float32)
    table = np.ones((4, 2), np.float32)
    opt = tw.Adagrad([{"params": {"t": table}}], accumulator="row", state=[{"t": s}])
    opt.step([{"t": tw.RowGrad(np.array([1]), np.ones((1, 2), np.float32))}])
    assert s.tolist() == [0, 1, 0, 0]


def test_order_and_strides_of_its_own():
    w, g = np.ones((5, 7)), np.random.default_rng(0).standard_normal((5, 7))
    x = w.copy()
    v = np.zeros((5, 14))[:, ::2]
    tw.SGD(w, 0.1, 0.9, state=v).step(g)
    usual = tw.SGD(x, 0.1, 0.9)
    usual.step(g)
    assert_same_bits(w, x)
    assert_same_bits(v, usual.state[""]["velocity"])


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_copies_keep_identity(make):
    w, s = {"a": np.ones(3)}, {"a": np.zeros(3)}
    opt = make(w, state=s)
    for copied in (copy.deepcopy, lambda each: pickle.loads(pickle.dumps(each))):
        w2, s2, other = copied((w, s, opt))
        other.step({"a": np.ones(3)})
        assert (w2["a"] != 1).all()
        assert (s2["a"] != 0).all()
        assert np.shares_memory(other.state["a"][opt._slot], s2["a"])
    assert (w["a"] == 1).all()


def test_memmap(tmp_path):
    s = np.memmap(tmp_path / "s", np.float32, "w+", shape=(3,))
    opt = tw.Adagrad(np.ones(3, np.float32), state=s)
    opt.step(np.full(3, 2, np.float32))
    s.flush()
    assert np.fromfile(tmp_path / "s", np.float32).tolist() == [4, 4, 4]


w = np.ones((3, 2), np.float32)
WRONG = rows(
    {
        "shape": (ValueError, np.zeros(3, np.float32), 'state["a"]', "shape"),
        "dtype": (TypeError, np.zeros((3, 2)), 'state["a"]', "float32"),
        "int": (TypeError, np.zeros((3, 2), int), 'state["a"]', "int"),
        "list": (TypeError, [1.0], 'state["a"]', "list"),
        "number": (TypeError, 1.0, 'state["a"]', "float"),
        "the param": (ValueError, w, 'params["a"]', "share memory"),
        "overlapping itself": (
            ValueError,
            np.broadcast_to(np.float32(0), (3, 2)),
            'state["a"]',
            "",
        ),
    }
)


@pytest.mark.parametrize(("error", "given", "place", "word"), WRONG)
@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_wrong_arrays(make, error, given, place, word):
    with refused(error, place, word, keeps=(w,)):
        make({"a": w}, state={"a": given})


TREES = rows(
    {
        "unknown key": (ValueError, {"a": None, "c": None}, "state", "'c'"),
        "missing key": (ValueError, {"a": None}, "state", "'b'"),
        "list for a mapping": (TypeError, [None, None], "state", "mapping"),
        "mapping for a list": (TypeError, {"a": None, "b": {}}, 'state["b"]', "list"),
        "length": (ValueError, {"a": None, "b": [None, None]}, 'state["b"]', "1 items"),
    }
)


@pytest.mark.parametrize(("error", "given", "place", "word"), TREES)
def test_wrong_trees(error, given, place, word):
    params = {"a": np.ones(2), "b": [np.ones(2)]}
    with refused(error, place, word, keeps=(params,)):
        tw.Adagrad(params, state=given)


def test_a_buffer_that_changes_is_noticed():
    for change in ("shape", "flags"):
        w, s = np.ones(4), np.zeros(4)
        opt = tw.Adagrad(w, state=s)
        opt.step(np.ones(4))
        if change == "shape":
            s.shape = (2, 2)
        else:
            s.flags.writeable = False
        with refused(RuntimeError, "state", "make a new optimizer", keeps=(w, s)):
            opt.step(np.ones(4))


def test_shared_by_two_arrays():
    s = np.zeros(3)
    params = {"a": np.ones(3), "b": np.ones(3)}
    with refused(ValueError, 'state["a"]', 'state["b"]', keeps=(params, s)):
        tw.Adagrad(params, state={"a": s, "b": s})


def test_a_gradient_may_not_be_the_state():
    w, s = np.ones(3), np.zeros(3)
    opt = tw.Adagrad(w, state=s)
    with refused(ValueError, "grads", "state", keeps=(w, s)):
        opt.step(s)


HOGWILD = """
import multiprocessing as mp
from multiprocessing import shared_memory
import numpy as np
import thalweg as tw

def run(name, seed):
    block = shared_memory.SharedMemory(name)
    table = np.ndarray((1000, 4), np.float32, block.buf)
    sums = np.ndarray((1000, 4), np.float32, block.buf, offset=16000)
    r = np.random.default_rng(seed)
    opt = tw.Adagrad(table, lr=0.1, state=sums)
    values = np.ones((8, 4), np.float32)
    for _ in range(2000):
        opt.step(tw.RowGrad(r.integers(0, 1000, 8), values))
    del table, sums, opt
    block.close()

if __name__ == "__main__":
    block = shared_memory.SharedMemory(create=True, size=32000)
    floats = np.ndarray(8000, np.float32, block.buf)
    floats[:] = 0
    context = mp.get_context("spawn")
    both = [context.Process(target=run, args=(block.name, i)) for i in range(2)]
    [each.start() for each in both]
    [each.join() for each in both]
    print(floats[:4000].mean(), np.isfinite(floats).all())
    del floats
    block.close()
    block.unlink()
"""


def test_hogwild(tmp_path):
    """Two processes on one table and one accumulator: near what one process makes of both."""
    import subprocess
    import sys

    (tmp_path / "hogwild.py").write_text(HOGWILD)
    ran = subprocess.run(
        [sys.executable, str(tmp_path / "hogwild.py")], capture_output=True, text=True, check=True
    )
    mean, finite = ran.stdout.split()
    table, sums = np.zeros((1000, 4), np.float32), np.zeros((1000, 4), np.float32)
    opt = tw.Adagrad(table, lr=0.1, state=sums)
    streams = [np.random.default_rng(i) for i in range(2)]
    for _ in range(2000):
        for r in streams:
            opt.step(tw.RowGrad(r.integers(0, 1000, 8), np.ones((8, 4), np.float32)))
    assert finite == "True"
    assert abs(float(mean) - table.mean()) < 0.02 * abs(table.mean())
