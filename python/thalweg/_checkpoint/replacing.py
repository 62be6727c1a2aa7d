"""A file written all or nothing: beside the old one, which it replaces when it is whole."""

import errno
import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from thalweg._checkpoint.lock import lock, not_in_children, opening


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file that takes the place of ``path`` when the block has ended, durably, or never."""
    path = Path(os.path.realpath(path))
    if path.is_dir():
        raise IsADirectoryError(
            errno.EISDIR, "expected the name of a file, received a folder; add one", str(path)
        )
    if not path.parent.is_dir():
        raise FileNotFoundError(
            errno.ENOENT, "the folder is not there; make it first", str(path.parent)
        )
    before = _replaced(path)
    partial = partial_of(path)
    with _created(partial, 0o666 if before is None else 0o600) as out:
        try:
            yield out
            if before:
                _take_over(out, before)
            os.fsync(out.fileno())
            if not _is_at(out, partial):
                raise _busy(partial)
            if os.name == "nt":  # which renames no open file
                out.close()
            os.replace(partial, path)
        except BaseException:
            if os.name == "nt":
                out.close()
            if _is_at(out, partial):
                with suppress(OSError):
                    os.unlink(partial)
            raise
    _sync_folder(path.parent)


def _replaced(path: Path) -> os.stat_result | None:
    """The file that is there, if any; what is no file is not to be replaced by one."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(found.st_mode):
        kind = "a FIFO" if stat.S_ISFIFO(found.st_mode) else "a device or socket"
        raise FileExistsError(
            errno.EEXIST,
            f"expected the name of a file, received {kind}, which a save would replace; a "
            "checkpoint needs a file that can be read again: name another",
            str(path),
        )
    return found


def _take_over(out: IO[bytes], before: os.stat_result) -> None:
    """The mode of the file that it replaces and, where that may be, its owner and group."""
    mode = stat.S_IMODE(before.st_mode) & 0o777
    if hasattr(os, "fchown"):
        mine = os.fstat(out.fileno())
        if mine.st_uid != before.st_uid:
            with suppress(OSError):
                os.fchown(out.fileno(), before.st_uid, -1)
        if mine.st_gid != before.st_gid:
            try:
                os.fchown(out.fileno(), -1, before.st_gid)
            except OSError:  # what the old group might do another one must not
                mode &= ~0o070
    if hasattr(os, "fchmod"):
        with suppress(OSError):  # a file system that has one mode for all files
            os.fchmod(out.fileno(), mode)


class _Whole(io.FileIO):
    """Writes all of what it is given, or raises: a disk that fills takes a part without a word."""

    def write(self, data: Any) -> int:
        rest = memoryview(data).cast("B")
        while rest:
            rest = rest[super().write(rest) :]
        return memoryview(data).nbytes

    def close_in_child(self) -> None:
        self.close()


def _created(partial: Path, mode: int) -> _Whole:
    """A new file of this name, locked."""

    def opener(path: str, flags: int) -> int:
        return os.open(path, flags, mode)

    while True:
        clear(partial, without_locks=True)
        try:
            with opening:
                out = _Whole(partial, "xb", opener=opener)
                not_in_children(out)
        except FileExistsError:  # another save was quicker
            continue
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise
            cure = "nothing may be written into this folder; choose another, or make it writeable"
            raise OSError(error.errno, cure, str(partial.parent)) from None
        # Whoever has locked it is deleting it as a leftover.
        _lock(out, wait=True)
        if _is_at(out, partial):
            return out
        out.close()


def _is_at(file: IO[bytes], path: Path) -> bool:
    if os.name == "nt":  # which neither renames nor deletes an open file
        return True
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path, follow_symlinks=False))
    except FileNotFoundError:
        return False


def partial_of(path: Path) -> Path:
    return path.parent / f".{path.name}.partial"


def clear(partial: Path, without_locks: bool = False) -> None:
    """Delete what a save that was killed has left, unless it is still at work.

    Where there are no locks, nobody knows; only the next save goes on then, as it must.
    """
    with suppress(FileNotFoundError):
        if os.name == "nt" or partial.is_symlink():
            os.unlink(partial)
            return
        with open(partial, "rb", opener=open_at_once) as left:
            if (_lock(left) or without_locks) and _is_at(left, partial):
                os.unlink(partial)


def open_at_once(path: str, flags: int) -> int:
    """Without waiting for a writer, should it be a FIFO."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _lock(file: IO[bytes], wait: bool = False) -> bool:
    try:
        return lock(file, wait)
    except BlockingIOError:
        raise _busy(file.name) from None


def _busy(partial: Any) -> OSError:
    return BlockingIOError(errno.EAGAIN, "another save to the same name is at work", str(partial))


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
