"""What a save finds in its place: files of some mode or owner, FIFOs, what other saves left."""

import errno
import os
import socket
import stat

import numpy as np
import pytest

import thalweg as tw
from refusing import frozen, refused
from thalweg._checkpoint import lock

posix = pytest.mark.skipif(os.name == "nt", reason="no modes, FIFOs or locks on Windows")
root = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root gives files away"
)


def new():
    return tw.SGD(np.ones(3), 0.5, 0.9)


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def umask():
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


# Modes


@posix
@pytest.mark.parametrize("given", [0o600, 0o640, 0o644, 0o660, 0o666, 0o400, 0o444, 0o200, 0o000])
@pytest.mark.parametrize("mask", [0o022, 0o077, 0o000])
def test_the_mode_of_the_file_before(tmp_path, umask, given, mask):
    umask(mask)
    path, opt = tmp_path / "a.npz", new()
    path.write_bytes(b"mine")
    path.chmod(given)
    for _ in range(2):
        tw.save_checkpoint(path, opt)
        assert mode(path) == given
    tw.save_checkpoint(tmp_path / "b.npz", opt)
    assert mode(tmp_path / "b.npz") == 0o666 & ~mask


@posix
@pytest.mark.parametrize("given", [0o600, 0o640, 0o000])
def test_only_the_owner_may_read_it_meanwhile(tmp_path, umask, given):
    umask(0)
    path, seen = tmp_path / "a.npz", []
    path.write_bytes(b"mine")
    path.chmod(given)
    tw.save_checkpoint(
        path, new(), progress=lambda *_: seen.append(mode(tmp_path / ".a.npz.partial"))
    )
    assert seen
    assert set(seen) == {0o600}


@posix
def test_the_mode_of_the_file_behind_a_link(tmp_path, umask):
    (tmp_path / "real").write_bytes(b"mine")
    (tmp_path / "real").chmod(0o600)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    tw.save_checkpoint(tmp_path / "link", new())
    assert (tmp_path / "link").is_symlink()
    assert mode(tmp_path / "real") == 0o600


@posix
def test_what_a_mode_may_not_bring(tmp_path, umask):
    """No file of ours runs as somebody else."""
    path = tmp_path / "a.npz"
    path.write_bytes(b"mine")
    path.chmod(0o6755)
    tw.save_checkpoint(path, new())
    assert mode(path) == 0o755


@posix
def test_a_keeper_that_comes_by_a_step_again(tmp_path, umask):
    opt, path = new(), tmp_path / "step-000000001.npz"
    opt.step(np.ones(3))
    tw.CheckpointKeeper(tmp_path).save(opt)
    path.chmod(0o600)
    tw.CheckpointKeeper(tmp_path).save(opt)
    assert mode(path) == 0o600


@posix
def test_a_file_system_with_one_mode_for_all(tmp_path, monkeypatch, umask):
    def fchmod(*_):
        raise PermissionError(errno.EPERM, "not here")

    path = tmp_path / "a.npz"
    path.write_bytes(b"mine")
    monkeypatch.setattr(os, "fchmod", fchmod)
    tw.save_checkpoint(path, new())
    assert tw.load_checkpoint(path, new()) is None


@posix
@root
def test_the_owner_of_the_file_before(tmp_path, umask):
    """A save by root leaves a user's private file to the user."""
    path = tmp_path / "a.npz"
    path.write_bytes(b"theirs")
    os.chown(path, 1234, 2345)
    path.chmod(0o600)
    tw.save_checkpoint(path, new())
    found = path.stat()
    assert (found.st_uid, found.st_gid, mode(path)) == (1234, 2345, 0o600)


@posix
@root
def test_a_group_that_cannot_be_kept(tmp_path, monkeypatch, umask):
    """What that group could read is not for another one."""

    def fchown(*_):
        raise PermissionError(errno.EPERM, "not yours")

    path = tmp_path / "a.npz"
    path.write_bytes(b"theirs")
    os.chown(path, -1, 2345)
    path.chmod(0o640)
    monkeypatch.setattr(os, "fchown", fchown)
    tw.save_checkpoint(path, new())
    assert path.stat().st_gid != 2345
    assert mode(path) == 0o600


# What is no file


