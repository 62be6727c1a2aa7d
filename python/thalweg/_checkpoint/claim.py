"""Who saves into a folder: one keeper at a time, of this process or of another."""

import errno
import gc
import os
import sys
import weakref
from contextlib import suppress
from pathlib import Path

from thalweg._checkpoint.lock import lock, not_in_children, opening, unlock

# By device and inode: on a file system without locks it is at least known in this process.
_claims: weakref.WeakValueDictionary[tuple[int, int], "Claim"] = weakref.WeakValueDictionary()


class Claim:
    """A folder, until ``close``, or as long as the claim and its process live.

    It is a lock on the folder itself, so that nothing is left in it, or copied with it. OSError:
    the folder is not there. BlockingIOError: another claim has it.
    """

    is_open = False
    _descriptor: int | None = None

    def __init__(self, folder: Path) -> None:
        self._key = _key(folder)
        if self._key in _claims:
            gc.collect()  # another one may be garbage that is not collected yet
        with opening:
            if self._key in _claims:
                raise _refusal(folder, "this process")
            try:
                self._descriptor = _locked(folder)
            except BlockingIOError:
                raise _refusal(folder, "another process") from None
            _claims[self._key] = self
            not_in_children(self)
            self.is_open = True

    def holds(self, folder: Path) -> bool:
        """Whether it is still of the folder that is there now, in this process."""
        with suppress(OSError):
            return _claims.get(self._key) is self and _key(folder) == self._key
        return False

    def close(self) -> None:
        self.is_open = False
        if _claims.get(self._key) is self:
            del _claims[self._key]
        self.__del__()

    def __del__(self) -> None:
        # Unlocked first: a child that is being forked has the folder open, too.
        if self._descriptor is not None:
            _unlock(self._descriptor)
            descriptor, self._descriptor = self._descriptor, None
            _close(descriptor)

    def close_in_child(self) -> None:
        self.is_open = False
        _claims.pop(self._key, None)
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            _close(descriptor)  # and no more: the lock is the parent's, too


def _key(folder: Path) -> tuple[int, int]:
    found = os.stat(folder)
    return found.st_dev, found.st_ino


def _refusal(folder: Path, whose: str) -> OSError:
    return BlockingIOError(
        errno.EAGAIN,
        f"another CheckpointKeeper, of {whose}, saves into this folder; give each run and each "
        "optimizer a folder of its own, or close() the other keeper first, which `with` does even "
        "where a run is interrupted",
        str(folder),
    )


if sys.platform == "win32":
    import ctypes
    import hashlib

    def _locked(folder: Path) -> int | None:
        """A name that the system knows as long as a process has it open."""
        named = os.path.normcase(os.path.realpath(folder)).encode("utf-8", "surrogatepass")
        kernel = ctypes.WinDLL("kernel32", use_last_error=True)
        kernel.CreateMutexW.restype = ctypes.c_void_p
        name = f"Local\\thalweg-{hashlib.sha256(named).hexdigest()}"
        handle: int | None = kernel.CreateMutexW(None, False, name)
        if handle and ctypes.get_last_error() == 183:  # ERROR_ALREADY_EXISTS
            _close(handle)
            raise BlockingIOError
        return handle

    def _unlock(handle: int) -> None:
        """A name has no lock."""

    def _close(handle: int) -> None:
        ctypes.WinDLL("kernel32").CloseHandle(ctypes.c_void_p(handle))

else:
    import socket

    def _locked(folder: Path) -> int | None:
        try:
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except OSError:  # one that may be written, but not read
            return _named(folder)
        try:
            if lock(descriptor):
                return descriptor
        except BaseException:
            _close(descriptor)
            raise
        _close(descriptor)
        return _named(folder)

    def _named(folder: Path) -> int | None:
        """Without locks (Lustre has none by default): a name that Linux knows as long as a process
        has it bound."""
        if sys.platform != "linux":
            return None
        bound = socket.socket(socket.AF_UNIX)
        try:
            bound.bind("\0thalweg-{:x}-{:x}".format(*_key(folder)))
        except OSError as error:
            bound.close()
            if error.errno == errno.EADDRINUSE:
                raise BlockingIOError from None
            return None
        return bound.detach()

    def _unlock(descriptor: int) -> None:
        unlock(descriptor)

    def _close(descriptor: int) -> None:
        os.close(descriptor)
