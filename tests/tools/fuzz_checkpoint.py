"""The loader driven by atheris: ``fuzz_checkpoint.py [libFuzzer's options] [CORPUS]``. Whatever the
bytes, it loads or raises CheckpointError; a refusal leaves no trace."""

import os
import sys
import tempfile
import zlib
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["thalweg", "zipfile", "json"]):
    import json  # noqa: F401
    import zipfile  # noqa: F401

    import thalweg as tw
    import thalweg.checkpoint

import numpy as np

from crafting import SAMPLE, WHOLE, manifest_member, npy, pack, padded
from refusing import frozen

RAW, MANIFEST, HEADER, DIRECTORY = range(4)
SEEDS = {
    RAW: [WHOLE],
    MANIFEST: [SAMPLE.members()[3].data[128:]],
    HEADER: [SAMPLE.members()[0].data, npy(padded("<f8", False, (3,)), bytes(24))],
    DIRECTORY: [bytes(64)],
}
NUMBERS = {"flags": 2**16, "method": 2**16, "size": 2**32, "offset": 2**32, "crc": 2**32}


def whole(kind, data):
    """A file of these bytes; of all kinds but the first, one whose checksums are valid."""
    members = SAMPLE.members()
    if kind == RAW:
        return data
    if kind == MANIFEST:
        return pack([*members[:3], manifest_member(data)])
    if kind == HEADER:
        manifest = SAMPLE.manifest()
        members[0].data = data
        manifest["entries"][0][4] = zlib.crc32(data)
        return pack([*members[:3], manifest_member(manifest)])
    drawn = atheris.FuzzedDataProvider(data)
    for i in range(4):
        if drawn.ConsumeBool():
            members[i] = members[drawn.ConsumeIntInRange(0, 3)]
    for _ in range(drawn.ConsumeIntInRange(0, 4)):
        member = replace(members.pop(drawn.ConsumeIntInRange(0, len(members) - 1)))
        name = drawn.PickValueInList([*NUMBERS, "extra", "name", "data"])
        if name in NUMBERS:
            setattr(member, name, drawn.ConsumeIntInRange(0, NUMBERS[name] - 1))
        elif name == "name":
            member.name = drawn.ConsumeUnicodeNoSurrogates(20)
        else:
            setattr(member, name, drawn.ConsumeBytes(40))
        members.insert(drawn.ConsumeIntInRange(0, len(members)), member)
    return pack(members, drawn.ConsumeBytes(4), drawn.ConsumeBytes(4))


class Target:
    def __init__(self, folder):
        self.path = Path(folder) / "a.npz"
        self.opt = SAMPLE.new()
        self.before = frozen(self.opt)
        self.loaded = self.refused = 0

    def __call__(self, data):
        self.path.write_bytes(whole(data[0] % 4, data[1:]) if data else b"")
        try:
            tw.load_checkpoint(self.path, self.opt, options="file")
        except tw.CheckpointError:
            self.refused += 1
            if frozen(self.opt) != self.before:
                raise AssertionError("a refusal left a trace") from None
        else:
            self.loaded += 1
            self.opt.step({"w": np.ones(3)})
            self.opt = SAMPLE.new()
            self.before = frozen(self.opt)
        with suppress(tw.CheckpointError):
            tw.read_checkpoint(self.path)


def main():
    corpus = tempfile.mkdtemp()
    for kind, seeds in SEEDS.items():
        for i, seed in enumerate(seeds):
            (Path(corpus) / f"{kind}-{i}").write_bytes(bytes([kind]) + seed)
    folder = "/dev/shm" if os.path.isdir("/dev/shm") else None
    with tempfile.TemporaryDirectory(dir=folder) as below:
        limits = ["-max_len=4096", "-timeout=20", "-rss_limit_mb=1024"]
        atheris.Setup([*sys.argv, *limits, corpus], Target(below))
        atheris.Fuzz()


if __name__ == "__main__":
    main()
