"""tw.Joint: who takes part, what is refused, and what is kept."""

import copy
import pickle

import numpy as np
import pytest

import thalweg as tw
from refusing import refused


def made(**limits):
    w = {"emb": np.ones((5, 2)), "head": {"W": np.ones(3), "b": np.ones(2)}}
    joint = tw.Joint(emb=tw.Adagrad(w["emb"]), head=tw.SGD(w["head"], momentum=0.9), **limits)
    return w, joint


def grads(value=1.0):
    return {"emb": np.full((5, 2), value), "head": {"W": np.full(3, value), "b": np.full(2, value)}}


def test_who_has_no_gradients_takes_no_step():
    w, joint = made()
    assert joint.step({"emb": None, "head": grads()["head"]})
    assert joint.step({"head": grads()["head"]}, partial=True)
    assert (joint["emb"].step_count, joint["head"].step_count, joint.step_count) == (0, 2, 2)
    assert joint.step({}, partial=True)
    assert joint.step_count == 2
    assert (w["emb"] == 1).all()
    assert list(joint) == ["emb", "head"]
    assert len(joint) == 2
    joint["emb"].step(grads()["emb"])
    assert joint["emb"].step_count == 1


def test_bound_buffers():
    w, g = [np.ones(2), np.ones(3)], [np.ones(2), np.ones(3)]
    joint = tw.Joint(a=tw.SGD(w[0], 0.5, grads=g[0]), b=tw.SGD(w[1], 0.5, grads=g[1]), max_norm=100)
    assert joint.step()
    assert w[0].tolist() == [0.5, 0.5]
    assert joint.grad_norm == np.sqrt(5)
    with refused(TypeError, "no buffers are bound"):
        made()[1].step()


@pytest.mark.parametrize(
    ("error", "wrong", "word"),
    [
        (ValueError, {"emb": np.ones((5, 2))}, 'grads["head"]'),
        (ValueError, {**grads(), "more": 1}, "'more'"),
        (TypeError, [1, 2], "mapping"),
        (ValueError, {**grads(), "emb": np.ones(5)}, 'grads["emb"]'),
        (ValueError, {**grads(), "head": {"W": np.ones(3), "b": np.ones(3)}}, 'grads["head.b"]'),
        (ValueError, {**grads(), "head": {"W": np.ones(3)}}, 'grads["head.b"]'),
        (TypeError, {**grads(), "head": {"W": np.ones(3), "b": [1]}}, 'grads["head.b"]'),
    ],
)
def test_wrong_gradients(error, wrong, word):
    w, joint = made(max_norm=1.0)
    joint.step(grads())
    with refused(error, word, keeps=(w, joint["emb"], joint["head"])):
        joint.step(wrong)
    assert joint.step(grads())


@pytest.mark.parametrize(
    ("error", "words", "arguments", "named"),
    [
        (ValueError, "scale", (), {"scale": 0.0}),
        (ValueError, "scale", (), {"scale": np.nan}),
        (TypeError, "scale", (), {"scale": "1"}),
        (TypeError, "received 2", (1.0,), {}),
        (TypeError, "'lr'", (), {"lr": 0.1}),
        (TypeError, "twice", (), {"grads": {}}),
    ],
)
def test_wrong_words_of_a_step(error, words, arguments, named):
    w, joint = made()
    with refused(error, words, keeps=(w, joint["emb"], joint["head"])):
        joint.step(grads(), *arguments, **named)


@pytest.mark.parametrize(
    ("error", "wrong"),
    [
        (TypeError, {"max_norm": "1"}),
        (TypeError, {"max_norm": True}),
        (ValueError, {"max_norm": 0.0}),
        (ValueError, {"max_norm": np.nan}),
        (ValueError, {"norm_eps": -1.0}),
        (TypeError, {"norm_eps": None}),
        (ValueError, {"on_nonfinite": "stop"}),
        (ValueError, {"on_nonfinite": None}),
        (TypeError, {"max_value": 1.0}),
    ],
)
def test_wrong_limits(error, wrong):
    w = np.ones(3, np.float32)
    opt = tw.SGD(w)
    (name,) = wrong
    with refused(error, name, keeps=(w, opt)):
        tw.Joint(a=opt, **wrong)
    tw.Joint(b=opt)  # the one that was refused does not hold it


