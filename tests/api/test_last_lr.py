"""opt.last_lr: the rate that the last step used, one for each group."""

import copy
import pickle

import numpy as np
import pytest

import thalweg as tw

ONE = np.ones(2)


def test_a_number_and_a_schedule():
    opt = tw.SGD(np.ones(2), lr=0.5)
    assert opt.last_lr == (None,)
    opt.step(ONE)
    assert opt.last_lr == (0.5,)
    opt.lr = lambda t: 1 / (t + 1)
    assert opt.last_lr == (0.5,)  # no step has used the new one
    opt.step(ONE)
    assert opt.last_lr == (0.5,)
    opt.step(ONE)
    assert opt.last_lr == (1 / 3,)
    assert all(type(rate) is float for rate in opt.last_lr)
    with pytest.raises(AttributeError):
        opt.last_lr = (1.0,)


def test_it_is_the_schedule_not_what_decays_it():
    opt = tw.Adagrad(np.ones(2), lr=tw.schedules.Exponential(0.5, 0.5), lr_decay=1.0)
    for t in range(3):
        opt.step(ONE)
        assert opt.last_lr == (0.5 * 0.5**t,)


def test_one_for_each_group_and_added_ones():
    groups = [
        {"params": {"a": np.ones(2), "b": np.ones(2)}, "lr": 0.1},
        {"params": [np.ones(2)]},
        {"match": "*.b", "lr": lambda t: 0.5**t},
    ]
    opt = tw.SGD(groups, lr=0.2)
    grads = [{"a": ONE, "b": ONE}, [ONE]]
    assert opt.last_lr == (None,) * 3
    opt.step(grads)
    assert opt.last_lr == (0.1, 0.2, 1.0)
    opt.add_group({"params": np.ones(2), "lr": 0.3})
    assert opt.last_lr == (0.1, 0.2, 1.0, None)
    opt.step([*grads, ONE])
    assert opt.last_lr == (0.1, 0.2, 0.5, 0.3)


def test_a_step_that_was_not_taken_used_none():
    opt = tw.SGD(np.ones(2), lr=lambda t: 0.5, on_nonfinite="skip")
    assert not opt.step(ONE * np.nan)
    assert opt.last_lr == (None,)
    opt.step(ONE)
    opt.lr = 0.25
    with pytest.raises(ValueError, match="expected shape"):
        opt.step(np.ones(3))
    opt.on_nonfinite = "raise"
    with pytest.raises(FloatingPointError):
        opt.step(ONE * np.nan)
    assert opt.last_lr == (0.5,)


def test_a_frozen_group_keeps_the_one_it_used():
    opt = tw.SGD([{"params": np.ones(2)}, {"params": np.ones(2), "frozen": True}], lr=0.5)
    opt.step([ONE, ONE])
    assert opt.last_lr == (0.5, None)
    opt.param_groups[1]["frozen"], opt.param_groups[0]["frozen"] = False, True
    opt.lr = 0.25
    opt.step([ONE, ONE])
    assert opt.last_lr == (0.5, 0.25)


def test_copies_and_files_keep_it(tmp_path):
    def made():
        return tw.SGD([{"params": np.ones(2)}, {"params": np.ones(2), "frozen": True}], lr=0.5)

    opt = made()
    opt.step([ONE, None])
    tw.save_checkpoint(tmp_path / "a.npz", opt)
    loaded, restored = made(), made()
    tw.load_checkpoint(tmp_path / "a.npz", loaded)
    restored.load_state_dict(opt.state_dict())
    for other in (pickle.loads(pickle.dumps(opt)), copy.deepcopy(opt), loaded, restored):
        assert other.last_lr == (0.5, None)
