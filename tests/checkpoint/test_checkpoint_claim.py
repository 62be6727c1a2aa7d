"""Two keepers and one folder: the second one is told so before anything of the first is lost."""

import contextlib
import copy
import gc
import os
import pickle
import shutil
import sys
import threading

import numpy as np
import pytest

import thalweg as tw
from claiming import new, stepped, tried
from refusing import refused

posix = pytest.mark.skipif(os.name == "nt", reason="no fork, no kill -9 on Windows")

CURE = ("CheckpointKeeper", "a folder of its own", "close()")


def held_by(whose, folder, **others):
    return refused(BlockingIOError, *CURE, f"of {whose}", str(folder), **others)


def here(folder, **others):
    return held_by("this process", folder, **others)


def test_twin_critics(tmp_path):
    """Each had the other's weights, without a word."""
    a, b = np.zeros(2), np.zeros(2)
    one, other = tw.SGD(a, lr=1.0), tw.SGD(b, lr=1.0)
    keeper, second = tw.CheckpointKeeper(tmp_path), tw.CheckpointKeeper(tmp_path)
    one.step(np.ones(2))
    other.step(-np.ones(2))
    keeper.save(one)
    before = sorted(tmp_path.iterdir()), keeper.latest().read_bytes()
    with here(tmp_path, keeps=(one, other)):
        second.save(other)
    assert before == (sorted(tmp_path.iterdir()), keeper.latest().read_bytes())
    second = tw.CheckpointKeeper(tmp_path / "other")  # the cure
    second.save(other)
    a[:] = b[:] = 0
    keeper.restore(one)
    second.restore(other)
    assert (a.tolist(), b.tolist()) == ([-1, -1], [1, 1])


@pytest.mark.parametrize("first", ["saved", "would not save yet"])
@pytest.mark.parametrize("how", ["would write", "would not", "at step 0", "forced"])
def test_the_second_is_refused_at_its_first_call(tmp_path, first, how):
    keeper = tw.CheckpointKeeper(tmp_path, every=1 if first == "saved" else 1000)
    opt = stepped()
    assert keeper.save(opt) is (first == "saved")
    second = tw.CheckpointKeeper(tmp_path, every=1 if how == "would write" else 1000)
    mine, asked = new() if how == "at step 0" else stepped(), []
    for _ in range(2):
        with here(tmp_path, keeps=mine):
            second.save(mine, lambda: asked.append(1), force=how == "forced")
    assert not asked
    opt.step(np.ones(3))
    assert keeper.save(opt) is (first == "saved"), "the first one goes on"


def test_to_make_one_and_to_read_claims_nothing(tmp_path):
    first, second, opt = tw.CheckpointKeeper(tmp_path), tw.CheckpointKeeper(tmp_path), stepped()
    first.restore(new())
    second.save(opt)
    for reading in (first, tw.CheckpointKeeper(tmp_path)):
        found = new()
        reading.restore(found)
        assert found.step_count == 1
        assert reading.latest() == reading.paths()[0] == reading.restored
    with here(tmp_path):
        first.save(opt)
    opt.step(np.ones(3))
    assert second.save(opt)


NAMES = {
    "a link": lambda folder: linked(folder),
    "a detour": lambda folder: folder / ".." / folder.name,
    "a relative path": lambda folder: os.path.relpath(folder),
    "a str": str,
    "a slash more": lambda folder: f"{folder}/",
}


def linked(folder):
    (link := folder.parent / "link").symlink_to(folder)
    return link


@posix
@pytest.mark.parametrize("name", NAMES)
def test_another_name_of_the_folder(tmp_path, name):
    keeper = tw.CheckpointKeeper(tmp_path / "a")
    keeper.save(stepped())
    with refused(BlockingIOError, *CURE):
        tw.CheckpointKeeper(NAMES[name](tmp_path / "a")).save(stepped())
    assert tw.CheckpointKeeper(tmp_path / "a" / "b").save(stepped()), "a folder in it is another"


def ended_by_close(keeper):
    keeper.close()
    keeper.close()


def ended_by_with(keeper):
    with contextlib.suppress(LookupError), keeper as same:
        assert same is keeper
        raise LookupError


@pytest.mark.parametrize("end", [ended_by_close, ended_by_with])
def test_it_ends(tmp_path, end):
    keeper, second = tw.CheckpointKeeper(tmp_path), tw.CheckpointKeeper(tmp_path)
    opt = stepped()
    keeper.save(opt)
    with here(tmp_path):
        second.save(stepped())
    end(keeper)
    second.save(other := stepped())
    assert keeper.restore(new()) is None, "it still reads"
    with here(tmp_path):
        keeper.save(opt)
    second.close()
    opt.step(np.ones(3))
    assert keeper.save(opt), "and takes it again"
    with here(tmp_path):
        second.save(other)


