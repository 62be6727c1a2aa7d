"""A file written all or nothing: beside the old one, which it replaces when it is whole."""

import errno
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


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
    partial = partial_of(path)
    with _created(partial) as out:
        try:
            yield out
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


class _Whole(io.FileIO):
    """Writes all of what it is given, or raises: a disk that fills takes a part without a word."""

    def write(self, data: Any) -> int:
        rest = memoryview(data).cast("B")
        while rest:
            rest = rest[super().write(rest) :]
        return memoryview(data).nbytes


def _created(partial: Path) -> _Whole:
    """A new file of this name, locked."""
    while True:
        clear(partial)
        try:
            out = _Whole(partial, "xb")
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


def clear(partial: Path) -> None:
    """Delete what a save that was killed has left, unless it is still at work."""
    with suppress(FileNotFoundError):
        if os.name == "nt" or partial.is_symlink():
            os.unlink(partial)
            return
        with open(partial, "rb", opener=open_at_once) as left:
            _lock(left)
            if _is_at(left, partial):
                os.unlink(partial)


def open_at_once(path: str, flags: int) -> int:
    """Without waiting for a writer, should it be a FIFO."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _lock(file: IO[bytes], wait: bool = False) -> None:
    if fcntl:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise _busy(file.name) from None
        except OSError:
            return  # a file system without locks


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
