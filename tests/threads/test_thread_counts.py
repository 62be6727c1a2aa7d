"""How many threads there may be: what the caller says, else the environment, else the system."""

import os
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

import thalweg as tw
import thalweg.threadpoolctl
from processes import run_python
from refusing import refused, rows
from thalweg import _threads

CPUS = 8


@pytest.fixture(autouse=True)
def count_put_back():
    before = tw.get_num_threads()
    yield
    tw.set_num_threads(before)


@pytest.fixture
def system(tmp_path, monkeypatch):
    """Makes this process's CPUs, its lines in /proc/self/cgroup, and the files of its cgroups."""

    def make(cgroup=None, files=None, cpus=CPUS):
        affinity = set(range(100, 100 + cpus))
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: affinity, raising=False)
        monkeypatch.setattr(os, "cpu_count", lambda: 999)
        lines, root = tmp_path / "lines", tmp_path / "cgroups"
        if cgroup is not None:
            lines.write_text(cgroup)
        monkeypatch.setattr(_threads, "LINES", str(lines))
        monkeypatch.setattr(_threads, "CGROUPS", str(root))
        for name, content in (files or {}).items():
            file = root / name
            file.parent.mkdir(parents=True, exist_ok=True)
            if content is None:
                file.mkdir()  # what root, too, cannot read
            else:
                file.write_bytes(content)

    for name in ("THALWEG_NUM_THREADS", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    return make


def v1(folder, quota, period=b"100000"):
    return {f"{folder}/cpu.cfs_quota_us": quota, f"{folder}/cpu.cfs_period_us": period}


QUOTAS = {
    "no cgroups": (None, {}, CPUS),
    "v2, no file": ("0::/a\n", {}, CPUS),
    "v2, no limit": ("0::/a\n", {"a/cpu.max": b"max 100000\n"}, CPUS),
    "v2": ("0::/a\n", {"a/cpu.max": b"300000 100000\n"}, 3),
    "v2, another period": ("0::/a\n", {"a/cpu.max": b"50000 10000\n"}, 5),
    "v2, two and a half": ("0::/a\n", {"a/cpu.max": b"250000 100000\n"}, 3),
    "v2, just over two": ("0::/a\n", {"a/cpu.max": b"200001 100000\n"}, 3),
    "v2, a hundredth": ("0::/a\n", {"a/cpu.max": b"1000 100000\n"}, 1),
    "v2, above the CPUs": ("0::/a\n", {"a/cpu.max": b"900000 100000\n"}, CPUS),
    "v2, of the root": ("0::/\n", {"cpu.max": b"200000 100000\n"}, 2),
    "v2, of a container": ("0::/docker/0123\n", {"cpu.max": b"200000 100000\n"}, 2),
    "v2, of the parent": (
        "0::/a/b/c\n",
        {"a/cpu.max": b"200000 100000\n", "a/b/c/cpu.max": b"max 100000\n"},
        2,
    ),
    "v2, the smallest in the middle": (
        "0::/a/b/c\n",
        {
            "a/cpu.max": b"500000 100000\n",
            "a/b/cpu.max": b"300000 100000\n",
            "a/b/c/cpu.max": b"400000 100000\n",
        },
        3,
    ),
    "v2, of others": (
        "0::/a/b\n",
        {"a/c/cpu.max": b"100000 100000\n", "b/cpu.max": b"100000 100000\n"},
        CPUS,
    ),
    "v2, a colon in the name": ("0::/a:b/c\n", {"a:b/c/cpu.max": b"200000 100000\n"}, 2),
    "v2, empty": ("0::/a\n", {"a/cpu.max": b""}, CPUS),
    "v2, one number": ("0::/a\n", {"a/cpu.max": b"100000\n"}, CPUS),
    "v2, no period": ("0::/a\n", {"a/cpu.max": b"100000 0\n"}, CPUS),
    "v2, bytes": ("0::/a\n", {"a/cpu.max": b"\xff\xfe 100000\n"}, CPUS),
    "v2, unreadable": (
        "0::/a/b\n",
        {"a/b/cpu.max": None, "a/cpu.max": b"200000 100000\n"},
        2,
    ),
    "v1": ("4:cpu:/a\n", v1("cpu/a", b"300000\n"), 3),
    "v1, beside others": ("3:memory:/b\n4:cpuacct,cpu:/a\n", v1("cpu/a", b"150000\n"), 2),
    "v2, no number": ("0::/a\n", {"a/cpu.max": b"many 100000\n"}, CPUS),
    "a line of another kind": ("nonsense\n", {}, CPUS),
    "v1, no limit": ("4:cpu:/a\n", v1("cpu/a", b"-1\n"), CPUS),
    "v1, of the parent": (
        "4:cpu:/a/b\n",
        v1("cpu/a", b"250000\n") | v1("cpu/a/b", b"-1\n"),
        3,
    ),
    "v1, of a container": ("4:cpu,cpuacct:/docker/0123\n", v1("cpu", b"100000\n"), 1),
    "v1, of other controllers": (
        "2:cpuset:/a\n3:cpuacct:/a\n9:name=systemd:/a\n",
        v1("cpu/a", b"100000\n"),
        CPUS,
    ),
    "v1, no number": ("4:cpu:/a\n", v1("cpu/a", b"many\n"), CPUS),
    "v1, no period": ("4:cpu:/a\n", v1("cpu/a", b"100000\n", b"0\n"), CPUS),
    "v1, unreadable period": ("4:cpu:/a\n", v1("cpu/a", b"100000\n", None), CPUS),
    "v1 and v2": (
        "4:cpu:/a\n0::/b\n",
        v1("cpu/a", b"300000\n") | {"b/cpu.max": b"400000 100000\n"},
        3,
    ),
}


@pytest.mark.parametrize(("cgroup", "files", "expected"), rows(QUOTAS))
def test_cgroups(system, cgroup, files, expected):
    system(cgroup, files)
    assert _threads.available_cpus() == expected
    assert _threads.default_num_threads() == expected


def test_the_affinity_bounds_the_quota(system):
    system("0::/a\n", {"a/cpu.max": b"300000 100000\n"}, cpus=2)
    assert _threads.default_num_threads() == 2


@pytest.mark.parametrize(("found", "expected"), [(6, 6), (None, 1)])
def test_systems_without_affinity(system, monkeypatch, found, expected):
    system()
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: found)
    assert _threads.default_num_threads() == expected


