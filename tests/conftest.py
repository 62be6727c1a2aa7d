"""The ISA levels: every test of bits runs on each, and a run that left one out has failed."""

import os
import platform
from collections import Counter
from pathlib import Path

import pytest

from thalweg import _core

# Whether slow tests run in full.
FULL = os.environ.get("THALWEG_SLOW") == "1"

# What Linux calls the features, asked independently of the core's own detection.
FEATURES = {
    "baseline": set(),
    "avx2": {"avx2", "fma", "bmi1", "bmi2", "f16c", "movbe", "abm"},
    "avx512": {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"},
}

exercised = Counter()


def expected_levels():
    """The compiled levels that this CPU runs."""
    cpuinfo = Path("/proc/cpuinfo")
    if platform.machine() != "x86_64" or not cpuinfo.exists():
        return set(_core.isa_supported)
    flags = set(cpuinfo.read_text().split())
    return {level for level in _core.isa_compiled if FEATURES[level] <= flags}


@pytest.fixture(params=_core.isa_supported)
def level(request):
    """An ISA level of this CPU."""
    exercised[request.param] += 1
    return request.param


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
