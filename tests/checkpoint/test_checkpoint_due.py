"""When a keeper saves: at every multiple once, however often it is asked, wherever a load leads."""

import numpy as np
import pytest
from test_checkpoint_newest import names, new, restored, step, train

import thalweg as tw


def test_a_skipped_step_saves_nothing_again(tmp_path):
    keeper = tw.CheckpointKeeper(tmp_path, every=2)
    opt = tw.SGD(np.zeros(2), on_nonfinite="skip")
    saved = []
    for grad in (1, 1, np.nan, np.nan, 1, np.nan, 1, 1, 1):
        opt.step(np.full(2, float(grad)))
        saved.append(keeper.save(opt))
    assert saved == [False, True, False, False, False, False, True, False, True]
    assert opt.skipped_steps == 3
    assert keeper.save(opt, force=True)


def test_a_run_that_was_restored_does_not_save_what_is_there(tmp_path):
    train(new(), tw.CheckpointKeeper(tmp_path, every=3), 6)
    keeper, opt = tw.CheckpointKeeper(tmp_path, every=3), new()
    keeper.restore(opt)
    assert keeper.save(opt) is False
    opt._set_counters(9, [9])
    assert keeper.save(opt) is True


def by_checkpoint(opt, found, path):
    tw.load_checkpoint(path, opt)


def by_state_dict(opt, found, path):
    opt.load_state_dict(found)


def by_counters(opt, found, path):
    """In none of the ways that are known."""
    opt._set_counters(4, [4])


@pytest.mark.parametrize("back", [by_checkpoint, by_state_dict, by_counters])
@pytest.mark.parametrize("seen", [False, True])
def test_an_epoch_that_is_run_again(tmp_path, back, seen):
    """Taken back after a loss, and asked to save at the count at which it has saved before."""
    keeper, opt = tw.CheckpointKeeper(tmp_path, every=2), new()
    train(opt, keeper, 4)
    found = opt.state_dict()
    train(opt, keeper, 8)
    opt._arrays["w"][...] = 77
    keeper.save(opt, force=True)
    back(opt, found, tmp_path / step(4))
    if seen:
        assert keeper.save(opt) is (back is by_counters), "what is there already"
    opt._arrays["w"][...] = -2.0
    while opt.step_count < 8:
        opt.step({"w": np.ones(3)})
    assert keeper.save(opt) is (seen or back is not by_counters)
    if seen or back is not by_counters:
        assert restored(tmp_path) == 8
    assert keeper.save(opt) is False


def test_back_to_the_start(tmp_path):
    keeper, opt = tw.CheckpointKeeper(tmp_path, every=2), new()
    keeper.save(opt, force=True)
    train(opt, keeper, 6)
    tw.load_checkpoint(tmp_path / step(4), opt)
    for start in (
        lambda: opt._set_counters(0, [0]),
        lambda: opt.load_state_dict(new().state_dict()),
    ):
        start()
        assert keeper.save(opt) is False, "nothing has been learned"
        opt._set_counters(1, [1])
        assert keeper.save(opt) is False
        opt._set_counters(2, [2])
        assert keeper.save(opt) is True


def test_a_load_before_the_first_save(tmp_path):
    train(opt := new(), tw.CheckpointKeeper(tmp_path / "a"), 22)
    found = new()
    tw.load_checkpoint(tmp_path / "a" / step(22), found)
    keeper = tw.CheckpointKeeper(tmp_path / "b", every=4)
    train(found, keeper, 25)
    assert names(tmp_path / "b") == [step(24)]
    assert opt.step_count == 22


def test_it_is_asked_less_often_than_it_saves(tmp_path):
    """Once an epoch of 47 steps, say: a multiple that has been passed is saved at the next call."""
    keeper, opt, saved = tw.CheckpointKeeper(tmp_path, every=100), new(), []
    for epoch in range(1, 9):
        opt._set_counters(47 * epoch, [47 * epoch])
        if keeper.save(opt):
            saved.append(opt.step_count)
    assert saved == [141, 235, 329]


def test_a_save_that_failed_is_tried_again(tmp_path):
    keeper, opt = tw.CheckpointKeeper(tmp_path, every=2), new()
    opt._set_counters(2, [2])
    with pytest.raises(TypeError):
        keeper.save(opt, len({}).__add__)
    opt._set_counters(3, [3])
    assert keeper.save(opt) is True
    assert names(tmp_path) == [step(3)]


@pytest.mark.parametrize("whole", [np.int64(3), np.uint8(3), np.array(3)], ids=repr)
def test_whole_numbers_of_numpy(tmp_path, whole):
    keeper, opt = tw.CheckpointKeeper(tmp_path, keep=whole, every=whole), new()
    assert (type(keeper.keep), type(keeper.every)) == (int, int)
    train(opt, keeper, 15)
    assert names(tmp_path) == [step(n) for n in (9, 12, 15)]


def test_partials_of_runs_that_were_killed_go(tmp_path):
    """Under whatever step; a look leaves them."""
    others = [tmp_path / ".other.npz.partial", tmp_path / "step-1.npz.partial"]
    left = [tmp_path / f".{step(n)}.partial" for n in (3, 77)]
    for path in (*left, *others):
        path.write_bytes(b"left")
    keeper = tw.CheckpointKeeper(tmp_path)
    keeper.restore(new())
    assert all(path.exists() for path in left)
    train(new(), keeper, 1)
    assert not any(path.exists() for path in left)
    assert all(path.exists() for path in others)