# THALWEG_NUM_THREADS, OMP_NUM_THREADS, and what follows; None: not set.
ENVIRONMENTS = {
    "own": ("5", None, 5),
    "own beats outer": ("5", "3", 5),
    "own beats an outer that cannot be read": ("5", "x", 5),
    "own with spaces": (" 5 ", None, 5),
    "own with zeros": ("007", None, 7),
    "the fewest": ("1", "3", 1),
    "the most": ("65536", None, 65536),
    "outer beats the quota": (None, "3", 3),
    "outer beyond the CPUs": (None, "40", 40),
    "outer for each level": (None, "4,2,1", 4),
    "outer with spaces": (None, " 4 , 2", 4),
}
ENVIRONMENTS |= {
    f"outer {text!r} is ignored": (None, text, 2)
    for text in ("", "0", "-3", "2.5", "x", ",4", "65537", "4 2", "0x4", "9" * 5000)
}


@pytest.mark.parametrize(("own", "outer", "expected"), rows(ENVIRONMENTS))
def test_environment(system, monkeypatch, own, outer, expected):
    system("0::/a\n", {"a/cpu.max": b"150000 100000\n"})
    if own is not None:
        monkeypatch.setenv("THALWEG_NUM_THREADS", own)
    if outer is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", outer)
    assert _threads.default_num_threads() == expected


@pytest.mark.parametrize(
    "text", ["", " ", "0", "-1", "+2", "2.5", "1e3", "two", "4,2", "65537", "1_0", "²", "9" * 5000]
)
def test_a_wrong_environment_is_an_import_error(monkeypatch, text):
    monkeypatch.setenv("THALWEG_NUM_THREADS", text)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    words = "THALWEG_NUM_THREADS: expected a whole number from 1 to 65536, received"
    with refused(ImportError, f"{words} {text!r}"):
        _threads.default_num_threads()


SHOW = "import thalweg; print(thalweg.get_num_threads())"


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"THALWEG_NUM_THREADS": "5", "OMP_NUM_THREADS": "3"}, 5),
        ({"OMP_NUM_THREADS": "3"}, 3),
        ({}, _threads.available_cpus()),
    ],
    ids=["own", "outer", "none"],
)
def test_import_sets_the_count(environment, expected):
    done = run_python("-c", SHOW, **environment)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{expected}\n", "")


def test_import_fails_where_the_environment_is_wrong():
    done = run_python("-c", SHOW, THALWEG_NUM_THREADS="many")
    assert done.returncode == 1
    assert done.stderr.endswith(
        "ImportError: THALWEG_NUM_THREADS: expected a whole number from 1 to 65536, "
        "received 'many'\n"
    )


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity here")
def test_a_process_kept_to_one_cpu():
    keep = "import os; os.sched_setaffinity(0, {max(os.sched_getaffinity(0))}); "
    done = run_python("-c", keep + SHOW)
    assert (done.returncode, done.stdout, done.stderr) == (0, "1\n", "")


