"""A Joint in one file: whole or not at all, resumed at any step with the same bits."""

import os
import warnings

import numpy as np
import pytest

import saving
import thalweg as tw
from bits import assert_same_bits
from conftest import FULL
from processes import run_python
from refusing import frozen, refused


def made(**limits):
    w = {"emb": np.ones((9, 3), np.float32), "head": {"W": np.ones((3, 2)), "b": np.ones(2)}}
    emb = tw.Adagrad(w["emb"], lr=tw.schedules.InverseTime(0.4, 0.1), lr_decay=0.1)
    head = tw.SGD(w["head"], lr=0.1, momentum=0.9)
    return w, tw.Joint(emb=emb, head=head, **limits)


def arrays(w, joint):
    states = [slots[opt._slot] for opt in joint._members().values() for slots in opt.state.values()]
    return [w["emb"], w["head"]["W"], w["head"]["b"], *states]


def grads(t):
    r = np.random.default_rng(t)
    bad = np.nan if t % 5 == 3 else 0.0
    return {
        "emb": tw.RowGrad(r.integers(0, 9, 4), r.standard_normal((4, 3))),
        "head": {"W": r.standard_normal((3, 2)), "b": r.standard_normal(2) + bad},
    }


def turn(joint, t):
    """All together, one by itself, and steps that are skipped."""
    if t % 4 == 2:
        joint["emb"].step(grads(t)["emb"])
    else:
        assert joint.step(grads(t)) == (t % 5 != 3)


LIMITS = {"max_norm": 1.0, "norm_eps": 0.0, "on_nonfinite": "skip"}


def test_resumed_at_any_step(tmp_path):
    w, joint = made(**LIMITS)
    for t in range(20):
        tw.save_checkpoint(tmp_path / f"{t}.npz", joint, extra={"t": t})
        turn(joint, t)
    end = (
        joint.step_count,
        joint.skipped_steps,
        joint.grad_norm,
        frozen([*joint._members().values()]),
    )
    for start in range(20):
        w2, other = made()
        extra = tw.load_checkpoint(tmp_path / f"{start}.npz", other, options="file")
        assert extra == {"t": start}
        for t in range(start, 20):
            turn(other, t)
        for mine, its in zip(arrays(w2, other), arrays(w, joint), strict=True):
            assert_same_bits(mine, its)
        counted = other.step_count, other.skipped_steps, other.grad_norm
        assert counted == end[:3]
        assert (other.max_norm, other.norm_eps, other.on_nonfinite) == (1.0, 0.0, "skip")
        assert other["emb"].last_lr == joint["emb"].last_lr


@pytest.mark.skipif(os.name == "nt", reason="no kill -9 on Windows")
@pytest.mark.slow
def test_killed_at_any_moment(tmp_path):
    """Both halves are of one step, always."""
    count = 2000 if FULL else 20
    ran = run_python(saving.__file__, "kill_joint", tmp_path, count, timeout=900)
    assert ran.returncode == 0, (ran.stdout + ran.stderr)[-3000:]
    assert int(ran.stdout) > count / 10


def test_one_moment(tmp_path):
    """What is saved beside steps of another thread is of one step of both."""
    import threading

    # Momentum 1: a velocity is the number of the step.
    w = [np.zeros(40_000), np.zeros(40_000)]
    joint = tw.Joint(a=tw.SGD(w[0], 1.0, 1.0), b=tw.SGD(w[1], 1.0, 1.0))
    ones = np.ones(40_000)
    stopped = threading.Event()

    def step():
        while not stopped.is_set():
            joint.step({"a": ones, "b": ones})

    thread = threading.Thread(target=step)
    thread.start()
    try:
        for i in range(40):
            if i % 2:
                parts = joint.state_dict()["optimizers"].values()
                arrays = [each["arrays"][""] for each in parts]
            else:
                tw.save_checkpoint(tmp_path / "a.npz", joint)
                found = tw.read_checkpoint(tmp_path / "a.npz")
                parts = found["optimizers"].values()
                arrays = [each["state"][""] for each in parts]
                n = next(iter(parts))["step_count"]
                values = {float(x) for each in found["params"].values() for x in np.unique(each)}
                assert values == {-n * (n + 1) / 2}
            counts = {each["step_count"] for each in parts} | {each["step"] for each in arrays}
            assert len(counts) == 1
            assert {x for each in arrays for x in np.unique(each["velocity"])} == counts
    finally:
        stopped.set()
        thread.join()


