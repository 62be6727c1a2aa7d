"""opt.replace: another array in the place of one, what is kept, what is refused."""

import copy
import gc
import pickle
import weakref

import numpy as np
import pytest

import thalweg as tw
from refusing import RULES, refused


def made(make=lambda p, **o: tw.Adagrad(p, 0.1, **o), **options):
    params = {"emb": np.ones((3, 2), np.float32), "W": np.ones(4)}
    opt = make(params, **options)
    opt.step({"emb": np.ones((3, 2)), "W": np.ones(4)})
    return params, opt


def longer(array, rows=2):
    return np.concatenate([array, np.zeros((rows, *array.shape[1:]), array.dtype)])


@pytest.mark.parametrize("make", RULES)
def test_what_is_kept_and_what_is_new(make):
    params, opt = made(make)
    slot = opt._slot
    before = opt.state["emb"][slot].copy()
    counted = opt.step_count, opt.state["emb"]["step"], opt.last_lr
    params["emb"] = longer(params["emb"])
    opt.replace("emb", params["emb"])
    assert (opt.step_count, opt.state["emb"]["step"], opt.last_lr) == counted
    state = opt.state["emb"][slot]
    assert state.shape == (5, 2)
    assert (state[:3] == before).all()
    assert (state[3:] == 0).all()
    assert opt.params["emb"] is params["emb"]
    assert opt.param_groups[0]["params"]["emb"] is params["emb"]
    with refused(ValueError, 'grads["emb"]', "(5, 2)", "(3, 2)", keeps=(params, opt)):
        opt.step({"emb": np.ones((3, 2)), "W": np.ones(4)})
    assert opt.step({"emb": np.ones((5, 2)), "W": np.ones(4)})
    assert (params["emb"][3:] != 0).all()
    assert "18 elements" not in repr(opt)
    assert "14 elements" in repr(opt)


def test_new_rows_start_as_at_construction():
    params, opt = made(initial_accumulator_value=0.5)
    opt.replace("emb", longer(params["emb"]))
    assert (opt.state["emb"]["accumulator"][3:] == 0.5).all()


def test_the_place_in_the_container():
    params, opt = made()
    old = params["emb"]
    params["emb"] = longer(old)
    opt.replace("emb", params["emb"])
    grads = {"emb": np.ones((5, 2)), "W": np.ones(4)}
    for _ in range(5):
        assert opt.step(grads)
    params["emb"] = old  # the one it had no longer belongs there
    with refused(RuntimeError, 'params["emb"]', "another in its place", "opt.replace"):
        for _ in range(5):
            opt.step(grads)


def test_whoever_forgets_the_container_hears_of_it():
    params, opt = made()
    opt.replace("emb", longer(params["emb"]))
    with refused(RuntimeError, 'params["emb"]', "another in its place"):
        opt.step({"emb": np.ones((5, 2)), "W": np.ones(4)})
    params["emb"] = opt.params["emb"]
    assert opt.step({"emb": np.ones((5, 2)), "W": np.ones(4)})


@pytest.mark.parametrize(
    ("error", "array", "words"),
    [
        (TypeError, [1, 2], ["NumPy array"]),
        (TypeError, np.ones((5, 2)), ["float32", "float64"]),
        (TypeError, np.ones((5, 2), int), ['params["emb"]']),
        (ValueError, np.ones((5, 3), np.float32), ["(3, 2)", "(5, 3)", "first axis"]),
        (ValueError, np.ones(5, np.float32), ["(3, 2)", "(5,)"]),
        (ValueError, np.broadcast_to(np.float32(1), (5, 2)), ["read-only"]),
        (ValueError, np.lib.stride_tricks.as_strided(np.ones(9, np.float32), (5, 2), (4, 4)), []),
    ],
)
def test_an_array_that_does_not_fit(error, array, words):
    params, opt = made()
    with refused(error, 'params["emb"]', *words, keeps=(params, opt)):
        opt.replace("emb", array)
    assert opt.step({"emb": np.ones((3, 2)), "W": np.ones(4)})


