"""Which checkpoint is the newest: by the number of its save, then its step; never by its time."""

import os
import re
import shutil
import subprocess
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest

import golden
import thalweg as tw
from thalweg._checkpoint.archive import Archive
from thalweg._checkpoint.file import write


def new():
    return tw.SGD({"w": np.zeros(3)}, 0.5)


def train(opt, keeper, until):
    while opt.step_count < until:
        opt.step({"w": np.ones(3)})
        keeper.save(opt)


def step(count):
    return f"step-{count:09}.npz"


def names(folder):
    return sorted(path.name for path in Path(folder).iterdir())


def restored(folder):
    """By a keeper of its own: the step, and the one that all elements of the param have."""
    opt, keeper = new(), tw.CheckpointKeeper(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        keeper.restore(opt)
    assert keeper.latest() == keeper.paths()[-1] == keeper.restored
    assert opt._arrays["w"].tolist() == [-0.5 * opt.step_count] * 3
    return opt.step_count


def touched(folder, time):
    for i, path in enumerate(sorted(folder.iterdir())):
        os.utime(path, (time(i), time(i)))
    return folder


def copied(folder):
    """By cp, whose order is the directory's."""
    subprocess.run(["cp", "-r", folder, folder.parent / "b"], check=True)
    return folder.parent / "b"


def zipped(folder):
    shutil.make_archive(str(folder.parent / "z"), "zip", folder)
    zipfile.ZipFile(folder.parent / "z.zip").extractall(folder.parent / "b")
    return folder.parent / "b"


def copied_backwards(folder):
    (folder.parent / "b").mkdir()
    for path in sorted(folder.iterdir(), reverse=True):
        shutil.copy(path, folder.parent / "b")
    return folder.parent / "b"


MOVED = {
    "as it is": lambda folder: folder,
    "cp -r": copied,
    "unzipped": zipped,
    "copied backwards": copied_backwards,
    "moved": lambda folder: folder.rename(folder.parent / "b"),
    "all of one time": lambda folder: touched(folder, lambda i: 1e9),
    "the newest first": lambda folder: touched(folder, lambda i: 1e9 - i),
    "before 1970": lambda folder: touched(folder, lambda i: -1e6 - i),
}


@pytest.mark.skipif(os.name == "nt", reason="no cp, no files from before 1970 on Windows")
@pytest.mark.parametrize("how", MOVED)
@pytest.mark.parametrize("back", [False, True], ids=["straight on", "went back"])
def test_times_of_files_say_nothing(tmp_path, how, back):
    folder = tmp_path / "a"
    with tw.CheckpointKeeper(folder, keep=3, every=100) as keeper:
        opt = new()
        train(opt, keeper, 500)
        if back:
            tw.load_checkpoint(folder / step(300), opt)
            train(opt, keeper, 399)
            keeper.save(opt, force=True)
    assert restored(MOVED[how](folder)) == (399 if back else 500)


def test_who_went_back_is_newest_in_another_process_too(tmp_path):
    """Whoever saves next counts on from what is there."""
    train(new(), tw.CheckpointKeeper(tmp_path, keep=9), 6)
    for start, until in ((2, 3), (4, 5), (1, 2)):
        opt = new()
        tw.load_checkpoint(tmp_path / step(start), opt)
        train(opt, tw.CheckpointKeeper(tmp_path, keep=9), until)
        assert restored(tmp_path) == until
    keeper = tw.CheckpointKeeper(tmp_path)
    assert [path.name for path in keeper.paths()] == [step(n) for n in (1, 4, 6, 3, 5, 2)]


def test_files_that_no_keeper_has_numbered_go_by_their_step(tmp_path):
    """As those of the first format, and those of save_checkpoint."""
    opt = new()
    for n in (1, 2, 3, 4):
        opt.step({"w": np.ones(3)})
        tw.save_checkpoint(tmp_path / step(n), opt)
    touched(tmp_path, lambda i: 1e9 - i)
    assert restored(tmp_path) == 4
    tw.load_checkpoint(tmp_path / step(2), opt)
    train(opt, tw.CheckpointKeeper(tmp_path), 3)
    assert restored(tmp_path) == 3, "one that is numbered is newer than all that are not"


def test_files_of_the_first_format(tmp_path):
    for n in (2, 6, 4):
        shutil.copy(golden.GOLDEN / "v1-adagrad.npz", tmp_path / step(n))
    keeper, opt = tw.CheckpointKeeper(tmp_path, keep=9), golden.adagrad()
    assert [path.name for path in keeper.paths()] == [step(n) for n in (2, 4, 6)]
    keeper.restore(opt, options="file")
    assert (keeper.restored, opt.step_count) == (tmp_path / step(6), 6)
    opt._set_counters(3, [3])
    keeper.save(opt)
    assert keeper.latest() == tmp_path / step(3)


def test_the_numbers(tmp_path):
    """From 1 on; a save without a keeper has none; a save that fails takes none."""

    def saved(path):
        archive = Archive(path)
        archive.close()
        return archive.manifest["saved"]

    keeper, opt = tw.CheckpointKeeper(tmp_path, keep=9), new()
    train(opt, keeper, 2)
    opt.step({"w": np.ones(3)})
    with pytest.raises(TypeError):
        keeper.save(opt, len)
    with pytest.raises(TypeError):
        keeper.save(opt, {1}, force=True)
    keeper.save(opt)
    tw.save_checkpoint(tmp_path / "a.npz", opt)
    found = {path.name: saved(path) for path in tmp_path.iterdir()}
    assert found == {step(1): 1, step(2): 2, step(3): 3, "a.npz": 0}
    write(tmp_path / step(3), opt, None, None, 2**64)
    train(opt, tw.CheckpointKeeper(tmp_path / "b"), 4)
    keeper.close()
    train(opt, keeper, 5)
    assert saved(tmp_path / step(5)) == 2**64 + 1
    assert saved(tmp_path / "b" / step(4)) == 1


def test_the_same_number_twice_goes_by_step(tmp_path):
    """Two folders that were thrown together."""
    for name, count in (("a", 3), ("b", 7)):
        opt = new()
        opt._set_counters(count, [count])
        opt._arrays["w"][...] = -0.5 * count
        tw.CheckpointKeeper(tmp_path / name).save(opt)
        shutil.copy(tmp_path / name / step(count), tmp_path)
    shutil.rmtree(tmp_path / "a")
    shutil.rmtree(tmp_path / "b")
    assert restored(tmp_path) == 7


def test_a_file_whose_number_is_unknown_is_reported(tmp_path):
    """It may have been the newest: that it is skipped is said, whatever its step."""
    opt = new()
    train(opt, keeper := tw.CheckpointKeeper(tmp_path, keep=9), 4)
    (tmp_path / step(2)).write_bytes(b"x")
    found = new()
    with pytest.warns(RuntimeWarning, match=step(2)) as caught:
        keeper.restore(found)
    assert (len(caught), found.step_count) == (1, 4)
    assert caught[0].filename == __file__
    assert [path.name for path in keeper.paths()] == [step(n) for n in (2, 1, 3, 4)]
    (tmp_path / step(2)).unlink()
    (tmp_path / step(9)).mkdir()
    with pytest.warns(RuntimeWarning, match=step(9)):
        assert keeper.latest() == tmp_path / step(4)


def test_files_that_another_one_deletes_meanwhile(tmp_path, monkeypatch):
    """Whoever saves there has newer ones by then."""
    train(new(), tw.CheckpointKeeper(tmp_path, keep=9), 3)
    opened, looks = Archive.__init__, []

    def meanwhile(self, path):
        looks.append(path.name)
        if len(looks) == 4:  # all three have been looked at, the newest is to be read
            for each in tmp_path.iterdir():
                each.unlink()
            opt = new()
            opt._set_counters(8, [8])
            opt._arrays["w"][...] = -4.0
            write(tmp_path / step(8), opt, None, None, 9)
        opened(self, path)

    monkeypatch.setattr(Archive, "__init__", meanwhile)
    assert restored(tmp_path) == 8


def test_it_is_verified_once(tmp_path, monkeypatch):
    """And read a second time only into the arrays."""
    train(new(), keeper := tw.CheckpointKeeper(tmp_path), 3)
    verify, verified = Archive.verify, []

    def counting(self, path, progress=None):
        verified.append(path.name)
        verify(self, path, progress)

    monkeypatch.setattr(Archive, "verify", counting)
    keeper.restore(new())
    assert verified == [step(3)]


def test_what_was_restored(tmp_path):
    keeper = tw.CheckpointKeeper(tmp_path / "a")
    assert keeper.restored is None
    assert keeper.restore(new()) is None
    assert keeper.restored is None, "nothing there"
    train(new(), keeper, 2)
    assert keeper.restored is None
    assert keeper.restore(new()) is None
    assert keeper.restored == tmp_path / "a" / step(2), "restored, no extra"
    (tmp_path / "a" / step(2)).write_bytes(b"")
    with pytest.warns(RuntimeWarning, match="skipped"):
        keeper.restore(new())
    assert keeper.restored == tmp_path / "a" / step(1)
    with pytest.raises(tw.CheckpointError), pytest.warns(RuntimeWarning, match="skipped"):
        keeper.restore(tw.SGD(np.ones(3)))
    assert keeper.restored is None
    (tmp_path / "a" / step(1)).unlink()
    with pytest.warns(RuntimeWarning, match="skipped"):
        keeper.restore(new())
    assert keeper.restored is None


DOCS = Path(__file__).parents[2] / "docs" / "checkpoint.md"


@pytest.mark.skipif(not DOCS.exists(), reason="needs the sources: docs are not beside tests/")
def test_the_run_of_the_docs_goes_on(tmp_path, monkeypatch):
    (block,) = re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    ends = []
    for folder, cuts in ((tmp_path / "whole", [2000]), (tmp_path / "left", [1500, 2000])):
        folder.mkdir()
        monkeypatch.chdir(folder)
        for cut in cuts:
            names = {}
            exec(block.replace("< 2000", f"< {cut}"), names)
        ends.append((names["w"].tobytes(), names["opt"].step_count, names["rng"].bytes(9)))
    assert ends[0] == ends[1]