@pytest.mark.parametrize(
    ("count", "expected"),
    [(1, 1), (40, 40), (65536, 65536)]
    + [(kind(3), 3) for kind in (np.int8, np.uint8, np.int64, np.uint64, np.intp, np.array)],
    ids=repr,
)
def test_the_count_that_was_set(count, expected, monkeypatch):
    monkeypatch.setenv("THALWEG_NUM_THREADS", "5")
    assert tw.set_num_threads(count) is None
    assert tw.get_num_threads() == expected
    tw.set_num_threads(num_threads=2)
    assert tw.get_num_threads() == 2


REFUSED = {
    ValueError: [0, -1, 65537, 2**31, 2**32 + 1, 2**63, -(2**70), np.int64(0)],
    TypeError: [True, False, np.True_, 2.0, np.float64(2), "2", b"2", None, [2], 2j, np.array(2.0)],
}


@pytest.mark.parametrize(
    ("exception", "count"),
    [(exception, count) for exception, counts in REFUSED.items() for count in counts],
    ids=repr,
)
def test_refused_counts(exception, count):
    tw.set_num_threads(3)
    words = "num_threads: expected a whole number from 1 to 65536, received "
    if isinstance(count, np.ndarray):
        words = "only integer scalar arrays"  # NumPy's own
    else:
        words += repr(count)
    with refused(exception, words):
        tw.set_num_threads(count)
    assert tw.get_num_threads() == 3


def ours():
    return [found for found in threadpool_info() if found["user_api"] == "thalweg"]


def others():
    return [found for found in threadpool_info() if found["user_api"] != "thalweg"]


def test_threadpoolctl_lists_one_library():
    tw.set_num_threads(5)
    (found,) = ours()
    core = Path(tw._core.__file__)
    assert os.path.samefile(found.pop("filepath"), core)
    assert found == {
        "user_api": "thalweg",
        "internal_api": "thalweg",
        "num_threads": 5,
        "prefix": "_core",
        "version": tw.__version__,
    }


@pytest.mark.parametrize(
    "limits",
    [{"limits": 1}, {"limits": 1, "user_api": "thalweg"}, {"limits": {"thalweg": 1}}],
    ids=["all", "user_api", "dict"],
)
def test_threadpoolctl_limits_and_puts_back(limits):
    tw.set_num_threads(5)
    before = others()
    with suppress(ZeroDivisionError), threadpool_limits(**limits):
        assert (tw.get_num_threads(), ours()[0]["num_threads"]) == (1, 1)
        if limits != {"limits": 1}:
            assert others() == before
        with threadpool_limits(limits=3, user_api="thalweg"):
            assert tw.get_num_threads() == 3
        assert tw.get_num_threads() == 1
        raise ZeroDivisionError
    assert (tw.get_num_threads(), others()) == (5, before)


def test_threadpoolctl_limits_a_function_and_what_is_not_ours():
    tw.set_num_threads(5)
    limited = threadpool_limits.wrap(limits=2, user_api="thalweg")(tw.get_num_threads)
    assert (limited(), tw.get_num_threads()) == (2, 5)
    with threadpool_limits(limits=1, user_api="blas"):
        assert tw.get_num_threads() == 5


ALONE = """
import importlib, pkgutil, sys
import thalweg
names = [m.name for m in pkgutil.iter_modules(thalweg.__path__)]
# What these are for may be missing, or import it.
adapters = {"flower", "keras", "mpi", "sklearn", "thinc", "torch"}
assert {"_core", "_threads", "optimizers", "threadpoolctl"} | adapters <= set(names)
for name in set(names) - adapters - {"__main__", "threadpoolctl"}:
    importlib.import_module("thalweg." + name)
assert not [name for name in sys.modules if "threadpoolctl" in name]

import threadpoolctl
def counts():
    found = threadpoolctl.threadpool_info()
    return [library["num_threads"] for library in found if library["user_api"] == "thalweg"]
assert counts() == []
import thalweg.threadpoolctl
assert counts() == [6]
"""


def test_nothing_but_its_own_module_imports_threadpoolctl():
    done = run_python("-c", ALONE, THALWEG_NUM_THREADS="6")
    assert (done.returncode, done.stderr) == (0, "")


ANOTHER_CORE = """
import ctypes, sys
import thalweg.threadpoolctl
from threadpoolctl import threadpool_info
ctypes.CDLL(sys.argv[1])
assert [x["user_api"] for x in threadpool_info()].count("thalweg") == 1
"""


@pytest.mark.skipif(sys.platform != "linux", reason="it is made as Linux's are")
def test_another_packages_core_is_not_ours(interposer, tmp_path):
    other = tmp_path / "_core.so"
    other.write_bytes(Path(interposer).read_bytes())
    done = run_python("-c", ANOTHER_CORE, other)
    assert (done.returncode, done.stderr) == (0, "")
