"""Manifests with valid checksums that lie, files of others, and bytes drawn at random: the loader
refuses them in bounded memory and time. ``test_checkpoint_hostile.py FOLDER`` measures memory."""

import json
import os
import pickle
import socket
import struct
import sys

import numpy as np
import pytest

import thalweg as tw
from crafting import SAMPLE, Loader, array_member, manifest_member, npy, pack, padded
from refusing import frozen, refused

MIB = 1 << 20


@pytest.fixture
def loader(tmp_path):
    with Loader(tmp_path) as made:
        yield made


def changed(*path, to):
    return pack(SAMPLE.members(changed_manifest(*path, to=to)))


def changed_manifest(*path, to):
    """The sample's with one value changed, or left out."""
    manifest = SAMPLE.manifest()
    below = manifest
    for key in path[:-1]:
        below = below[key]
    if to is LEFT_OUT:
        del below[path[-1]]
    else:
        below[path[-1]] = to
    return manifest


LEFT_OUT = object()
BIG = 10**400
GARBAGE = [None, True, -1, 0, 3, 2**63, BIG, 1.5, "x", "", [], {}, [[]], {"a": 1}, {"array": 0}]


def places(value, path=()):
    yield path
    if isinstance(value, (dict, list)):
        for key, each in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(each, (*path, key))


def at(manifest, path):
    for key in path:
        manifest = manifest[key]
    return manifest


def test_garbage_in_every_place_of_the_manifest(loader):
    """Refused without a trace, or a value that an optimizer may have."""
    tried = 0
    for path in places(SAMPLE.manifest()):
        now = repr(at(SAMPLE.manifest(), path))
        for value in [x for x in [*GARBAGE, LEFT_OUT] if path and repr(x) != now]:
            tried += 1
            loader.write(changed(*path, to=value))
            try:
                tw.load_checkpoint(loader.path, loader.opt, options="file")
            except tw.CheckpointError:
                assert frozen(loader.opt) == loader.before, (path, value)
            else:
                assert path[0] in ("extra", "optimizer", "saved"), (path, value)
                assert loader.opt._arrays["w"].tolist() == [1.5, -2.5, 3.5]
                loader.opt.step({"w": np.ones(3)})
                loader.renew()
    assert tried > 900


def with_manifest(data):
    return pack([*SAMPLE.members()[:3], manifest_member(data)])


