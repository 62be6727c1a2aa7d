"""What test_checkpoint_failures.py runs in a process of its own, behind interpose_files.c or below
a limit: ``failing_files.py SCENARIO FOLDER``. Whatever fails, nothing is lost."""

import ctypes
import errno
import os
import resource
import sys
from pathlib import Path

import numpy as np

import thalweg as tw
from refusing import frozen

GRADS = {"w": np.ones(1000), "b": np.ones((3, 4), np.float32)}


def new():
    params = {"w": np.arange(1000.0), "b": np.ones((3, 4), np.float32)}
    return tw.SGD(params, 0.5, 0.9)


class Saver:
    """Saves that fail, between two that do not."""

    def __init__(self, folder):
        self.folder = folder
        self.path, self.opt = folder / "a.npz", new()
        self.opt.step(GRADS)
        tw.save_checkpoint(self.path, self.opt, "before")
        self.before = self.path.read_bytes()

    def save(self, extra="after"):
        """Returns the error's number; the checkpoint before it is still there then."""
        self.opt.step(GRADS)
        state = frozen(self.opt)
        try:
            tw.save_checkpoint(self.path, self.opt, extra)
        except OSError as error:
            assert frozen(self.opt) == state
            return error.errno
        assert frozen(self.opt) == state
        return None

    def check(self, replaced=False):
        """Exactly one file, and one that is whole; the optimizer goes on, and so do saves."""
        assert os.listdir(self.folder) == ["a.npz"], os.listdir(self.folder)
        if not replaced:
            assert self.path.read_bytes() == self.before
        assert tw.load_checkpoint(self.path, new()) == ("after" if replaced else "before")
        assert self.opt.step(GRADS)

    def start_again(self):
        tw.save_checkpoint(self.path, self.opt, "before")
        self.before = self.path.read_bytes()


def fail_call(folder, call, nth, error):
    return ctypes.CDLL(None).fail_call(str(folder).encode(), call.encode(), nth, error)


def each_call_of_a_save(folder):
    """Every system call of a save fails once, for one reason and another."""
    saver, tried = Saver(folder), {}
    for call in ("open", "write", "fsync", "rename", "close", "flock"):
        fail_call(folder, call, 0, 0)
        assert saver.save("before") is None
        count = tried[call] = fail_call(folder, call, 0, 0)
        saver.start_again()
        for nth in range(1, count + 1):
            for error in (errno.EIO, errno.ENOSPC, errno.EDQUOT):
                fail_call(folder, call, nth, error)
                failed = saver.save()
                fail_call("", "", 0, 0)
                if call == "flock":  # a file system without locks
                    assert failed is None
                else:
                    assert failed == error, (call, nth, error, failed)
                # Once it is renamed, the folder is opened, synced and closed.
                late = (call in ("close", "fsync", "open") and nth == count) or (
                    call == "close" and nth == count - 1
                )
                saver.check(replaced=call == "flock" or late)
                saver.start_again()
    print(*(f"{call} {count}" for call, count in tried.items()))
    assert tried["write"] > 20
    assert (tried["fsync"], tried["rename"]) == (2, 1)


def parts_of_writes(folder):
    """A write that takes only a part is no error: the rest goes after it."""
    saver = Saver(folder)
    fail_call(folder, "write", 0, 0)
    saver.save()
    count = fail_call(folder, "write", 0, 0)
    for nth in range(1, count + 1):
        fail_call(folder, "write", nth, 0)
        assert saver.save() is None
        assert fail_call("", "", 0, 0) > nth, "the half of it that was left"
        saver.check(replaced=True)


def each_read_of_a_load(folder):
    """Every read fails once, or gives a part only."""
    saver = Saver(folder)
    opt = new()
    fail_call(folder, "read", 0, 0)
    tw.load_checkpoint(saver.path, opt)
    count = fail_call(folder, "read", 0, 0)
    broken = 0
    for nth in range(1, count + 1):
        opt = new()
        before = frozen(opt)
        fail_call(folder, "read", nth, errno.EIO)
        try:
            tw.load_checkpoint(saver.path, opt)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
        else:
            raise AssertionError(f"read {nth} of {count} did not fail")
        fail_call("", "", 0, 0)
        try:
            opt.step(GRADS)
        except RuntimeError:
            broken += 1
        else:
            assert not broken
            assert frozen(opt) != before
        tw.load_checkpoint(saver.path, opt)
        opt.step(GRADS)
        saver_opt = new()
        tw.load_checkpoint(saver.path, saver_opt)
        saver_opt.step(GRADS)
        assert [x[1:] for x in frozen(list(opt._arrays.values()))] == [
            x[1:] for x in frozen(list(saver_opt._arrays.values()))
        ]
    assert broken == 4, broken  # params and states, read again
    for nth in range(1, count + 1):
        fail_call(folder, "read", nth, 0)
        assert tw.load_checkpoint(saver.path, new()) == "before"
    print(f"read {count}")


def size_limit(folder):
    """Every size at which a disk can be full, up to the one at which all is there."""
    saver = Saver(folder)
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    saver.save()
    size = saver.path.stat().st_size
    saver.start_again()
    for limit in [*range(400), *range(400, size - 1500, 97), *range(size - 1500, size)]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, most))
        failed = saver.save()
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
        if failed is None:  # counters have more digits by and by
            raise AssertionError(f"{limit} of {size} bytes were enough")
        assert failed == errno.EFBIG, (limit, failed)
        saver.check()


def full_disk(folder):
    """On a tmpfs of 256 KiB, mounted in a name space of our own."""
    saver = Saver(folder)
    for kib in (*range(190, 250, 8), 400, 3000):
        large = np.arange(kib << 7, dtype=float)
        failed = saver.save(large)
        if failed is None:
            assert kib < 230
            saver.start_again()
        else:
            assert failed == errno.ENOSPC
            saver.check()
    disk = os.statvfs(folder)
    assert disk.f_bavail * disk.f_bsize > 200 << 10
    assert saver.save() is None


if __name__ == "__main__":
    {
        "save": each_call_of_a_save,
        "parts": parts_of_writes,
        "load": each_read_of_a_load,
        "limit": size_limit,
        "disk": full_disk,
    }[sys.argv[1]](Path(sys.argv[2]))