@posix
def test_what_is_no_file_is_not_replaced(tmp_path):
    opt = new()
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to(tmp_path / "fifo")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "socket"))
        for name, word in (("fifo", "FIFO"), ("link", "FIFO"), ("socket", "device or socket")):
            words = ("expected the name of a file", word, "name another", str(tmp_path))
            with refused(FileExistsError, *words, keeps=opt):
                tw.save_checkpoint(tmp_path / name, opt)
    assert stat.S_ISFIFO((tmp_path / "fifo").stat().st_mode)
    assert sorted(os.listdir(tmp_path)) == ["fifo", "link", "socket"]


@posix
def test_a_keeper_finds_a_fifo_of_its_name(tmp_path):
    os.mkfifo(tmp_path / "step-000000001.npz")
    keeper, opt = tw.CheckpointKeeper(tmp_path), new()
    with pytest.warns(RuntimeWarning, match="regular file"):
        assert keeper.restore(opt) is None
    opt.step(np.ones(3))
    with refused(FileExistsError, "FIFO", keeps=opt):
        keeper.save(opt)
    opt.step(np.ones(3))
    assert keeper.save(opt)


# File systems without locks


@pytest.fixture(params=[errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, None])
def without_locks(request, monkeypatch):
    def flock(*_):
        raise OSError(request.param, os.strerror(request.param))

    if request.param is None:
        monkeypatch.setattr(lock, "fcntl", None)
    else:
        monkeypatch.setattr(lock.fcntl, "flock", flock)


@posix
@pytest.mark.parametrize("read", ["load", "read", "restore", "another keeper's save"])
def test_who_reads_does_not_delete_what_is_being_written(tmp_path, without_locks, read):
    opt, path = new(), tmp_path / "step-000000001.npz"
    opt.step(np.ones(3))
    tw.save_checkpoint(path, opt, "before")
    partial = tmp_path / f".{path.name}.partial"

    def meanwhile(*_):
        assert partial.exists()
        if read == "load":
            tw.load_checkpoint(path, new())
        elif read == "read":
            tw.read_checkpoint(path)
        else:
            keeper, other = tw.CheckpointKeeper(tmp_path), new()
            assert keeper.restore(other) in ("before", None)
            other.step(np.ones(3))
            if read != "restore":
                keeper.save(other)
        assert partial.exists()

    tw.save_checkpoint(path, opt, "after", progress=meanwhile)
    assert tw.load_checkpoint(path, opt) == "after"


@posix
def test_the_next_save_goes_on_where_nobody_knows(tmp_path, without_locks):
    """It cannot tell a leftover from a save at work; a run that died must not block the next."""
    partial = tmp_path / ".a.npz.partial"
    partial.write_bytes(b"left")
    opt = new()
    tw.save_checkpoint(tmp_path / "a.npz", opt)
    assert os.listdir(tmp_path) == ["a.npz"]
    partial.write_bytes(b"left")
    before = frozen(opt)
    tw.load_checkpoint(tmp_path / "a.npz", opt)
    assert frozen(opt) == before
    assert partial.exists()


@posix
def test_with_locks_a_load_tells_them_apart(tmp_path):
    opt, partial = new(), tmp_path / ".a.npz.partial"
    tw.save_checkpoint(tmp_path / "a.npz", opt)
    seen = []

    def meanwhile(*_):
        tw.load_checkpoint(tmp_path / "a.npz", new())
        seen.append(partial.exists())

    tw.save_checkpoint(tmp_path / "a.npz", opt, progress=meanwhile)
    assert seen
    assert all(seen)
    partial.write_bytes(b"left")
    tw.load_checkpoint(tmp_path / "a.npz", new())
    assert not partial.exists()


@posix
def test_a_child_that_is_forked_during_a_save(tmp_path):
    """It has neither the lock nor the file, and deletes nothing of its parent's."""
    opt, said = new(), []

    def fork(*_):
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(reading)
            child.append(writing)
            return
        os.close(writing)
        with os.fdopen(reading) as file:
            said.append(file.read())
        os.waitpid(pid, 0)

    child = []
    try:
        tw.save_checkpoint(tmp_path / "a.npz", opt, progress=fork)
    except BaseException as error:
        if child:
            os.write(child[0], f"{type(error).__name__}".encode())
            os._exit(0)
        raise
    if child:
        os.write(child[0], b"saved")
        os._exit(0)
    assert said
    assert set(said) == {"ValueError"}, "its file is closed"
    assert tw.load_checkpoint(tmp_path / "a.npz", opt) is None
    assert os.listdir(tmp_path) == ["a.npz"]
