"""Bytes drawn at random, and what the loader takes of memory. ``test_checkpoint_fuzz.py FOLDER``
loads all files of a folder in a process that may not grow."""

import json
import os
import re
import resource
import struct
import sys
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_checkpoint_damage import MEMBERS
from test_checkpoint_hostile import LIES, TEXT, with_manifest

import thalweg as tw
from conftest import TOOLS
from crafting import SAMPLE, WHOLE, Loader, manifest_member, npy, pack, padded
from processes import run_python
from refusing import frozen
from strategies import checked

MIB = 1 << 20

edits = st.lists(
    st.tuples(
        st.integers(0, len(WHOLE)),
        st.integers(0, 9) | st.integers(0, len(WHOLE)),
        st.binary(max_size=9) | st.integers(0, len(WHOLE) - 20).map(lambda i: WHOLE[i : i + 20]),
    ),
    min_size=1,
    max_size=4,
)


def edited(data, changes):
    for at, count, new in changes:
        at %= len(data) + 1
        data = data[:at] + new + data[at + count :]
    return data


@pytest.fixture(scope="module")
def one_loader(tmp_path_factory):
    with Loader(tmp_path_factory.mktemp("drawn")) as made:
        yield made


@checked
@given(edits, st.booleans())
def test_edited_files(one_loader, changes, keep_length):
    data = edited(WHOLE, changes)
    one_loader.load(data[: len(WHOLE)].ljust(len(WHOLE), b"\0") if keep_length else data)


@checked
@given(edits)
def test_edited_manifests_with_valid_checksums(one_loader, changes):
    """Then all that they say must be checked."""
    one_loader.write(with_manifest(edited(TEXT, changes)))
    opt = SAMPLE.new()
    before = frozen(opt)
    try:
        tw.load_checkpoint(one_loader.path, opt, options="file")
    except tw.CheckpointError:
        assert frozen(opt) == before
    else:
        assert opt._arrays["w"].tolist() == [1.5, -2.5, 3.5]
        opt.step({"w": np.ones(3)})


def write_with_a_hole(path, i, size):
    """The sample whose member ``i`` is so long, mostly zeros that take no room on the disk."""
    manifest, members = SAMPLE.manifest(), SAMPLE.members()
    count = size - 128
    shape, dtype = ((count // 8,), "<f8") if i == 0 else ((count,), "|u1")
    members[i].data, members[i].size = npy(padded(dtype, False, shape)), size
    assert len(members[i].data) == 128
    if i == 0:
        manifest["entries"][0][1:2] = [list(shape)]
        manifest["entries"][0][4] = members[0].numbers()[0]
        members[3] = manifest_member(manifest)
    end = np.cumsum([len(member.local()) for member in members])
    for j, member in enumerate(members):
        member.offset = int(end[j]) - len(member.local()) + (count if j > i else 0)
    data = bytearray(pack(members))
    struct.pack_into("<L", data, len(data) - 6, int(end[-1]) + count)
    with open(path, "wb") as file:
        file.write(data[: end[i]])
        file.seek(count, os.SEEK_CUR)
        file.write(data[end[i] :])


def measure(folder):
    """In a process that may not grow: load every file, print what the greediest one took."""
    load, taken = partial(tw.load_checkpoint, opt=SAMPLE.new(), options="file"), {}
    with open("/proc/self/statm") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + 256 * MIB, now + 256 * MIB))
    for path in sorted(Path(folder).iterdir()):
        for _ in range(2):  # what the first use of anything needs is not the file's doing
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            start = time.monotonic()
            for do in (load, tw.read_checkpoint):
                with suppress(tw.CheckpointError):
                    do(path)
                    assert do is not load, f"{path} was loaded"
            taken[path.name] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
            assert time.monotonic() - start < 20, path
    print(json.dumps(taken))


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS and /proc are Linux's")
def test_memory_is_bounded(tmp_path):
    """Nothing is allocated because a number in the file says so."""
    folder = tmp_path / "files"
    folder.mkdir()
    for name, data in (LIES | MEMBERS).items():
        (folder / name.replace("/", "")).write_bytes(data)
    for i, mib in ((0, 60), (0, 300), (3, 60), (3, 70)):
        path = folder / f"hole {i} {mib}"
        write_with_a_hole(path, i, mib * MIB)
        reason = "checksum" if mib == 60 or i == 0 else "too large"
        with pytest.raises(tw.CheckpointError, match=reason):
            tw.read_checkpoint(path)
    ran = run_python(__file__, folder, timeout=300)
    assert ran.returncode == 0, ran.stderr[-3000:]
    taken = json.loads(ran.stdout)
    assert len(taken) == len(LIES) + len(MEMBERS) + 4
    assert taken.pop("hole 3 60") * 1024 < 200 * MIB  # a manifest of that size is read
    assert max(taken.values()) * 1024 < 16 * MIB, taken


@pytest.mark.fuzz
def test_the_loader_driven_by_atheris(tmp_path):
    """Five minutes by default; the number of executions is printed."""
    pytest.importorskip("atheris", reason="atheris is not installed")
    seconds = int(os.environ.get("THALWEG_FUZZ_SECONDS", "300"))
    fuzzer = TOOLS / "fuzz_checkpoint.py"
    options = [
        f"-max_total_time={seconds}",
        "-print_final_stats=1",
        f"-artifact_prefix={tmp_path}/",
    ]
    ran = run_python(fuzzer, *options, timeout=seconds + 120)
    assert ran.returncode == 0, ran.stderr[-3000:]
    executions = re.search(r"number_of_executed_units: (\d+)", ran.stderr)
    print(f"{int(executions[1]):,} executions")
    assert int(executions[1]) > 100 * seconds


if __name__ == "__main__":
    measure(sys.argv[1])