def test_what_is_read(tmp_path):
    w, joint = made(max_norm=1.0)
    joint.step(grads(0))
    tw.save_checkpoint(tmp_path / "a.npz", joint, extra=5)
    found = tw.read_checkpoint(tmp_path / "a.npz")
    assert found["rule"] == "Joint"
    assert list(found["params"]) == ["emb", "head.W", "head.b"]
    assert found["optimizers"]["emb"]["rule"] == "Adagrad"
    assert list(found["optimizers"]["head"]["state"]) == ["W", "b"]
    assert found["optimizers"]["head"]["step_count"] == 1
    assert found["limits"]["max_norm"] == 1.0
    assert found["extra"] == 5
    assert_same_bits(found["params"]["emb"], w["emb"])


def test_what_does_not_fit(tmp_path):
    w, joint = made(max_norm=1.0)
    joint.step(grads(0))
    head = joint["head"]
    keeps = (w, joint["emb"], head)
    tw.save_checkpoint(tmp_path / "one.npz", head)
    tw.save_checkpoint(tmp_path / "both.npz", joint)
    with refused(tw.CheckpointError, "expected the state of a Joint", keeps=keeps):
        tw.load_checkpoint(tmp_path / "one.npz", joint)
    with refused(tw.CheckpointError, "that of a Joint", keeps=keeps):
        tw.load_checkpoint(tmp_path / "both.npz", head)
    other = tw.Joint(emb=tw.Adagrad(np.ones((9, 3), np.float32)), tail=tw.SGD(np.ones(2)))
    with refused(tw.CheckpointError, "expected emb, tail, received emb, head"):
        tw.load_checkpoint(tmp_path / "both.npz", other)
    short = {"W": np.ones((3, 2)), "b": np.ones(3)}
    emb = tw.Adagrad(np.ones((9, 3), np.float32))
    other = tw.Joint(emb=emb, head=tw.SGD(short, 0.1, 0.9))
    with refused(tw.CheckpointError, "head: arrays['b']", keeps=(short, emb)):
        tw.load_checkpoint(tmp_path / "both.npz", other)
    for wrong in ([joint], {"a": joint}):
        with refused(TypeError, "tw.Joint(", keeps=keeps):
            tw.save_checkpoint(tmp_path / "a.npz", wrong)


def test_options_that_do_not_fit_leave_both(tmp_path):
    """The second optimizer cannot take its options: the first one's are put back."""
    w, joint = made(max_norm=1.0)
    joint["head"].param_groups[0]["lr"] = lambda t: 0.1
    joint["emb"].lr = 0.7
    tw.save_checkpoint(tmp_path / "a.npz", joint)
    w, other = made(max_norm=2.0)
    with refused(tw.CheckpointError, "head: groups[0].lr", keeps=(w, other["emb"], other["head"])):
        tw.load_checkpoint(tmp_path / "a.npz", other)
    assert other.max_norm == 2.0
    other.step(grads(0))


def test_whose_options_hold(tmp_path):
    _, joint = made(max_norm=1.0)
    joint["head"].lr = 0.7
    tw.save_checkpoint(tmp_path / "a.npz", joint)
    w, other = made(on_nonfinite="skip")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        tw.load_checkpoint(tmp_path / "a.npz", other)
    (warning,) = caught
    assert warning.filename == __file__
    for word in ("head: groups[0].lr", "max_norm: 1.0", "on_nonfinite"):
        assert word in str(warning.message)
    assert (other["head"].lr, other.max_norm, other.on_nonfinite) == (0.7, 1.0, "propagate")
    w, other = made(on_nonfinite="skip")
    tw.load_checkpoint(tmp_path / "a.npz", other, options="live")
    assert (other["head"].lr, other.max_norm, other.on_nonfinite) == (0.1, None, "skip")
    w, other = made(on_nonfinite="skip")
    with refused(UserWarning, keeps=(w, other["emb"], other["head"])):
        tw.load_checkpoint(tmp_path / "a.npz", other)


