"""Which libraries the installed module asks for: the one C++ runtime of the process, no other."""

import re
import struct
import sys
from pathlib import Path

import pytest

from thalweg import _core

SYSTEM = {
    "libc.so.6",
    "libm.so.6",
    "libpthread.so.0",
    "ld-linux-x86-64.so.2",
    "ld-linux-aarch64.so.1",
}
RUNTIME = {"libstdc++.so.6", "libgcc_s.so.1"}

DYNAMIC, NEEDED, STRINGS = 2, 1, 5  # PT_DYNAMIC, DT_NEEDED, DT_STRTAB


def needed(module):
    """The names in DT_NEEDED of a 64-bit little-endian ELF file, read without binutils, which a
    machine that only installs wheels does not have."""
    assert module[:6] == b"\x7fELF\x02\x01"
    start, size, count = (
        *struct.unpack_from("<Q", module, 32),
        *struct.unpack_from("<HH", module, 54),
    )
    headers = [struct.unpack_from("<IIQQQQ", module, start + i * size) for i in range(count)]
    entries = []
    for kind, _, offset, _, _, length in headers:
        if kind == DYNAMIC:
            entries = list(struct.iter_unpack("<qQ", module[offset : offset + length]))
    address = dict(entries)[STRINGS]
    strings = next(
        address - virtual + offset
        for kind, _, offset, virtual, _, length in headers
        if kind == 1 and virtual <= address < virtual + length
    )
    names = [strings + value for tag, value in entries if tag == NEEDED]
    return {module[name : module.index(b"\0", name)].decode() for name in names}


def test_the_module_has_no_cpp_runtime_of_its_own():
    """A thread that the interpreter's end unwinds (pthread_exit) crashes in a second runtime."""
    if not sys.platform.startswith("linux"):
        pytest.skip("reads ELF, which this platform does not have")
    # Wheels for musl bring the runtime as a library, with a hash in its name.
    names = needed(Path(_core.__file__).read_bytes())
    found = {re.sub(r"-[0-9a-f]{8}(?=[-.\d]*\.so)", "", name) for name in names}
    assert {name for name in found - SYSTEM if not name.startswith("libc.musl-")} == RUNTIME
