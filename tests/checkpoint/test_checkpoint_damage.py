"""Damaged and hostile files: refused, with a word on why, and the optimizer as it was."""

import io
import itertools
import json
import struct
import zipfile
import zlib

import numpy as np
import pytest

import thalweg as tw
from conftest import FULL
from crafting import SAMPLE, WHOLE, Loader, Member, array_member, pack
from refusing import frozen


@pytest.fixture
def loader(tmp_path):
    with Loader(tmp_path) as made:
        yield made


def test_the_sample_is_what_the_package_writes(loader):
    assert loader.load(WHOLE) is None
    opt = SAMPLE.new()
    extra = tw.load_checkpoint(loader.path, opt, options="file")
    tw.save_checkpoint(loader.path, opt, extra)
    with zipfile.ZipFile(loader.path) as ours, zipfile.ZipFile(io.BytesIO(WHOLE)) as made:
        assert ours.namelist() == made.namelist()
        for name in ours.namelist()[:-1]:
            assert ours.read(name) == made.read(name)
        texts = [json.loads(each.read("manifest.npy")[128:]) for each in (ours, made)]
    assert texts[0] == texts[1]
    assert loader.load(loader.path.read_bytes()) is None


# Flipped bits, truncation, junk


def flipped(data, bit):
    damaged = bytearray(data)
    damaged[bit // 8] ^= 1 << bit % 8
    return bytes(damaged)


def ranges(data):
    """By member, where its bytes start and end."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        found = {}
        for info in archive.infolist():
            name, extra = struct.unpack("<2H", data[info.header_offset + 26 :][:4])
            start = info.header_offset + 30 + name + extra
            found[info.filename] = start, start + info.file_size
        return found


def test_every_bit_of_every_byte(loader, tmp_path):
    """In the members none may pass; of the archive's own numbers some mean nothing to a reader."""
    opt = SAMPLE.new()
    loader.load(WHOLE)
    extra = tw.load_checkpoint(loader.path, opt, options="file")
    tw.save_checkpoint(tmp_path / "b", opt, extra)
    data = (tmp_path / "b").read_bytes()
    inside = np.zeros(len(data), bool)
    for start, end in ranges(data).values():
        inside[start:end] = True
    assert inside.sum() > 1000
    for bit in range(8 * len(data)):
        if loader.load(flipped(data, bit)) is None:
            assert not inside[bit // 8], f"bit {bit % 8} of byte {bit // 8}"


@pytest.mark.slow
def test_random_bits_of_a_larger_payload(tmp_path):
    rng = np.random.default_rng(0)
    params = [rng.standard_normal((300, 200)), rng.standard_normal(70_000).astype(np.float32)]
    opt = tw.Adagrad(params)
    path = tmp_path / "a"
    tw.save_checkpoint(path, opt, rng.standard_normal(9000))
    before = frozen(opt)
    spans = [span for name, span in ranges(path.read_bytes()).items() if "manifest" not in name]
    with open(path, "r+b", buffering=0) as file:
        for _ in range(10_000 if FULL else 500):
            start, end = spans[rng.integers(len(spans))]
            at, bit = int(rng.integers(start, end)), int(rng.integers(8))
            file.seek(at)
            byte = file.read(1)[0]
            for value in (byte ^ 1 << bit, byte):
                file.seek(at)
                file.write(bytes([value]))
                if value != byte:
                    with pytest.raises(tw.CheckpointError, match="damaged"):
                        tw.load_checkpoint(path, opt)
    assert frozen(opt) == before
    tw.load_checkpoint(path, opt)


def test_truncated_anywhere(loader):
    for length in range(len(WHOLE)):
        assert loader.load(WHOLE[:length]), length


def test_truncated_and_filled_up(loader):
    """As a file system leaves it that has the length but not the bytes."""
    for length in range(0, len(WHOLE), 7):
        data = WHOLE[:length] + bytes(len(WHOLE) - length)
        assert loader.load(data) or data == WHOLE, length
        assert loader.load(bytes(length) + WHOLE[length:]) or length == 0


@pytest.mark.parametrize("junk", [b"\0", b"x", b"PK\5\6", b"\0" * 4096, b"x" * 70_000, WHOLE])
def test_junk_around_it(loader, junk):
    middle = len(WHOLE) // 2
    assert loader.load(WHOLE + junk)
    assert loader.load(junk + WHOLE)
    assert loader.load(WHOLE[:middle] + junk + WHOLE[middle:])
    if len(junk) < 65_536:
        assert loader.load(pack(SAMPLE.members(), comment=junk))
    assert loader.load(pack(SAMPLE.members(), gap=junk))


def test_parts_in_another_order(loader):
    cuts = [0, 200, 500, 900, 1500, len(WHOLE)]
    parts = [WHOLE[a:b] for a, b in itertools.pairwise(cuts)]
    for i in range(len(parts)):
        for j in range(i):
            mixed = list(parts)
            mixed[i], mixed[j] = parts[j], parts[i]
            assert loader.load(b"".join(mixed))
            assert loader.load(b"".join(parts[:i] + parts[j:]))


# Members


def with_member(i, **changes):
    members = SAMPLE.members()
    for name, value in changes.items():
        setattr(members[i], name, value)
    return pack(members)


def deflated(i):
    members = SAMPLE.members()
    made = zlib.compressobj(9, zlib.DEFLATED, -15)
    data = made.compress(members[i].data) + made.flush()
    members[i].crc, members[i].data, members[i].method = zlib.crc32(members[i].data), data, 8
    return pack(members)


def bomb():
    """A gigabyte in a megabyte, as zip makes it."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for member in SAMPLE.members():
            archive.writestr(member.name, member.data)
        with archive.open("param1.npy", "w") as file:
            for _ in range(256):
                file.write(bytes(1 << 22))
    return out.getvalue()


def overlapping():
    members = SAMPLE.members()
    members[1].offset, members[1].name = 0, members[0].name
    return pack(members)


A, B, C, M = SAMPLE.members()
FOREIGN = array_member("other", np.ones(3))
MEMBERS = {
    "twice the same": pack([A, A, B, C, M]),
    "twice the same name": pack([A, array_member("param0", np.zeros(3)), B, C, M]),
    "two manifests": pack([A, B, C, M, M]),
    "an unknown one": pack([A, B, C, FOREIGN, M]),
    "an unknown one behind": pack([A, B, C, M, FOREIGN]),
    "one that is no array": pack([A, B, C, Member("readme.txt", b"hello"), M]),
    "an empty one": pack([A, B, C, Member("empty.npy", b""), M]),
    "a folder": pack([A, B, C, Member("folder/", b""), M]),
    "a missing one": pack([A, B, M]),
    "no manifest": pack([A, B, C]),
    "nothing": pack([]),
    "hidden in the file": pack([A, B, C, Member("hidden", b"x" * 99, listed=False), M]),
    "another order in the directory": pack([B, A, C, M])[:0] or with_member(0, offset=10),
    "path traversal": with_member(0, name="../param0.npy"),
    "absolute": with_member(0, name="/etc/passwd"),
    "windows": with_member(0, name="..\\param0.npy"),
    "traversal on top": pack([A, B, C, Member("../../evil.npy", A.data), M]),
    "another name in the header": with_member(0, local_name="param9.npy"),
    "a longer name in the header": with_member(0, local_name="param0.npy\0"),
    "a null in the name": with_member(0, name="param0.npy\0x"),
    "no suffix": with_member(0, name="param0"),
    "encrypted": with_member(0, flags=1),
    "encrypted manifest": with_member(3, flags=1),
    "strongly encrypted": with_member(0, flags=0x41),
    "data descriptor": with_member(0, flags=8),
    "patched": with_member(0, flags=32),
    "compressed": deflated(0),
    "compressed manifest": deflated(3),
    "bzip2": with_member(0, method=12),
    "unknown method": with_member(0, method=99),
    "bomb": bomb(),
    "overlapping": overlapping(),
    "overlapping manifest": with_member(3, offset=0),
    "offset in the payload": with_member(1, offset=60),
    "offset behind the end": with_member(3, offset=2**31),
    "size too small": with_member(0, size=len(A.data) - 1),
    "size too large": with_member(0, size=len(A.data) + 1),
    "size of all": with_member(3, size=2**32 - 2),
    "zip64 without its numbers": with_member(0, size=2**32 - 1),
    "size zero": with_member(0, size=0),
    "wrong checksum": with_member(0, crc=1),
    "wrong checksum of the manifest": with_member(3, crc=1),
}


@pytest.mark.parametrize("name", MEMBERS)
def test_members_of_another_kind(loader, name):
    assert loader.load(MEMBERS[name])
    with pytest.raises(tw.CheckpointError):
        tw.read_checkpoint(loader.path)
    assert sorted(path.name for path in loader.path.parent.iterdir()) == ["a.npz"]


def test_numbers_of_the_archive(loader):
    """Sizes, offsets and counts of the end record and of zip64's, of any value."""
    at = len(WHOLE) - 22
    wide = [0, 1, 7, 2**15, 2**16 - 1, 2**31, 2**32 - 2, 2**32 - 1]
    for field, (offset, code) in enumerate([(8, "H"), (10, "H"), (12, "L"), (16, "L"), (20, "H")]):
        for value in wide:
            if code == "L" or value < 2**16:
                data = bytearray(WHOLE)
                struct.pack_into(f"<{code}", data, at + offset, value)
                reason = loader.load(bytes(data))
                assert reason or field < 2 or bytes(data) == WHOLE, (field, value)
    sound = struct.unpack("<4s4H2LH", WHOLE[at:])
    for size, start in [(2**63, 0), (0, 2**63), (2**64 - 1, 2**64 - 1), (2**40, 2**40), (46, 5)]:
        record = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, 4, 4, size, start)
        locator = struct.pack("<4sLQL", b"PK\6\7", 0, at, 1)
        assert loader.load(WHOLE[:at] + record + locator + struct.pack("<4s4H2LH", *sound))