def test_limits_that_change_sides(tmp_path):
    """The Joint's in the file, an optimizer's own here; and the other way round."""
    _, joint = made(max_norm=1.0)
    tw.save_checkpoint(tmp_path / "joint.npz", joint)
    _, own = made()
    own["emb"].max_norm = 3.0
    tw.save_checkpoint(tmp_path / "own.npz", own)
    tw.load_checkpoint(tmp_path / "joint.npz", own, options="file")
    assert (own.max_norm, own["emb"].max_norm) == (1.0, None)
    tw.load_checkpoint(tmp_path / "own.npz", own, options="file")
    assert (own.max_norm, own["emb"].max_norm) == (None, 3.0)


def test_a_load_that_ends_half_way(tmp_path, monkeypatch):
    """All of them refuse steps until a load succeeds."""
    from thalweg._checkpoint.archive import Archive

    w, joint = made()
    joint.step(grads(0))
    tw.save_checkpoint(tmp_path / "a.npz", joint)
    copy, count = Archive.copy, [0]

    def fail(self, live, entry):
        count[0] += 1
        if count[0] == 5:
            raise OSError("gone")
        copy(self, live, entry)

    monkeypatch.setattr(Archive, "copy", fail)
    with refused(OSError, "gone"):
        tw.load_checkpoint(tmp_path / "a.npz", joint)
    monkeypatch.undo()
    with refused(RuntimeError, "half-way", keeps=w):
        joint.step(grads(0))
    for each in joint._members().values():
        with refused(RuntimeError, "half-way", keeps=w):
            each.step(w["head"])
    with refused(RuntimeError, "half-way"):
        tw.save_checkpoint(tmp_path / "b.npz", joint)
    tw.load_checkpoint(tmp_path / "a.npz", joint)
    joint.step(grads(1))


def test_a_keeper(tmp_path):
    """Members that step in turn; a multiple of ``every`` that was passed, not met."""
    w, joint = made()
    with tw.CheckpointKeeper(tmp_path / "runs", every=3) as keeper:
        assert keeper.restore(joint) is None
        saved = []
        for t in range(8):
            joint.step({"emb": grads(0)["emb"]}, partial=True)
            if t % 2:  # the larger count goes up by two between these
                joint["emb"].step(grads(0)["emb"])
            if keeper.save(joint, extra=t):
                saved.append(joint.step_count)
            joint.step({"head": grads(0)["head"]}, partial=True)
            assert not keeper.save(joint), "only the smaller count went on"
        assert saved == [3, 6, 9, 12]
        with refused(ValueError, "another optimizer"):
            keeper.save(joint["emb"])
        before = [x.copy() for x in arrays(w, joint)]
        joint.step(grads(1))
        assert keeper.restore(joint) == 7
        assert joint.step_count == 12
        assert joint["head"].step_count == 7
        assert_same_bits(arrays(w, joint)[0], before[0])


def test_a_keeper_sees_a_load(tmp_path):
    _, joint = made()
    tw.save_checkpoint(tmp_path / "start.npz", joint)
    keeper = tw.CheckpointKeeper(tmp_path / "runs", every=3)
    for _ in range(3):
        joint.step(grads(0))
    assert keeper.save(joint)
    tw.load_checkpoint(tmp_path / "start.npz", joint)
    for _ in range(3):
        joint.step(grads(1))
    assert keeper.save(joint), "another state after as many steps"


def test_the_same_state_makes_the_same_bytes(tmp_path):
    files = []
    for name in "ab":
        _, joint = made(**LIMITS)
        joint.step(grads(0))
        tw.save_checkpoint(tmp_path / name, joint)
        files.append((tmp_path / name).read_bytes())
    assert files[0] == files[1]
    with np.load(tmp_path / "a", allow_pickle=False) as found:
        assert list(found) == [
            *(f"param{i}" for i in range(3)),
            "state0",
            "state1",
            "state2",
            "manifest",
        ]