def test_a_row_that_is_not_there_leaves_both():
    w, joint = made()
    wrong = {**grads(), "emb": tw.RowGrad(np.array([7]), np.ones((1, 2)))}
    with refused(IndexError, 'grads["emb"].rows', keeps=(w, joint["emb"], joint["head"])):
        joint.step(wrong)


@pytest.mark.parametrize("first", ["alone", "together"])
def test_a_gradient_may_be_no_array_of_the_other(first):
    w = [np.ones(4), np.ones(4)]
    one, two = tw.SGD(w[0]), tw.Adagrad(w[1])
    joint = tw.Joint(one=one, two=two)
    if first == "alone":
        one.step(w[1])  # by itself it meets nothing of its own
    with refused(ValueError, 'grads["one"]', 'params["two"]', keeps=(w, one, two)):
        joint.step({"one": w[1], "two": np.ones(4)})


def test_what_a_joint_refuses_to_hold():
    w, joint = made()
    emb, head = joint["emb"], joint["head"]
    other = tw.SGD(np.ones(2))
    with refused(ValueError, "in one", '"emb"', keeps=(w, emb)):
        tw.Joint(a=other, emb=emb)
    with refused(ValueError, "once"):
        tw.Joint(a=other, b=other)
    for wrong in ("a.b", ".", ""):
        with refused(ValueError, "dot", repr(wrong)):
            tw.Joint(**{wrong: other})
    for wrong in (None, [other], {"a": other}, tw.SGD):
        with refused(TypeError, "optimizers"):
            tw.Joint(a=other, b=wrong)
    with refused(ValueError, "received none"):
        tw.Joint()
    shared = np.ones(4)
    with refused(ValueError, 'params["a"]', 'params["b.x"]', "share memory"):
        tw.Joint(a=tw.SGD(shared[:3]), b=tw.SGD({"x": shared[2:]}))
    tw.Joint(a=other)  # nothing that was refused holds it
    joint.step(grads())
    assert head.step_count == 1
    del joint
    tw.Joint(emb=emb, head=head)


def test_limits_stand_once():
    w, joint = made(max_norm=1.0)
    emb = joint["emb"]
    for name in ("max_norm", "max_array_norm"):
        with refused(ValueError, "max_norm", '"emb"', keeps=(w, emb)):
            setattr(emb, name, 2.0)
    joint.max_norm = None
    emb.max_norm = 2.0
    with refused(ValueError, "max_norm", '"emb"', keeps=(w, emb)):
        joint.max_norm = 1.0
    joint["head"].on_nonfinite = "raise"
    with refused(ValueError, "on_nonfinite", '"head"', keeps=(w, emb)):
        joint.on_nonfinite = "skip"
    for wrong in (0, -1.0, float("nan")):
        with refused(ValueError, "max_norm"):
            joint.max_norm = wrong
    with refused(ValueError, "on_nonfinite"):
        joint.on_nonfinite = "never"
    with refused(ValueError, "max_norm"):
        tw.Joint(a=tw.SGD(np.ones(2), max_norm=1.0), max_norm=1.0)


def test_names_stand_before_the_arrays_as_long_as_it_is_joined():
    _, joint = made()
    head = joint["head"]
    with refused(ValueError, 'grads["head.W"]'):
        head.step({"W": np.ones(9), "b": np.ones(2)})
    del joint
    with refused(ValueError, 'grads["W"]'):
        head.step({"W": np.ones(9), "b": np.ones(2)})


