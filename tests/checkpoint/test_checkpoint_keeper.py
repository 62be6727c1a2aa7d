"""CheckpointKeeper: one line in a training loop, and a run that goes on where it was left."""

import os
import warnings
from pathlib import Path

import numpy as np
import pytest

import thalweg as tw
from refusing import frozen, refused


def new(value=0.0):
    return tw.SGD({"w": np.full(3, value)}, 0.5, 0.9)


def train(opt, keeper, until, extra=None):
    """Returns the steps at which it saved."""
    saved = []
    while opt.step_count < until:
        opt.step({"w": np.ones(3)})
        if keeper.save(opt, extra):
            saved.append(opt.step_count)
    return saved


def names(folder):
    return sorted(path.name for path in Path(folder).iterdir())


def step(count):
    return f"step-{count:09}.npz"


def damage(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_names_every_and_keep(tmp_path):
    keeper, opt = tw.CheckpointKeeper(tmp_path / "a" / "b", keep=3, every=4), new()
    assert keeper.restore(opt) is None
    assert keeper.latest() is None
    assert keeper.save(opt) is False, "nothing has been learned"
    assert train(opt, keeper, 22) == [4, 8, 12, 16, 20]
    assert names(tmp_path / "a" / "b") == [step(n) for n in (12, 16, 20)]
    assert keeper.paths() == [tmp_path / "a" / "b" / step(n) for n in (12, 16, 20)]
    assert keeper.latest() == keeper.paths()[-1]
    assert keeper.save(opt) is False
    assert keeper.save(opt, force=True) is True
    assert names(tmp_path / "a" / "b") == [step(n) for n in (16, 20, 22)]


def test_a_run_that_was_left_ends_with_the_same_bits(tmp_path):
    whole = new()
    train(whole, tw.CheckpointKeeper(tmp_path / "whole", every=7), 50)
    train(new(), tw.CheckpointKeeper(tmp_path / "a", every=7), 40, extra={"n": [1]})
    again, keeper = new(9.0), tw.CheckpointKeeper(str(tmp_path / "a"), every=7)
    assert keeper.restore(again) == {"n": [1]}
    assert again.step_count == 35
    train(again, keeper, 50)
    assert [x[1:] for x in frozen(list(again._arrays.values()))] == [
        x[1:] for x in frozen(list(whole._arrays.values()))
    ]


def test_by_default_every_step_and_three(tmp_path):
    keeper, opt = tw.CheckpointKeeper(tmp_path), new()
    train(opt, keeper, 5)
    assert names(tmp_path) == [step(n) for n in (3, 4, 5)]


def test_keep_one(tmp_path):
    keeper, opt = tw.CheckpointKeeper(tmp_path, 1, 2), new()
    train(opt, keeper, 5)
    assert names(tmp_path) == [step(4)]


def test_extra_is_asked_only_when_it_is_saved(tmp_path):
    keeper, opt, asked = tw.CheckpointKeeper(tmp_path, every=3), new(), []

    def extra():
        asked.append(opt.step_count)
        return {"asked": list(asked)}

    train(opt, keeper, 8, extra)
    assert asked == [3, 6]
    assert keeper.restore(new()) == {"asked": [3, 6]}


def test_a_damaged_one_is_skipped_and_reported(tmp_path):
    keeper, opt = tw.CheckpointKeeper(tmp_path, keep=4), new()
    train(opt, keeper, 4, lambda: opt.step_count)
    damage(tmp_path / step(4))
    (tmp_path / step(3)).write_bytes(b"")
    found = new()
    with pytest.warns(RuntimeWarning) as caught:
        assert keeper.restore(found) == 2
    assert found.step_count == 2
    messages = [str(each.message) for each in caught]
    assert len(messages) == 2
    for message, name in zip(sorted(messages), (step(3), step(4)), strict=True):
        assert message.startswith("skipped")
        assert name in message
        assert "damaged" in message
    with pytest.warns(RuntimeWarning, match="skipped"):
        assert keeper.latest() == tmp_path / step(2)
    assert names(tmp_path) == [step(n) for n in (1, 2, 3, 4)], "nothing is deleted by a look"
    # The run goes on and comes by there again.
    train(found, keeper, 6, lambda: found.step_count)
    assert names(tmp_path) == [step(n) for n in (3, 4, 5, 6)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert keeper.restore(new()) == 6


def test_only_damaged_ones(tmp_path):
    keeper, opt = tw.CheckpointKeeper(tmp_path), new()
    train(opt, keeper, 2)
    for path in keeper.paths():
        path.write_bytes(b"x")
    found = new()
    before = frozen(found)
    with pytest.warns(RuntimeWarning, match="skipped"):
        assert keeper.restore(found) is None
    assert frozen(found) == before


def test_one_that_does_not_fit_is_an_error(tmp_path):
    keeper = tw.CheckpointKeeper(tmp_path)
    train(new(), keeper, 2)
    other = tw.SGD({"v": np.zeros(3)}, 0.5, 0.9)
    with refused(tw.CheckpointError, step(2), "does not fit", "'v'", "'w'", keeps=other):
        keeper.restore(other)


def test_a_run_that_was_taken_back_keeps_those_ahead(tmp_path):
    """They are of another run, and newer by name; only those behind are deleted."""
    keeper = tw.CheckpointKeeper(tmp_path, keep=2)
    train(new(), tw.CheckpointKeeper(tmp_path, keep=9), 6)
    opt = new()
    tw.load_checkpoint(tmp_path / step(3), opt)
    opt.step({"w": np.ones(3)})
    keeper.save(opt)
    assert names(tmp_path) == [step(n) for n in (3, 4, 5, 6)]


def test_steps_beyond_nine_digits(tmp_path):
    keeper, opt = tw.CheckpointKeeper(tmp_path, keep=2), new()
    for count in (999_999_998, 999_999_999, 10**9, 10**9 + 1, 10**12):
        opt._set_counters(count, [count])
        keeper.save(opt)
    assert names(tmp_path) == sorted([step(10**9 + 1), step(10**12)])
    assert keeper.latest() == tmp_path / step(10**12)
    assert keeper.restore(new()) is None


FOREIGN = ["step-5.npz", "step-00000000x.npz", "step-000000001.npz.bak", "mine.npz", "step-.npz"]
FOREIGN += ["xstep-000000001.npz", "step--00000001.npz", "step-0000_00001.npz"]
FOREIGN += ["step-00000000\N{ARABIC-INDIC DIGIT ONE}.npz"]  # of which int() makes a number, too


def test_files_of_others_are_left_alone(tmp_path):
    for name in FOREIGN:
        (tmp_path / name).write_bytes(b"mine")
    (tmp_path / "folder").mkdir()
    keeper, opt = tw.CheckpointKeeper(tmp_path, keep=1), new()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert keeper.restore(opt) is None
        train(opt, keeper, 3)
        assert keeper.latest() == tmp_path / step(3)
    assert names(tmp_path) == sorted([*FOREIGN, "folder", step(3)])
    for name in FOREIGN:
        assert (tmp_path / name).read_bytes() == b"mine"


def test_a_leftover_goes_with_the_next_save_of_the_name(tmp_path):
    keeper, opt = tw.CheckpointKeeper(tmp_path), new()
    (tmp_path / f".{step(2)}.partial").write_bytes(b"left")
    train(opt, keeper, 2)
    assert names(tmp_path) == [step(1), step(2)]


def test_a_save_that_fails_deletes_nothing(tmp_path):
    keeper, opt = tw.CheckpointKeeper(tmp_path, keep=1), new()
    train(opt, keeper, 1)
    opt.step({"w": np.ones(3)})
    with pytest.raises(TypeError, match="extra"):
        keeper.save(opt, object())
    assert names(tmp_path) == [step(1)]
    (tmp_path / step(2)).mkdir()
    with refused(IsADirectoryError, "name of a file", step(2), keeps=opt):
        keeper.save(opt)
    assert names(tmp_path) == [step(1), step(2)]


def test_progress_of_saves_and_loads(tmp_path):
    seen = []
    keeper = tw.CheckpointKeeper(tmp_path, progress=lambda *x: seen.append(x))
    train(new(), keeper, 1)
    assert seen[-1] == (48, 48)
    seen.clear()
    keeper.restore(new())
    assert seen[-1] == (48, 48)


@pytest.mark.parametrize("name", ["keep", "every"])
@pytest.mark.parametrize(
    "value", [0, -1, 1.0, "3", None, True, np.True_, np.float64(3), [3]], ids=repr
)
def test_wrong_arguments(tmp_path, name, value):
    with refused(ValueError, name, "whole number >= 1", repr(value)):
        tw.CheckpointKeeper(tmp_path / "a", **{name: value})
    assert not (tmp_path / "a").exists()


def test_a_file_where_the_folder_should_be(tmp_path):
    (tmp_path / "file").write_bytes(b"mine")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with refused(NotADirectoryError, "expected a folder", "name another", str(folder)):
            tw.CheckpointKeeper(folder)
    assert (tmp_path / "file").read_bytes() == b"mine"


def test_a_folder_that_has_gone(tmp_path):
    keeper, opt = tw.CheckpointKeeper(tmp_path / "a"), new()
    os.rmdir(tmp_path / "a")
    assert keeper.restore(opt) is None
    opt.step({"w": np.ones(3)})
    with refused(FileNotFoundError, "folder is not there", "make it", keeps=opt):
        keeper.save(opt)


def test_who_went_back_goes_on_from_there(tmp_path):
    keeper = tw.CheckpointKeeper(tmp_path, keep=9)
    opt = tw.SGD(np.ones(3), lr=0.5)
    for _ in range(5):
        opt.step(np.ones(3))
        keeper.save(opt)
    tw.load_checkpoint(keeper.paths()[2], opt)
    opt.lr = 0.25
    opt.step(np.ones(3))
    keeper.save(opt)
    again = tw.SGD(np.ones(3))
    keeper.restore(again, options="file")
    assert (again.step_count, again.lr) == (4, 0.25)