def test_names():
    params, opt = made()
    for wrong in ("V", "emb.x", 0, None, ["emb"]):
        with refused(KeyError, "'emb', 'W'", keeps=(params, opt)):
            opt.replace(wrong, longer(params["emb"]))


def test_shared_memory():
    params, opt = made()
    block = np.ones(20, np.float32)
    other = tw.SGD(block[:4])
    joint = tw.Joint(a=opt, b=other)
    with refused(ValueError, 'params["a.emb"]', 'params["b"]', keeps=(params, opt, block)):
        opt.replace("emb", block.reshape(10, 2))
    del joint
    both = {"x": np.ones(4), "y": np.ones(4)}
    opt = tw.SGD(both, momentum=0.9)
    for taken in (both["y"], opt.state["y"]["velocity"]):
        with refused(ValueError, "share memory", keeps=(both, opt)):
            opt.replace("x", taken)
    # Of its own it may be: what it was is left.
    buffer = np.ones(9)
    opt = tw.SGD({"x": buffer[:4]}, momentum=0.9, lr=0.5)
    opt.replace("x", buffer[:6])
    assert opt.step({"x": np.ones(6)})
    assert buffer.tolist() == [0.5] * 6 + [1] * 3


def test_a_gradient_that_is_the_new_array():
    params, opt = made()
    new = longer(params["emb"])
    opt = tw.SGD({"emb": params["emb"]})
    for _ in range(2):
        opt.step({"emb": params["emb"].copy()})
    opt.replace("emb", new)
    params = {"emb": new}
    with refused(ValueError, 'grads["emb"]', "share memory", keeps=(params, opt)):
        opt.step({"emb": new})


def test_states_of_the_caller():
    w, s = np.ones((3, 2)), np.full((3, 2), 4.0)
    opt = tw.Adagrad({"t": w}, lr=0.5, state={"t": s})
    new, sums = longer(w), np.full((5, 2), 9.0)
    with refused(ValueError, 'state["t"]', "caller", "state=", keeps=(w, s, opt)):
        opt.replace("t", new)
    for wrong, error in ((s, ValueError), (sums[:, :1], ValueError), (sums.astype("f"), TypeError)):
        with refused(error, 'state["t"]', keeps=(w, s, opt)):
            opt.replace("t", new, wrong)
    with refused(ValueError, "share memory", keeps=(w, s, opt)):
        opt.replace("t", new, new)
    opt.replace("t", new, sums)
    assert opt._state_of(0).base is sums
    opt.step({"t": np.ones((5, 2))})
    assert (sums == 10).all()
    # One of ours that becomes the caller's, by row; and none for a rule without state.
    opt = tw.Adagrad({"t": w}, accumulator="row")
    rows = np.ones(5)
    opt.replace("t", new, rows)
    opt.step({"t": np.ones((5, 2))})
    assert (rows == 2).all()
    with refused(ValueError, 'state["t"]', "no state"):
        tw.SGD({"t": w}).replace("t", new, np.ones((5, 2)))
    new, _, other = copy.deepcopy((new, rows, opt))
    assert other.params["t"] is new
    with refused(ValueError, "caller"):
        other.replace("t", longer(new))


def test_bound_gradients():
    w, g = np.ones(3), np.ones(3)
    opt = tw.SGD(w, grads=g)
    with refused(ValueError, "bound", keeps=(w, g, opt)):
        opt.replace("", np.ones(5))


def test_within_a_step():
    w = {"t": np.ones(3)}
    opt = tw.SGD(w, lambda t: opt.replace("t", np.ones(5)) or 0.1)
    with refused(RuntimeError, "within a step", keeps=w):
        opt.step({"t": np.ones(3)})
    opt.lr = 0.1
    assert opt.step({"t": np.ones(3)})