def test_a_group_that_is_added_is_seen():
    a, b, new = np.ones(2), np.ones(2), np.ones(3)
    one, two = tw.SGD([{"params": a}]), tw.SGD(b)
    joint = tw.Joint(one=one, two=two)
    with refused(ValueError, 'params["one.1"]', 'params["two"]', keeps=(a, b)):
        one.add_group({"params": b[:1]})
    one.add_group({"params": new})
    with refused(ValueError, 'grads["two"]', 'params["one.1"]', keeps=(a, b, new)):
        joint.step({"one": [np.ones(2), np.ones(3)], "two": new[:2]})
    assert joint.step({"one": [np.ones(2), np.ones(3)], "two": np.ones(2)})
    assert (new != 1).all()


def test_a_schedule_may_not_step_the_joint():
    held = []
    w = np.ones(2), np.ones(2)
    one = tw.SGD(w[0], lambda step: held[0].step({"one": np.ones(2), "two": np.ones(2)}) or 0.1)
    two = tw.SGD(w[1])
    held.append(tw.Joint(one=one, two=two))
    with refused(RuntimeError, "within a step", keeps=(w, two)):
        held[0].step({"one": np.ones(2), "two": np.ones(2)})
    assert two.step(np.ones(2))  # no gate stays shut


COPIES = [copy.deepcopy, lambda each: pickle.loads(pickle.dumps(each))]


@pytest.mark.parametrize("copied", COPIES, ids=["deepcopy", "pickle"])
def test_copies(copied):
    w, joint = made(max_norm=1.0, on_nonfinite="skip")
    joint.step(grads())
    joint.step(grads(np.nan))
    w2, other = copied((w, joint))
    assert other["emb"]._arrays[""] is w2["emb"]
    counted = other.step_count, other.skipped_steps, other.grad_norm
    assert counted == (1, 1, joint.grad_norm)
    assert (other.max_norm, other.on_nonfinite) == (1.0, "skip")
    joint.step(grads(2.0))
    other.step(grads(2.0))
    assert w2["emb"].tobytes() == w["emb"].tobytes()
    assert w2["head"]["W"].tobytes() == w["head"]["W"].tobytes()
    with refused(TypeError, "deepcopy"):
        copy.copy(joint)


def test_state_dict():
    w, joint = made(max_norm=1.0)
    joint.step(grads())
    saved, params = joint.state_dict(), copy.deepcopy(w)
    joint.step(grads(3.0))
    w2, other = made(max_norm=1.0)
    w2["emb"][...] = params["emb"]
    for name in ("W", "b"):
        w2["head"][name][...] = params["head"][name]
    other.load_state_dict(saved)
    assert other.grad_norm == saved["grad_norm"]
    other.step(grads(3.0))
    assert w2["emb"].tobytes() == w["emb"].tobytes()
    assert w2["head"]["W"].tobytes() == w["head"]["W"].tobytes()


def test_a_state_dict_that_does_not_fit_leaves_both():
    w, joint = made(max_norm=1.0)
    joint.step(grads())
    saved = joint.state_dict()
    for change in (
        {"version": 2},
        {"skipped_steps": -1},
        {"grad_norm": "x"},
        {"limits": {}},
        {"optimizers": {"emb": saved["optimizers"]["emb"]}},
        {"optimizers": {**saved["optimizers"], "head": {}}},
        {"limits": {"max_norm": -1.0, "on_nonfinite": "skip"}},
    ):
        with refused(ValueError, "load_state_dict", keeps=(w, joint["emb"], joint["head"])):
            joint.load_state_dict({**saved, **change}, options="file")
        assert joint.max_norm == 1.0
    wrong = copy.deepcopy(saved)
    wrong["optimizers"]["head"]["groups"][0]["lr"] = -1.0
    wrong["optimizers"]["emb"]["step_count"] = 77
    wrong["optimizers"]["emb"]["groups"][0]["lr"] = 0.7  # set before the other's is refused
    with refused(ValueError, "lr", keeps=(w, joint["emb"], joint["head"])):
        joint.load_state_dict(wrong, options="file")
    joint.step(grads())


