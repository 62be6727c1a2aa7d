"""Arrays and a manifest in one .npz: written all or nothing, verified before it is believed.

The format is docs/checkpoint.md. Nothing is unpickled or evaluated.
"""

import errno
import json
import os
import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple, Self

import numpy as np

from thalweg._checkpoint.replacing import open_at_once

MANIFEST = "manifest"
CHUNK = 4 << 20
PIECE = 256 << 10
LARGEST_MANIFEST = 64 << 20
DTYPE = re.compile(r"[<>|][?bBiufcSUVmM][1-9]\d{0,8}(\[\d{0,9}[a-zA-Zμ]{1,2}\])?")

Progress = Callable[[int, int], object]


class CheckpointError(ValueError):
    """The file is no checkpoint, is damaged, is newer, or does not fit the optimizer."""


class Stored(NamedTuple):
    """An array in the file: what it is, and where."""

    member: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran: bool
    crc: int

    @property
    def nbytes(self) -> int:
        size = self.dtype.itemsize
        for length in self.shape:
            size *= length
        return size

    def header(self) -> bytes:
        """What stands before the data: NumPy's format, version 1.0 or, where that is long, 2.0."""
        described = {
            "descr": self.dtype.str,
            "fortran_order": self.fortran,
            "shape": self.shape,
        }
        text = "{" + "".join(f"'{key}': {value!r}, " for key, value in described.items()) + "}"
        body = text.encode("ascii")
        wide = len(body) > 60_000
        fixed = 12 if wide else 10
        body += b" " * (-(fixed + len(body) + 1) % 64) + b"\n"
        length = struct.pack("<I" if wide else "<H", len(body))
        return b"\x93NUMPY" + (b"\x02\x00" if wide else b"\x01\x00") + length + body


def in_order(array: np.ndarray) -> tuple[np.ndarray, bool]:
    """The array whose C order is that of the memory, and whether it is the transposed one."""
    fortran = array.flags.f_contiguous and not array.flags.c_contiguous
    return (array.T if fortran else array), fortran


