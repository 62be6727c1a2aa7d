"""The ISA levels: every test of bits runs on each, and a run that left one out has failed. And what
files share."""

import gc
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from collections import Counter
from pathlib import Path

import pytest

from thalweg import _core

# Whether slow tests run in full.
FULL = os.environ.get("THALWEG_SLOW") == "1"

# Whether this interpreter can do without the GIL.
FREE = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))

# What Linux calls the features, asked independently of the core's own detection.
FEATURES = {
    "baseline": set(),
    "avx2": {"avx2", "fma", "bmi1", "bmi2", "f16c", "movbe", "abm"},
    "avx512": {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"},
}

TOOLS = Path(__file__).parent / "tools"
INTERPOSER = TOOLS / "interpose.c"

exercised = Counter()


def told(value):
    """For ids: a value in few words, the same in every run."""
    return re.sub(r" at 0x[0-9a-f]+", "", str(value))[:60]


def expected_levels():
    """The compiled levels that this CPU runs."""
    cpuinfo = Path("/proc/cpuinfo")
    if platform.machine() != "x86_64" or not cpuinfo.exists():
        return set(_core.isa_supported)
    flags = set(cpuinfo.read_text().split())
    return {level for level in _core.isa_compiled if FEATURES[level] <= flags}


def pytest_collection_finish():
    """Thousands of tests are many objects: every full collection would go through them."""
    gc.collect()
    gc.freeze()


@pytest.fixture(params=_core.isa_supported)
def level(request):
    """An ISA level of this CPU."""
    exercised[request.param] += 1
    return request.param


@pytest.fixture
def no_way_out(monkeypatch):
    """The general way is closed: what is not usual fails."""

    def closed(*args):
        raise AssertionError("not usual")

    monkeypatch.setattr(_core, "apply", closed)


@pytest.fixture
def threads():
    """Sets the number of threads; it is put back."""
    before = _core.get_num_threads()
    yield _core.set_num_threads
    _core.set_num_threads(before)


@pytest.fixture
def at_level(level):
    before = _core.isa
    _core._use_level(level)
    yield level
    _core._use_level(before)


@pytest.fixture(scope="session")
def interposer(tmp_path_factory):
    """For LD_PRELOAD: the library made from interpose.c."""
    if sys.platform != "linux":
        pytest.skip("LD_PRELOAD is Linux's")
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if not compiler:
        pytest.skip("no C compiler to build interpose.c with")
    library = tmp_path_factory.mktemp("interposer") / "interposer.so"
    # With the C++ library, so that its symbols are found behind ours.
    command = [compiler, "-shared", "-fPIC", "-fexceptions", "-o", library, INTERPOSER]
    subprocess.run([*command, "-Wl,--no-as-needed", "-lstdc++", "-ldl"], check=True)
    return str(library)


def pytest_sessionfinish(session):
    options = session.config.option
    selected = (
        options.keyword
        or getattr(options, "lf", False)
        or any("::" in argument for argument in session.config.args)
    )
    missing = expected_levels() - set(exercised)
    if exercised and missing and not selected and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter):
    if not exercised:
        return
    tests = ", ".join(f"{name} {count}" for name, count in exercised.items())
    terminalreporter.write_line(f"ISA levels exercised (tests each): {tests}")
    for name in sorted(expected_levels() - set(exercised)):
        terminalreporter.write_line(f"ISA level not exercised: {name}", red=True)