def test_params_and_rates():
    w, joint = made()
    assert joint.params["emb"] is w["emb"]
    assert joint.params["head"]["b"] is w["head"]["b"]
    assert joint.lr == {"emb": 1e-2, "head": 1e-3}
    assert [group["lr"] for group in joint.param_groups] == [1e-2, 1e-3]
    for group in joint.param_groups:
        group["lr"] *= 0.5
    assert joint.lr == {"emb": 5e-3, "head": 5e-4}
    joint["head"].lr = 0.0
    joint.step(grads())
    assert (w["head"]["W"] == 1).all()
    assert (w["emb"] != 1).all()
    with refused(AttributeError, "joint['emb'].lr", keeps=(w, joint["emb"], joint["head"])):
        joint.lr = 0.1
    with refused(KeyError, "'emb', 'head'", "'tail'"):
        joint["tail"]


def test_names_that_no_step_reads():
    w, joint = made()
    for name in ("max_value", "max_array_norm", "momentum", "x"):
        with refused(AttributeError, name, 'joint["name"]', keeps=(w, joint["emb"])):
            setattr(joint, name, 1.0)
    with refused(AttributeError, keeps=w):
        joint.step_count = 3
    joint._mine = 3

    class Own(tw.Joint):
        pass

    own = Own(a=tw.SGD(np.ones(2)))
    own.note = "kept"
    assert pickle.loads(pickle.dumps(joint))._mine == 3
    assert copy.deepcopy(own).__dict__["note"] == "kept"


def test_norm_eps():
    w, joint = made(max_norm=0.5, norm_eps=0.0)
    joint.step(grads())
    assert joint.grad_norm == np.sqrt(15)
    assert (joint["head"].state["W"]["velocity"] == 0.5 / np.sqrt(15)).all()
    for wrong in (-1.0, float("nan"), float("inf"), None):
        with refused(TypeError if wrong is None else ValueError, "norm_eps", keeps=w):
            joint.norm_eps = wrong
    assert joint.norm_eps == 0.0


def test_a_table_that_grows():
    w, joint = made(max_norm=1.0)
    joint.step(grads())
    w["emb"] = np.concatenate([w["emb"], np.ones((2, 2))])
    joint["emb"].replace("", w["emb"])
    with refused(ValueError, 'grads["emb"]', "(7, 2)", keeps=(w, joint["emb"], joint["head"])):
        joint.step(grads())
    g = {**grads(), "emb": np.ones((7, 2))}
    assert joint.step(g)
    assert joint.grad_norm == np.sqrt(19)
    with refused(ValueError, 'grads["head.b"]', 'params["emb"]', keeps=w):
        joint.step({**g, "head": {"W": np.ones(3), "b": w["emb"][6]}})
    with refused(ValueError, 'params["emb"]', 'params["head.W"]', keeps=w):
        joint["emb"].replace("", w["head"]["W"][:2][None])


class Logging(tw.SGD):
    def step(self, grads, **words):
        return super().step(grads, **words)


def test_a_step_of_another_kind():
    """That of a subclass would not be called; thalweg.mpi's is such a one."""
    w = np.ones(3)
    with refused(TypeError, "own step", "Logging", keeps=w):
        tw.Joint(a=Logging(w))


def test_repr_and_base():
    _, joint = made(max_norm=1.0, on_nonfinite="skip")
    assert repr(joint).startswith("Joint(emb=Adagrad(")
    assert "max_norm=1.0, on_nonfinite='skip')" in repr(joint)
    assert "norm_eps=0.5" in repr(made(norm_eps=0.5)[1])
    with refused(TypeError, "never initialised"):
        tw.Joint.__new__(tw.Joint).step({})