TEXT = json.dumps(SAMPLE.manifest()).encode()
LR = "optimizer", "groups", 0, "lr"
W, X = ("entries", 0), ("entries", 2)
LIES = {
    "an absurd shape": changed(*W, 1, to=[2**62]),
    "a shape beyond 64 bits": changed(*W, 1, to=[2**64]),
    "a negative shape": changed(*W, 1, to=[-3]),
    "two negative ones": changed(*W, 1, to=[-1, -3]),
    "a product that overflows": changed(*W, 1, to=[2**32, 2**32, 3]),
    "a product that overflows to the right one": changed(*W, 1, to=[2**61 + 3]),
    "nothing of a lot": changed(*W, 1, to=[0, 2**62, 2**62]),
    "many axes": changed(*W, 1, to=[1] * 60 + [3]),
    "a shape of floats": changed(*W, 1, to=[3.0]),
    "a shape of bools": changed(*W, 1, to=[True, 3]),
    "a shape that is a number": changed(*W, 1, to=3),
    "another shape of the size": changed(*W, 1, to=[3, 1]),
    "an object dtype": changed(*W, 2, to="|O"),
    "an object dtype of a size": changed(*W, 2, to="|O8"),
    "a record dtype": changed(*W, 2, to="f4,f4"),
    "a list as dtype": changed(*W, 2, to=[["x", "<f8"]]),
    "another dtype of the size": changed(*W, 2, to="<i8"),
    "the other byte order": changed(*W, 2, to=">f8"),
    "a dtype without order": changed(*W, 2, to="f8"),
    "a dtype by name": changed(*W, 2, to="float64"),
    "a wide dtype": changed(*W, 2, to="<U999999999"),
    "a dtype of no size": changed(*W, 2, to="|V0"),
    "a word of no size": changed(*X, 2, to="|S0"),
    "no dtype": changed(*W, 2, to="<q9"),
    "a dtype with code": changed(*W, 2, to="__import__('os').system('touch evil')"),
    "an aligned dtype": changed(*W, 2, to="{'names':['x']}"),
    "Fortran order": changed(*X, 3, to=False),
    "order as a number": changed(*X, 3, to=1),
    "a wrong checksum": changed(*W, 4, to=1),
    "a float checksum": changed(*W, 4, to=1.0),
    "another member": changed(*W, 0, to="state0"),
    "a member that is not there": changed(*W, 0, to="param1"),
    "a member outside": changed(*W, 0, to="../param0"),
    "a long name": changed(*W, 0, to="x" * 100_000),
    "an entry too many": changed("entries", to=[*SAMPLE.manifest()["entries"] * 2]),
    "an entry too short": changed(*W, to=["param0", [3], "<f8", False]),
    "the same array twice": changed("params", to={"w": 1}),
    "an array of nothing": changed("extra_arrays", to=[]),
    "an array that is not there": changed("params", to={"w": 9}),
    "a negative array": changed("params", to={"w": -3}),
    "an array by name": changed("params", to={"w": "param0"}),
    "another name": changed("params", to={"v": 0}),
    "an extra array not there": changed("extra", to={"dict": {"x": {"array": 5}}}),
    "an unknown tag": changed("extra", to={"eval": "1"}),
    "two tags": changed("extra", to={"dict": {}, "array": 0}),
    "a newer version": changed("version", to=3),
    "an older version": changed("version", to=0),
    "a newer version of the state": changed("optimizer", "version", to=3),
    "a save before the first": changed("saved", to=-1),
    "a save beyond all": pack(
        [
            *SAMPLE.members()[:3],
            manifest_member(TEXT.replace(b'"saved": 0', b'"saved": ' + b"9" * 5000)),
        ]
    ),
    "half a save": changed("saved", to=1.5),
    "a save by name": changed("saved", to="1"),
    "no number of the save": changed("saved", to=LEFT_OUT),
    "another format": changed("format", to="thalweg model"),
    "another rule": changed("optimizer", "rule", to="Adagrad"),
    "negative steps": changed("optimizer", "step_count", to=-1),
    "too many steps": changed("optimizer", "step_count", to=2**64),
    "a norm too large": changed("optimizer", "grad_norm", to=BIG),
    "a norm that is a list": changed("optimizer", "grad_norm", to=[1]),
    "steps of an array": changed("optimizer", "arrays", "w", "step", to=-1),
    "lr out of range": changed(*LR, to=-1.0),
    "momentum out of range": changed("optimizer", "groups", 0, "momentum", to=1.5),
    "no schedule": changed(*LR, to={"schedule": "os.system", "fields": {}}),
    "a callable where none is": changed(*LR, to="callable"),
    "deep JSON": with_manifest(b"[" * 100_000),
    "deep closed JSON": pack(
        [*SAMPLE.members()[:3], manifest_member(b'{"a":' * 5000 + b"1" + b"}" * 5000)]
    ),
    "a long number": with_manifest(b"9" * 100_000),
    "no JSON": with_manifest(b"\x80\4K\1."),
    "a JSON word": with_manifest(b'"thalweg checkpoint"'),
    "JSON and more": pack([*SAMPLE.members()[:3], manifest_member(TEXT + b" x")]),
    "an empty manifest": with_manifest(b""),
    "half a manifest": pack([*SAMPLE.members()[:3], manifest_member(TEXT[:-9])]),
    "Python's NaN": changed("version", to=float("nan")),
}


@pytest.mark.parametrize("name", LIES)
def test_manifests_that_lie(loader, name, monkeypatch):
    monkeypatch.chdir(loader.path.parent)
    assert loader.load(LIES[name])
    assert os.listdir() == ["a.npz"]
    assert loader.opt.step({"w": np.ones(3)})


WARMUP = '{"schedule": "Warmup", "fields": {"steps": 1, "start": 0.0, "schedule": ', "}}"
DEEP = {
    "schedule": (
        ("optimizer", "groups", 0, "lr"),
        *WARMUP,
        '{"schedule":"Constant","fields":{"lr":1}}',
    ),
    "dict": (("extra",), '{"dict":{"k":', "}}", "1"),
    "list": (("extra",), "[", "]", "1"),
    "groups": (("optimizer", "groups"), "[", "]", "1"),
}


@pytest.mark.parametrize("name", DEEP)
@pytest.mark.parametrize("depth", [90, 150, 300, 480, 950, 5000])
def test_deep_manifests(loader, name, depth):
    """Whichever of the readers has no stack left, it is an error of the file."""
    path, opening, closing, core = DEEP[name]
    members = SAMPLE.members(changed_manifest(*path, to="@"))
    text = members[3].data[128:].decode().replace('"@"', opening * depth + core + closing * depth)
    members[3] = manifest_member(text.encode())
    loader.write(pack(members))
    try:
        tw.load_checkpoint(loader.path, loader.opt, options="file")
    except tw.CheckpointError:
        assert frozen(loader.opt) == loader.before
    else:
        assert name != "groups"
        assert depth < sys.getrecursionlimit()


CONSISTENT = {
    "objects": ("|O8", [2], "|O", 16),
    "a word of no size": ("|S0", [3], "|S0", 0),
    "a dtype of no size": ("|V0", [3], "|V0", 0),
    "a lot of nothing": ("|S0", [2**40], "|S0", 0),
    "a shape of bools": ("<i2", [True, 4], "<i2", 8),
    "a shape of floats": ("<i2", [4.0], "<i2", 8),
    "a negative shape": ("<i2", [-2, -2], "<i2", 8),
    "too many axes": ("<i2", [1] * 65 + [4], "<i2", 8),
}