def test_garbage_claims_nothing(tmp_path):
    keeper = tw.CheckpointKeeper(tmp_path)
    keeper.save(stepped())
    del keeper
    assert tried(tmp_path) == "taken"
    gc.disable()
    try:
        keeper = tw.CheckpointKeeper(tmp_path)
        keeper.myself = keeper
        keeper.save(stepped())
        assert tried(tmp_path) != "taken"
        del keeper
        assert tried(tmp_path) == "taken", "nobody has collected it yet"
    finally:
        gc.enable()


def test_no_file_stays_open(tmp_path):
    before = len(os.listdir("/proc/self/fd")) if sys.platform == "linux" else 0
    for i in range(20):
        keeper = tw.CheckpointKeeper(tmp_path / str(i % 2))
        keeper.save(opt := stepped())
        with pytest.raises(BlockingIOError):
            tw.CheckpointKeeper(tmp_path / str(i % 2)).save(opt)
        if i % 3:
            keeper.close()
        del keeper
        assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) in (
            ["step-000000001.npz"],
            ["step-000000001.npz"] * 2,
        )
    if sys.platform == "linux":
        assert len(os.listdir("/proc/self/fd")) <= before


@pytest.mark.parametrize(
    "copied", [copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))]
)
def test_a_copy_has_no_claim(tmp_path, copied):
    keeper, opt = tw.CheckpointKeeper(tmp_path, keep=2, every=3), stepped()
    keeper.save(opt)
    other = copied(keeper)
    assert (other.folder, other.keep, other.every) == (tmp_path, 2, 3)
    with here(tmp_path):
        other.save(stepped())
    del other
    keeper.save(opt)


def test_of_many_threads_one_gets_it(tmp_path):
    start, results = threading.Barrier(8), []

    def run():
        keeper = tw.CheckpointKeeper(tmp_path)
        start.wait()
        try:
            keeper.save(stepped())
        except BlockingIOError:
            results.append(None)
        else:
            results.append(keeper)

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 8
    assert sum(each is not None for each in results) == 1


@posix
def test_a_folder_that_is_made_anew(tmp_path):
    """The claim is of the one that was deleted."""
    keeper, opt = tw.CheckpointKeeper(tmp_path / "a"), stepped()
    keeper.save(opt)
    shutil.rmtree(tmp_path / "a")
    second = tw.CheckpointKeeper(tmp_path / "a")
    second.save(other := stepped())
    opt.step(np.ones(3))
    with here(tmp_path / "a"):
        keeper.save(opt)
    (tmp_path / "a").rename(tmp_path / "b")
    other.step(np.ones(3))
    with refused(FileNotFoundError, "folder is not there"):
        second.save(other)
    (tmp_path / "a").mkdir()
    assert second.save(other)
    assert tried(tmp_path / "a") != "taken"
    assert tried(tmp_path / "b") == "taken"


# One keeper, two optimizers


def test_one_keeper_for_two_optimizers(tmp_path):
    """The same loss: files of one name for both."""
    keeper, one, other = tw.CheckpointKeeper(tmp_path, every=5), stepped(), stepped()
    keeper.save(one)
    for force in (False, True):
        with refused(ValueError, "another optimizer", "a folder of its own", "restore(opt)"):
            keeper.save(other, force=force)
    assert not list(tmp_path.iterdir())
    assert keeper.save(one, force=True)
    keeper.restore(other)  # it is this run now, too
    assert keeper.save(other, force=True)
    assert keeper.save(one, force=True), "that was a look"
    with refused(ValueError, "another optimizer"):
        keeper.save(third := stepped())
    del one, other
    assert keeper.save(third, force=True), "those are gone"
    keeper.close()
    assert keeper.save(stepped(), force=True)


def test_what_is_no_optimizer(tmp_path):
    keeper, opt = tw.CheckpointKeeper(tmp_path), stepped()
    for thing, word in (([opt, new()], "list"), (None, "NoneType"), ({"a": opt}, "dict")):
        for call in (
            keeper.save,
            keeper.restore,
            lambda x: tw.save_checkpoint(tmp_path / "a", x),
            lambda x: tw.load_checkpoint(tmp_path / "a", x),
        ):
            with refused(TypeError, "opt: expected an optimizer", word, keeps=opt):
                call(thing)
    assert not list(tmp_path.iterdir())
