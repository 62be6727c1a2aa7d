"""What test_checkpoint_claim.py runs in processes of its own: ``claiming.py SCENARIO FOLDER``."""

import errno
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

import thalweg as tw
from thalweg._checkpoint import lock


def new():
    return tw.SGD(np.zeros(3), 0.5)


def stepped():
    opt = new()
    opt.step(np.ones(3))
    return opt


def tried(folder, **options):
    """Whether a keeper of its own may save, at a call that would not write."""
    try:
        tw.CheckpointKeeper(folder, every=1000).save(stepped(), **options)
    except BlockingIOError as error:
        return str(error)
    return "taken"


def hold(folder):
    """Keeps the folder until its input ends."""
    keeper, opt = tw.CheckpointKeeper(folder), stepped()
    keeper.save(opt)
    print("held", flush=True)
    sys.stdin.read()
    keeper.save(opt, force=True)
    print("saved", flush=True)


def attempt(folder):
    print(tried(folder))


def without_locks():
    """As on a file system that has none."""

    def flock(*_):
        raise OSError(errno.ENOSYS, "no locks")

    lock.fcntl.flock = flock


def hold_without_locks(folder):
    without_locks()
    hold(folder)


def attempt_without_locks(folder):
    without_locks()
    attempt(folder)


def leave_children_without_locks(folder):
    without_locks()
    leave_children(folder)


def child(made):
    """Runs this in a forked child; what it returns is printed here."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(writing, str(made()).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as file:
        said = file.read()
    os.waitpid(pid, 0)
    return said


def fork(folder):
    """A child has no claim of its own, and takes none from its parent."""
    keeper, opt = tw.CheckpointKeeper(folder), stepped()
    keeper.save(opt)

    def in_child():
        try:
            keeper.save(opt)
        except BlockingIOError as error:
            keeper.close()
            return error
        return "taken"

    print(child(in_child))
    print(child(lambda: tried(folder)))
    print(child(lambda: (keeper.restore(new()), keeper.restored is not None)))
    # What they have closed was their own.
    print(tried(folder))
    keeper.save(opt, force=True)
    keeper.close()
    print(child(lambda: keeper.save(opt, force=True)))
    print(tried(folder))


def linger():
    """As a worker whose parent has gone; it holds no pipe of it."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in range(3):
        os.dup2(nowhere, descriptor)
    time.sleep(60)
    os._exit(0)


def leave_children(folder):
    """Children of all kinds outlive it: none of them keeps the folder."""
    keeper, opt = tw.CheckpointKeeper(folder), stepped()
    keeper.save(opt)
    pids = []
    for _ in range(2):
        pid = os.fork()
        if pid == 0:
            linger()
        pids.append(pid)
    context = multiprocessing.get_context("fork")
    worker = context.Process(target=linger)
    worker.start()
    pids.append(worker.pid)
    nowhere = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
    pids.append(subprocess.Popen(["sleep", "60"], close_fds=False, **nowhere).pid)
    print(*pids, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)


def leave_children_in_a_save(folder):
    """Killed while it writes; a child forked meanwhile goes on."""
    opt = stepped()

    def progress(*_):
        pid = os.fork()
        if pid == 0:
            linger()
        print(pid, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)

    tw.CheckpointKeeper(folder, progress=progress).save(opt)


if __name__ == "__main__":
    globals()[sys.argv[1]](Path(sys.argv[2]))