def parts(array: np.ndarray, most: int = CHUNK) -> Iterator[np.ndarray]:
    """The array in pieces of at most so many bytes, in C order."""
    if array.nbytes <= most:
        yield array
    elif array.flags.c_contiguous:
        flat = array.reshape(-1)
        step = max(1, most // array.itemsize)
        for start in range(0, flat.size, step):
            yield flat[start : start + step]
    elif array.ndim == 1 or (len(array) > 1 and array.nbytes // len(array) <= most):
        step = max(1, most * len(array) // array.nbytes)
        for start in range(0, len(array), step):
            yield array[start : start + step]
    else:
        for each in array:
            yield from parts(np.asarray(each), most)


def bytes_of(array: np.ndarray) -> np.ndarray:
    """A contiguous array's own memory."""
    return array.reshape(-1).view(np.uint8) if array.size else np.empty(0, np.uint8)


# Writing


class Writer:
    """The members of an archive, one after the other."""

    def __init__(self, file: IO[bytes], progress: Progress | None, total: int) -> None:
        self._zip = zipfile.ZipFile(file, "w", zipfile.ZIP_STORED)
        self._progress, self._done, self._total = progress, 0, total
        self.entries: list[list[Any]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind:
            self._zip.fp = None  # or it would go on writing when it is let go

    def add(self, member: str, array: np.ndarray) -> int:
        """Write one array; returns its index among the entries."""
        ordered, fortran = in_order(array)
        stored = Stored(member, array.shape, array.dtype, fortran, 0)
        info = zipfile.ZipInfo(f"{member}.npy")  # dated 1980: the same bytes from the same state
        with self._zip.open(info, "w", force_zip64=True) as out:
            out.write(stored.header())
            for part in parts(ordered):
                for piece in parts(part, PIECE):
                    # A copy, or what another thread writes could come after the checksum.
                    out.write(bytes_of(np.array(piece, order="C")).data)
                self._report(part.nbytes)
        self.entries.append([member, list(array.shape), array.dtype.str, fortran, info.CRC])
        return len(self.entries) - 1

    def _report(self, count: int) -> None:
        self._done += count
        if self._progress:
            self._progress(self._done, self._total)

    def close(self, manifest: Mapping[str, Any]) -> None:
        self._progress = None  # the total is that of the arrays
        described = {"entries": self.entries, **manifest}
        text = json.dumps(described, separators=(",", ":"), ensure_ascii=False)
        # As json.loads reads it. Escaped, two halves of a surrogate pair would become one sign.
        data = text.encode("utf-8", "surrogatepass")
        if len(data) > LARGEST_MANIFEST:
            raise ValueError(
                f"expected names and extra values of at most {LARGEST_MANIFEST:,} bytes of JSON, "
                f"received {len(data):,}; long lists can be arrays"
            )
        self.add(MANIFEST, np.frombuffer(data, np.uint8))
        self._zip.close()


# Reading


class _Damage(Exception):
    """Said of the file; becomes a CheckpointError that names it."""


class Archive:
    """An open file whose manifest is read and whose structure is sound."""

    def __init__(self, path: Path) -> None:
        self._file = open(path, "rb", buffering=0, opener=open_at_once)  # noqa: SIM115
        try:
            if not stat.S_ISREG(os.fstat(self._file.fileno()).st_mode):
                raise _Damage("it is no regular file")
            self.entries: list[Stored] = []
            self.manifest: dict[str, Any] = {}
            self._starts = self._find_members()
            self._read_manifest()
        except BaseException:
            self._file.close()
            raise

    def close(self) -> None:
        self._file.close()

    def _find_members(self) -> dict[str, tuple[zipfile.ZipInfo, int]]:
        """By name, where its bytes start. They lie one behind the other and fill the file."""
        size = os.fstat(self._file.fileno()).st_size
        try:
            with zipfile.ZipFile(_Seekable(self._file)) as archive:
                infos = archive.infolist()
                directory = archive.start_dir
        except zipfile.BadZipFile as error:
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise
        end_record = self._read(size - 22, 22)
        if not (end_record.startswith(b"PK\x05\x06") and end_record.endswith(b"\0\0")):
            raise _Damage("there are bytes behind its end")
        members: dict[str, tuple[zipfile.ZipInfo, int]] = {}
        end = 0
        for info in infos:
            name = info.filename
            if name != info.orig_filename:
                raise _Damage(f"{info.orig_filename!r} is no name")
            if name in members:
                raise _Damage(f"two members are called {name!r}")
            if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
                raise _Damage(f"{name!r} is compressed")
            if info.flag_bits & ~0x800:
                raise _Damage(f"{name!r} has flags that are not known")
            if info.header_offset != end:
                raise _Damage(f"{name!r} does not start where the one before it ends")
            start = self._start(info)
            end = start + info.file_size
            if end > min(size, directory):
                raise _Damage(f"{name!r} is longer than the file")
            members[name] = info, start
        if end != directory:
            raise _Damage("there are bytes that belong to no member")
        return members

    def _start(self, info: zipfile.ZipInfo) -> int:
        header = self._read(info.header_offset, 30)
        sign, _, flags, method, _, _, _, _, _, name, extra = struct.unpack("<4s5H3I2H", header)
        if sign != b"PK\x03\x04" or method != 0 or flags != info.flag_bits:
            raise _Damage(f"{info.filename!r} has a wrong header")
        if self._read(info.header_offset + 30, name) != info.orig_filename.encode("utf-8"):
            raise _Damage(f"{info.filename!r} is called otherwise in its header")
        return info.header_offset + 30 + int(name) + int(extra)

    def _read(self, start: int, count: int) -> bytearray:
        self._file.seek(start)
        data = bytearray(count)
        self._read_into(memoryview(data))
        return data

    def _read_into(self, view: memoryview) -> None:
        at = 0
        while at < len(view):
            count = self._file.readinto(view[at:])
            if not count:
                raise _Damage("it ends early")
            at += count

    def _read_manifest(self) -> None:
        info, start = self._starts.pop(f"{MANIFEST}.npy", (None, 0))
        if info is None:
            raise _Damage("it has no manifest")
        if info.file_size > LARGEST_MANIFEST:
            raise _Damage("its manifest is too large")
        data = self._read(start, info.file_size)
        if zlib.crc32(data) != info.CRC:
            raise _Damage("its manifest does not have its checksum")
        header = Stored(MANIFEST, (0,), np.dtype("|u1"), False, 0).header()
        text = data[len(header) :]
        if not data.startswith(Stored(MANIFEST, (len(text),), np.dtype("|u1"), False, 0).header()):
            raise _Damage("its manifest is no array of bytes")
        self.manifest = json.loads(text)
        if not isinstance(self.manifest, dict) or not isinstance(
            self.manifest.get("entries"), list
        ):
            raise _Damage("its manifest is none")
        self.entries = [_entry(fields) for fields in self.manifest["entries"]]
        names = {f"{entry.member}.npy" for entry in self.entries}
        if names != set(self._starts) or len(names) != len(self.entries):
            raise _Damage("its members are not those of its manifest")
        for entry in self.entries:
            info, _ = self._starts[f"{entry.member}.npy"]
            if entry.crc != info.CRC or info.file_size != len(entry.header()) + entry.nbytes:
                raise _Damage(f"{entry.member!r} is not what the manifest says")

    def verify(self, path: Path, progress: Progress | None = None) -> None:
        """Read every member: its checksum and its header must be the manifest's."""
        checks = self._verify()
        while True:
            with sound(path):
                done = next(checks, None)
            if done is None:
                return
            if progress:  # whose own errors say nothing of the file
                progress(*done)

    def _verify(self) -> Iterator[tuple[int, int]]:
        buffer = memoryview(bytearray(CHUNK))
        done, total = 0, sum(entry.nbytes for entry in self.entries)
        for entry in self.entries:
            info, start = self._starts[f"{entry.member}.npy"]
            header = entry.header()
            if self._read(start, len(header)) != header:
                raise _Damage(f"{entry.member!r} has a wrong header")
            crc = zlib.crc32(header)
            for count in self._fill(entry.nbytes, buffer):
                crc = zlib.crc32(buffer[:count], crc)
                done += count
                yield done, total
            if crc != info.CRC:
                raise _Damage(f"{entry.member!r} does not have its checksum")

    def _fill(self, total: int, buffer: memoryview) -> Iterator[int]:
        """Read this many bytes from here on into the buffer, again and again."""
        while total:
            count = self._file.readinto(buffer[: min(total, len(buffer))])
            if not count:
                raise _Damage("it ends early")
            yield count
            total -= count

    def copy(self, live: np.ndarray, entry: Stored) -> None:
        """Read an array into one of its shape and dtype, whatever its strides."""
        _, start = self._starts[f"{entry.member}.npy"]
        self._file.seek(start + len(entry.header()))
        for part in parts(live.T if entry.fortran else live):
            dense = part if part.flags.c_contiguous else np.empty(part.shape, part.dtype)
            self._read_into(bytes_of(dense).data)
            if dense is not part:
                part[...] = dense

    def array(self, entry: Stored) -> np.ndarray:
        made = np.empty(entry.shape, entry.dtype, order="F" if entry.fortran else "C")
        self.copy(made, entry)
        return made


class _Seekable:
    """A file for zipfile: what it is sent to by a damaged directory is the file's fault."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self.tell, self.seekable = file.tell, lambda: True

    def read(self, count: int = -1) -> bytes:
        data = self._file.read(count)
        while 0 < len(data) < count and (more := self._file.read(count - len(data))):
            data += more
        return bytes(data)

    def seek(self, offset: int, whence: int = 0) -> int:
        try:
            return int(self._file.seek(offset, whence))
        except OSError as error:
            if error.errno == errno.EINVAL:
                raise _Damage("it ends early") from None
            raise


def _entry(fields: Any) -> Stored:
    member, shape, dtype, fortran, crc = fields
    sound = (
        isinstance(member, str)
        and isinstance(shape, list)
        and len(shape) <= 64
        and all(type(n) is int and 0 <= n < 2**63 for n in shape)
        and isinstance(dtype, str)
        and DTYPE.fullmatch(dtype)
        and type(fortran) is bool
        and type(crc) is int
    )
    if not sound:
        raise _Damage(f"its manifest describes {str(member)[:80]!r} wrongly")
    return Stored(member, tuple(shape), np.dtype(dtype), fortran, crc)


@contextmanager
def opened(path: Path) -> Iterator[Archive]:
    """The archive; whatever is wrong with the file is a CheckpointError that names it."""
    with sound(path):
        archive = Archive(path)
    try:
        yield archive
    finally:
        archive.close()


@contextmanager
def sound(path: Path) -> Iterator[None]:
    """Reading a file: the system's errors stay, all others say that it is damaged."""
    try:
        yield
    except (OSError, CheckpointError):
        raise
    except Exception as error:
        reason = str(error) or type(error).__name__
        raise CheckpointError(
            f"{path}: expected a checkpoint, received a file that is none or is damaged: {reason}"
        ) from error
