"""How many threads a step may use: the caller's word, else the environment's, else the CPUs'."""

import os
from math import ceil

from thalweg._core import get_num_threads, set_num_threads

__all__ = ["get_num_threads", "set_num_threads"]

MOST = 65536
# Paths are plain text here: to import pathlib takes as long as all of this package.
LINES, CGROUPS = "/proc/self/cgroup", "/sys/fs/cgroup"


def default_num_threads() -> int:
    """THALWEG_NUM_THREADS, else OMP_NUM_THREADS, else the CPUs this process may use."""
    own = os.environ.get("THALWEG_NUM_THREADS")
    if own is not None:
        if not _is_count(own):
            raise ImportError(
                f"THALWEG_NUM_THREADS: expected a whole number from 1 to {MOST}, received {own!r}"
            )
        return int(own)
    # OpenMP takes a list, one number a level; what it cannot read it ignores.
    outer = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    if _is_count(outer):
        return int(outer)
    return available_cpus()


def _is_count(text: str) -> bool:
    digits = text.strip()
    return digits.isdecimal() and len(digits) <= len(str(MOST)) and 1 <= int(digits) <= MOST


def available_cpus() -> int:
    """The smaller of the affinity mask and the cgroup's CPU quota (v1 and v2)."""
    allowed = hasattr(os, "sched_getaffinity")  # not on macOS and Windows
    cpus = len(os.sched_getaffinity(0)) if allowed else os.cpu_count() or 1
    try:
        text = _read(LINES)
    except OSError:
        return cpus
    lines = [line for line in text.split("\n") if line.count(":") >= 2]
    return min([cpus, *(quota for line in lines for quota in _quotas(line))])


def _quotas(line: str) -> list[int]:
    """The quotas, in whole CPUs, that hold for one line of /proc/self/cgroup, its parents' too."""
    _, controllers, path = line.split(":", 2)
    if controllers and "cpu" not in controllers.split(","):
        return []
    root = f"{CGROUPS}/cpu" if controllers else CGROUPS
    found = []
    # In a container the path is the host's, and the root is the process's own group.
    for folder in {f"{root}/{part.strip('/')}" for part in (path, *_parents(path))}:
        quota, period = _quota_v1(folder) if controllers else _quota(folder)
        if quota > 0 and period > 0:
            found.append(max(1, ceil(quota / period)))
    return found


def _parents(path: str) -> list[str]:
    parts = path.strip("/").split("/")
    return ["/".join(parts[:i]) for i in range(len(parts))]


def _quota(folder: str) -> tuple[int, int]:
    try:
        quota, period = _read(f"{folder}/cpu.max").split()
        return (0, 0) if quota == "max" else (int(quota), int(period))
    except (OSError, ValueError):
        return 0, 0


def _quota_v1(folder: str) -> tuple[int, int]:
    try:
        quota = int(_read(f"{folder}/cpu.cfs_quota_us"))
        return quota, int(_read(f"{folder}/cpu.cfs_period_us"))
    except (OSError, ValueError):
        return 0, 0


def _read(file: str) -> str:
    with open(file, "rb") as opened:
        return os.fsdecode(opened.read())