@pytest.mark.parametrize("name", CONSISTENT)
def test_a_lie_that_all_of_the_file_tells(loader, name):
    """Manifest, header, size and checksum agree with each other."""
    dtype, shape, named, count = CONSISTENT[name]
    manifest, members = SAMPLE.manifest(), SAMPLE.members()
    members[2].data = npy(padded(named, False, tuple(shape)), bytes(count))
    manifest["entries"][2][1:] = [shape, dtype, False, members[2].numbers()[0]]
    assert loader.load(pack([*members[:3], manifest_member(manifest)]))
    with pytest.raises(tw.CheckpointError):
        tw.read_checkpoint(loader.path)


NPY = {
    "pickled objects": npy(
        {"descr": "|O", "fortran_order": False, "shape": (3,)}, pickle.dumps([1])
    ),
    "a shape of code": npy(
        b"{'descr': '<f8', 'fortran_order': False, 'shape': (exit(),), }", bytes(24)
    ),
    "another version": b"\x93NUMPY\3\0" + array_member("x", np.ones(3)).data[8:],
    "other blanks": npy({"descr": "<f8", "fortran_order": False, "shape": (3,)}, bytes(24)),
    "no header": bytes(24),
    "nothing": b"",
    "a longer shape": array_member("x", np.ones(4)).data,
    "a magic word only": b"\x93NUMPY",
    "a long header": b"\x93NUMPY\2\0" + struct.pack("<I", 2**32 - 1) + bytes(100),
}


@pytest.mark.parametrize("name", NPY)
@pytest.mark.parametrize("which", ["param0", "manifest"])
def test_members_with_another_header(loader, name, which):
    """Their checksums are valid, in the directory and in the manifest."""
    manifest = SAMPLE.manifest()
    members = SAMPLE.members()
    if which == "manifest":
        members[3].data = NPY[name]
    else:
        members[0].data = NPY[name]
        manifest["entries"][0][4] = members[0].numbers()[0]
        members[3] = manifest_member(manifest)
    assert loader.load(pack(members))


def test_versions_are_refused_by_name(loader):
    opt = SAMPLE.new()
    for version, words in [
        (3, "update thalweg"),
        (0, "0"),
        (99, "99"),
        ("1", "'1'"),
        (None, "None"),
        (True, "True"),
    ]:
        loader.write(changed("version", to=version))
        with refused(
            tw.CheckpointError, "expected version 1 or 2", repr(version), words, keeps=opt
        ):
            tw.load_checkpoint(loader.path, opt)
        with refused(tw.CheckpointError, "expected version 1 or 2", repr(version), words):
            tw.read_checkpoint(loader.path)


# Files of others


def foreign(folder):
    np.savez(folder / "foreign.npz", a=np.ones(3), manifest=np.ones(3))
    np.savez_compressed(folder / "packed.npz", param0=np.ones(3))
    np.save(folder / "one.npy", np.ones(3))
    (folder / "pickle").write_bytes(pickle.dumps(Evil()))
    (folder / "empty").write_bytes(b"")
    (folder / "zeros").write_bytes(bytes(5000))
    (folder / "text").write_text("epoch,loss\n1,0.5\n" * 100)
    (folder / "long.json").write_text("[" * 100_000)
    (folder / "end").write_bytes(b"PK\5\6" + bytes(18))
    return sorted(folder.iterdir())


class Evil:
    def __reduce__(self):
        return os._exit, (77,)


def test_files_of_others(tmp_path):
    opt = SAMPLE.new()
    for path in foreign(tmp_path):
        with refused(tw.CheckpointError, str(path), "expected a checkpoint", "received", keeps=opt):
            tw.load_checkpoint(path, opt)
        with refused(tw.CheckpointError, str(path), "expected a checkpoint", "received"):
            tw.read_checkpoint(path)


def test_what_is_no_file(tmp_path):
    opt = SAMPLE.new()
    with refused(
        IsADirectoryError, str(tmp_path), "received a folder", "CheckpointKeeper", keeps=opt
    ):
        tw.load_checkpoint(tmp_path, opt)
    with refused(FileNotFoundError, "nothing.npz", keeps=opt):
        tw.load_checkpoint(tmp_path / "nothing.npz", opt)
    with refused(FileNotFoundError, "nothing", keeps=opt):
        tw.load_checkpoint(tmp_path / "nothing" / "a.npz", opt)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs on this system")
def test_a_fifo_does_not_block(tmp_path):
    opt = SAMPLE.new()
    os.mkfifo(tmp_path / "fifo")
    with refused(tw.CheckpointError, "regular file", keeps=opt):
        tw.load_checkpoint(tmp_path / "fifo", opt)
    with refused(tw.CheckpointError, "regular file", keeps=opt):
        tw.load_checkpoint("/dev/zero", opt)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "socket"))
        with refused(OSError, "socket", keeps=opt):
            tw.load_checkpoint(tmp_path / "socket", opt)
    os.mkfifo(tmp_path / ".a.npz.partial")
    tw.save_checkpoint(tmp_path / "a.npz", opt)
    assert sorted(os.listdir(tmp_path)) == ["a.npz", "fifo", "socket"]
