"""Keepers of several processes, and of file systems without locks, at one folder."""

import contextlib
import errno
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest
from test_checkpoint_claim import held_by, here, posix

import claiming
import thalweg as tw
from claiming import new, stepped, tried
from processes import python_environment, run_python
from thalweg._checkpoint import claim
from thalweg._checkpoint import lock as locks


@contextlib.contextmanager
def holding(folder, scenario="hold"):
    command = [sys.executable, "-W", "error", claiming.__file__, scenario, str(folder)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=python_environment(), **pipes) as process:
        try:
            yield process
        finally:
            process.kill()


@posix
@pytest.mark.parametrize("end", ["goes on", "ends", "SIGKILL", "SIGTERM"])
def test_another_process(tmp_path, end):
    with holding(tmp_path) as process:
        assert process.stdout.readline() == "held\n"
        keeper, opt = tw.CheckpointKeeper(tmp_path), stepped()
        with held_by("another process", tmp_path, keeps=opt):
            keeper.save(opt)
        with held_by("another process", tmp_path):
            tw.CheckpointKeeper(tmp_path, every=1000).save(new())
        assert tw.CheckpointKeeper(tmp_path).restore(found := new()) is None
        assert found.step_count == 1
        if end in ("goes on", "ends"):
            process.stdin.close()
            assert process.stdout.readline() == "saved\n", "the first one goes on"
        else:
            process.send_signal(getattr(signal, end))
        process.wait(30)
    assert keeper.save(opt, force=True)
    said = run_python(claiming.__file__, "attempt", tmp_path).stdout
    assert "another process" in said
    assert "a folder of its own" in said


@posix
def test_a_forked_child(tmp_path):
    ran = run_python(claiming.__file__, "fork", tmp_path)
    assert ran.returncode == 0, ran.stderr
    first, second, third, fourth, fifth, sixth = ran.stdout.splitlines()
    assert "of another process" in first
    assert "of another process" in second
    assert third == "(None, True)"
    assert "of this process" in fourth
    assert (fifth, sixth) == ("True", "taken")


@posix
@pytest.mark.parametrize(
    "scenario",
    ["leave_children", "leave_children_in_a_save", "leave_children_without_locks"],
)
def test_a_run_that_died_leaves_children(tmp_path, monkeypatch, scenario):
    """Data workers that outlive a run that was killed: the next run saves."""
    if scenario.endswith("without_locks"):
        monkeypatch.setattr(locks.fcntl, "flock", no_locks)
    ran = run_python(claiming.__file__, scenario, tmp_path)
    assert ran.returncode == -signal.SIGKILL, ran.stderr
    pids = list(map(int, ran.stdout.split()))
    try:
        for pid in pids:
            os.kill(pid, 0)
        assert tw.CheckpointKeeper(tmp_path).save(stepped(), force=True)
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000001.npz"]


@posix
def test_a_fork_while_another_thread_claims(tmp_path, monkeypatch):
    """It waits until there is what closes the folder in the child."""
    locked, go_on, children = threading.Event(), threading.Event(), []

    def slowly(file):
        assert locks.lock(file)
        locked.set()
        go_on.wait(30)
        return True

    monkeypatch.setattr(claim, "lock", slowly)
    claims = []
    claiming_thread = threading.Thread(target=lambda: claims.append(claim.Claim(tmp_path)))
    forking = threading.Thread(
        target=lambda: children.append(claiming.child(lambda: [*open_folders(tmp_path)]))
    )
    claiming_thread.start()
    assert locked.wait(30)
    forking.start()
    forking.join(0.3)
    assert not children
    go_on.set()
    for thread in (claiming_thread, forking):
        thread.join(30)
    assert children == ["[]"]
    assert claims[0].is_open
    assert tried(tmp_path) != "taken"


@posix
def test_claims_beside_forks(tmp_path):
    """What is let go is free at once, even while a child still has the folder open."""
    stop, failed = threading.Event(), []

    def run():
        while not stop.is_set():
            try:
                claim.Claim(tmp_path).close()
            except OSError as error:
                failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        end = time.monotonic() + 0.5
        while time.monotonic() < end:
            claiming.child(lambda: "")
    finally:
        stop.set()
        thread.join()
    assert not failed


def open_folders(folder):
    for name in os.listdir("/proc/self/fd") if sys.platform == "linux" else []:
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/self/fd/{name}") == str(folder):
                yield name


# File systems


@posix
@pytest.mark.parametrize("error", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL])
def test_a_file_system_without_locks(tmp_path, monkeypatch, error):
    """In one process it is known all the same."""

    def flock(*_):
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(locks.fcntl, "flock", flock)
    keeper, second = tw.CheckpointKeeper(tmp_path), tw.CheckpointKeeper(tmp_path)
    keeper.save(stepped())
    with here(tmp_path):
        second.save(stepped())
    del keeper
    assert second.save(stepped(), force=True)


def no_locks(*_):
    raise OSError(errno.ENOSYS, "no locks")


@pytest.mark.skipif(sys.platform != "linux", reason="names in no file system are Linux's")
def test_another_process_without_locks(tmp_path):
    with holding(tmp_path, "hold_without_locks") as process:
        assert process.stdout.readline() == "held\n"
        said = run_python(claiming.__file__, "attempt_without_locks", tmp_path).stdout
        assert "another process" in said
        (tmp_path / "b").mkdir()
        said = run_python(claiming.__file__, "attempt_without_locks", tmp_path / "b").stdout
        assert said == "taken\n"
        process.kill()
    assert run_python(claiming.__file__, "attempt_without_locks", tmp_path).stdout == "taken\n"


READ_ONLY = """
import os, sys
import encodings.cp437, numpy as np, thalweg as tw, thalweg.checkpoint
from claiming import new, stepped
if os.geteuid() == 0:
    os.setgid(65534), os.setuid(65534)
keeper, second = tw.CheckpointKeeper(sys.argv[1], every=3), tw.CheckpointKeeper(sys.argv[1])
assert keeper.restore(new()) is None and keeper.restored
opt = stepped()
assert keeper.save(opt) is False
for each in (keeper, second):
    try:
        each.save(opt, force=True)
    except OSError as error:
        print(type(error).__name__, error)
"""


@posix
def test_a_folder_that_may_only_be_read(tmp_path):
    folder = tmp_path / "a"
    tw.CheckpointKeeper(folder).save(stepped())
    if os.geteuid() == 0:
        for path in (folder, *folder.parents[:-1]):
            if not path.stat().st_mode & 1:
                if path.parent == path.parent.parent:
                    pytest.skip(f"no other user may enter {path}")
                path.chmod(0o755)
    folder.chmod(0o555)
    try:
        (script := tmp_path / "run.py").write_text(READ_ONLY)
        ran = run_python(script, folder)
    finally:
        folder.chmod(0o755)
    assert ran.returncode == 0, ran.stderr
    first, second = ran.stdout.splitlines()
    assert first.startswith("PermissionError")
    assert "make it writeable" in first
    assert second.startswith("BlockingIOError")


@posix
def test_a_copy_made_during_the_run_claims_nothing(tmp_path):
    """Nothing of the claim is in the folder, and nothing that reads the folder ends it."""
    keeper, opt = tw.CheckpointKeeper(tmp_path / "a"), stepped()
    keeper.save(opt)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    shutil.make_archive(str(tmp_path / "z"), "zip", tmp_path / "a")
    assert tried(tmp_path / "b") == "taken"
    assert tried(tmp_path / "a") != "taken"
    said = run_python(claiming.__file__, "attempt", tmp_path / "a").stdout
    assert "another process" in said
