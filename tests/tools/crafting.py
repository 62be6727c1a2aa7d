"""Files that only look like checkpoints: members put together byte by byte, checksums valid unless
they are asked not to be."""

import copy
import json
import struct
import zlib
from dataclasses import dataclass

import numpy as np

import thalweg as tw
from refusing import frozen


@dataclass
class Member:
    """One entry of a zip archive; the local header and the directory may contradict each other."""

    name: str
    data: bytes
    crc: int | None = None
    flags: int = 0
    method: int = 0
    size: int | None = None
    offset: int | None = None
    extra: bytes = b""
    local_name: str | None = None
    listed: bool = True

    def numbers(self):
        size = len(self.data) if self.size is None else self.size
        crc = zlib.crc32(self.data) if self.crc is None else self.crc
        return crc, size, size

    def local(self):
        name = (self.name if self.local_name is None else self.local_name).encode()
        head = struct.pack("<4s5H", b"PK\3\4", 20, self.flags, self.method, 0, 33)
        sizes = struct.pack("<3L2H", *self.numbers(), len(name), len(self.extra))
        return head + sizes + name + self.extra + self.data

    def central(self, offset):
        offset = offset if self.offset is None else self.offset
        name = self.name.encode()
        head = struct.pack("<4s6H", b"PK\1\2", 20, 20, self.flags, self.method, 0, 33)
        sizes = struct.pack("<3L5H2L", *self.numbers(), len(name), 0, 0, 0, 0, 0, offset)
        return head + sizes + name


def pack(members, comment=b"", gap=b""):
    """The bytes of an archive of these members."""
    body, directory, count = b"", b"", 0
    for member in members:
        if member.listed:
            directory += member.central(len(body))
            count += 1
        body += member.local()
    body += gap
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, count, count, len(directory), len(body), 0)
    return body + directory + end[:-2] + struct.pack("<H", len(comment)) + comment


def npy(header, data=b""):
    """A .npy of this header, a dict or the text of one, and these bytes."""
    text = (header if isinstance(header, bytes) else repr(header).encode()) + b"\n"
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(text)) + text + data


def padded(dtype, fortran, shape):
    """The text of a header as the package writes it."""
    text = f"{{'descr': {dtype!r}, 'fortran_order': {fortran}, 'shape': {shape!r}, }}"
    return text.encode() + b" " * (-(len(text) + 11) % 64)


def array_member(name, array, **others):
    """As the package writes it."""
    order = "F" if array.flags.f_contiguous and not array.flags.c_contiguous else "C"
    data = npy(padded(array.dtype.str, order == "F", array.shape), array.tobytes(order))
    return Member(f"{name}.npy", data, **others)


def manifest_member(manifest, **others):
    text = manifest if isinstance(manifest, bytes) else json.dumps(manifest).encode()
    return array_member("manifest", np.frombuffer(text, np.uint8), **others)


class Sample:
    """A small checkpoint in parts: one param, its velocity, an array beside them."""

    def __init__(self):
        self.arrays = {
            "param0": np.array([1.5, -2.5, 3.5]),
            "state0": np.array([0.25, 0.5, 0.75]),
            "extra0": np.array([[1, 2], [3, 4]], np.int16, order="F"),
        }
        self.extra = {"dict": {"x": {"array": 0}, "y": [1, {"float": "nan"}]}}

    def new(self):
        """An optimizer that the file fits and that has other values."""
        w = np.full(3, 9.0)
        opt = tw.SGD({"w": w}, lr=9.0, momentum=0.125)
        opt.state["w"]["velocity"][...] = 9
        return opt

    def manifest(self):
        entries = []
        for name, array in self.arrays.items():
            member = array_member(name, array)
            fortran = array.flags.f_contiguous and not array.flags.c_contiguous
            crc = zlib.crc32(member.data)
            entries.append([name, list(array.shape), array.dtype.str, fortran, crc])
        opt = self.new()
        opt.lr = tw.schedules.Warmup(tw.schedules.Cosine(0.5, 10), 3)
        optimizer = opt.state_dict() | {
            "step_count": 7,
            "skipped_steps": 2,
            "grad_norm": 1.5,
            "last_lr": [0.25],
        }
        optimizer["arrays"]["w"] = {"group": 0, "step": 6, "velocity": 1}
        return {
            "entries": entries,
            "format": "thalweg checkpoint",
            "version": 2,
            "saved": 0,
            "optimizer": optimizer,
            "params": {"w": 0},
            "extra": copy.deepcopy(self.extra),
            "extra_arrays": [2],
        }

    def members(self, manifest=None):
        described = manifest_member(self.manifest() if manifest is None else manifest)
        return [*(array_member(name, array) for name, array in self.arrays.items()), described]

    def loaded(self, opt, extra):
        """Whether exactly this file is what the optimizer holds now."""
        group = opt.param_groups[0]
        return (
            opt._arrays["w"].tobytes() == self.arrays["param0"].tobytes()
            and opt.state["w"]["velocity"].tobytes() == self.arrays["state0"].tobytes()
            and (opt.state["w"]["step"], opt.step_count, opt.skipped_steps, opt.grad_norm)
            == (6, 7, 2, 1.5)
            and opt.last_lr == (0.25,)
            and group["lr"] == tw.schedules.Warmup(tw.schedules.Cosine(0.5, 10), 3)
            and extra["x"].tobytes("F") == self.arrays["extra0"].tobytes("F")
            and (extra["x"].dtype, extra["x"].shape) == (np.int16, (2, 2))
            and repr(extra["y"]) == "[1, nan]"
        )


SAMPLE = Sample()
WHOLE = pack(SAMPLE.members())


class Loader:
    """Loads files again and again; every one is the whole sample or leaves no trace.

    The file is made once: to make one anew takes longer than all the rest.
    """

    def __init__(self, folder):
        self.path = folder / "a.npz"
        self.file = open(self.path, "x+b", buffering=0)  # noqa: SIM115

        self.renew()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()

    def load(self, data):
        """The reason for which it was refused, or None."""
        self.write(data)
        return self.load_path(self.path)

    def write(self, data):
        self.file.seek(0)
        self.file.write(data)
        self.file.truncate()

    def load_path(self, path):
        try:
            extra = tw.load_checkpoint(path, self.opt, options="file")
        except tw.CheckpointError as error:
            refusal = error
        else:
            assert SAMPLE.loaded(self.opt, extra)
            self.renew()
            return None
        reason = str(refusal)
        assert type(refusal) is tw.CheckpointError
        assert reason.startswith(f"{path}: expected ") or "does not fit" in reason
        assert len(reason) < 3000
        assert frozen(self.opt) == self.before
        return reason.removeprefix(str(path))

    def renew(self):
        self.opt = SAMPLE.new()
        self.before = frozen(self.opt)
