"""The thread's floating-point mode: set it for a while, and operands that tell modes apart."""

import contextlib
import ctypes
import os
import platform
import shutil
import subprocess

import numpy as np
import pytest

SOURCE = """
#if defined(__x86_64__)
#include <xmmintrin.h>
unsigned long get_mode(void) { return _mm_getcsr() & 0xffc0ul; /* no sticky flags */ }
void set_mode(unsigned long mode) { _mm_setcsr((unsigned)mode); }
#elif defined(__aarch64__)
unsigned long get_mode(void) {
    unsigned long mode;
    __asm__ volatile("mrs %0, fpcr" : "=r"(mode));
    return mode;
}
void set_mode(unsigned long mode) { __asm__ volatile("msr fpcr, %0" : : "r"(mode)); }
#endif
"""
MODES = {
    "x86_64": {"flush": 0x8040, "up": 0x4000, "flush, up": 0xC040, "to zero": 0x6000},
    "aarch64": {"flush": 1 << 24, "up": 1 << 22, "flush, up": 5 << 22, "to zero": 3 << 22},
}.get(platform.machine(), {})

each_mode = pytest.mark.parametrize("mode", MODES)


@pytest.fixture(scope="module")
def processor(tmp_path_factory):
    """Two functions of C: what the thread's mode is, and setting it."""
    compiler = next(
        filter(None, map(shutil.which, (os.environ.get("CC", "cc"), "gcc", "clang"))), None
    )
    if not compiler:
        pytest.skip("no C compiler to build the switch of the floating-point mode with")
    folder = tmp_path_factory.mktemp("mode")
    source, library = folder / "mode.c", folder / "mode.so"
    source.write_text(SOURCE)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source], check=True)
    functions = ctypes.CDLL(str(library))
    functions.get_mode.restype = ctypes.c_ulong
    functions.set_mode.argtypes = [ctypes.c_ulong]
    return functions


@pytest.fixture
def in_mode(processor):
    """A context in another mode; it must still be set when the context ends."""

    @contextlib.contextmanager
    def enter(name):
        usual = processor.get_mode()
        wanted = usual | MODES[name]
        assert wanted != usual
        processor.set_mode(wanted)
        try:
            yield
            left = processor.get_mode()
        finally:
            processor.set_mode(usual)
        assert left == wanted

    return enter


def operands(dtype, grad_dtype, size, seed=1):
    """Around the smallest normal number in one half, around 1 in the other."""
    rng = np.random.default_rng(seed)
    factor = np.where(np.arange(size) % 2, 1.0, np.finfo(dtype).tiny)
    kinds = (dtype, grad_dtype, dtype)
    w, g, s = ((rng.standard_normal(size) * factor).astype(kind) for kind in kinds)
    return w, g, np.abs(s)