def test_shapes_of_all_kinds():
    w = {"scalar": np.ones(()), "empty": np.ones((0, 3)), "one": np.ones(1)}
    opt = tw.SGD(w, 0.5, 0.9)
    opt.step({"scalar": 1.0, "empty": np.ones((0, 3)), "one": np.ones(1)})
    for name, new in (("scalar", np.zeros(())), ("empty", np.ones((2, 3))), ("one", np.ones(0))):
        w[name] = new
        opt.replace(name, new)
    assert opt.state["scalar"]["velocity"] == 1.0
    assert opt.step({"scalar": np.float16(1.0), "empty": np.ones((2, 3)), "one": np.ones(0)})
    assert w["scalar"] == -0.5 * (0.9 * 1 + 1)
    assert opt.step({"scalar": np.array(1, np.float16), "empty": None, "one": None})


def test_partial_and_sparse_steps_around_it():
    w = {"t": np.ones((9, 2)), "b": np.ones(2)}
    opt = tw.Adagrad(w, max_norm=1.0)
    opt.step({"t": tw.RowGrad([8, 8], np.ones((2, 2)))}, partial=True)
    w["t"] = w["t"][:4].copy()
    opt.replace("t", w["t"])
    with refused(IndexError, 'grads["t"].rows', "0 to 3", keeps=(w, opt)):
        opt.step({"t": tw.RowGrad([8, 8], np.ones((2, 2)))}, partial=True)
    assert opt.step({"t": tw.RowGrad([3, 3], np.ones((2, 2)))}, partial=True)
    assert opt.step({"b": np.ones(2)}, partial=True)
    assert opt.step({"t": np.ones((4, 2)), "b": np.ones(2)})


def test_the_old_array_is_let_go():
    opt = tw.SGD({"t": np.ones(3)}, momentum=0.9)
    old = weakref.ref(opt.params["t"])
    opt.replace("t", np.ones(5))
    opt.step({"t": np.ones(5)})  # sees that nobody else has the container that it came in
    gc.collect()
    assert old() is None


def test_groups_copies_and_checkpoints(tmp_path):
    a, b = np.ones((3, 2)), np.ones(2)
    opt = tw.Adagrad([{"params": a}, {"params": b, "lr": 0.5}])
    opt.step([np.ones((3, 2)), np.ones(2)])
    tw.save_checkpoint(tmp_path / "short.npz", opt)
    new = longer(a)
    opt.replace("0", new)
    with refused(tw.CheckpointError, "(3, 2)", "(5, 2)", keeps=(new, b, opt)):
        tw.load_checkpoint(tmp_path / "short.npz", opt)
    opt.step([np.ones((5, 2)), np.ones(2)])
    tw.save_checkpoint(tmp_path / "long.npz", opt)
    again = tw.Adagrad([{"params": np.zeros((5, 2))}, {"params": np.zeros(2), "lr": 0.5}])
    tw.load_checkpoint(tmp_path / "long.npz", again)
    new2, other = copy.deepcopy((new, opt))
    third = pickle.loads(pickle.dumps(opt))
    for each in (opt, again, other, third):
        each.step([np.ones((5, 2)), np.ones(2)])
    assert other.params[0] is new2
    for each in (again, other, third):
        assert each.params[0].tobytes() == new.tobytes()


def test_the_copy_watches_its_container():
    params, opt = made()
    params["emb"] = longer(params["emb"])
    opt.replace("emb", params["emb"])
    params2, other = copy.deepcopy((params, opt))
    grads = {"emb": np.ones((5, 2)), "W": np.ones(4)}
    assert other.step(grads)
    params2["emb"] = longer(params2["emb"], 0)
    with refused(RuntimeError, "another in its place"):
        for _ in range(4):
            other.step(grads)


def test_a_gradient_of_another_array_that_met_nothing_before():
    params = {"a": np.ones(2), "b": np.ones(3)}
    opt = tw.SGD(params)
    grad = np.ones(3)
    opt.step({"a": np.ones(2), "b": grad})
    params["a"] = grad  # becomes a param of the optimizer
    opt.replace("a", grad)
    with refused(ValueError, 'grads["b"]', 'params["a"]', keeps=(params, opt)):
        opt.step({"a": np.ones(3), "b": grad})
