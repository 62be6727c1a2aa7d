"""Who wrote what of a step: the first write to a page is a fault, counted for the thread that
wrote."""

import mmap
import os
import threading
from pathlib import Path

import numpy as np

# Of the work of one claim at least; fewer may be a thread's own, of its stack.
PAGES = 8

# A worker that wakes late finds nothing left to do, and a busy machine wakes late.
ATTEMPTS = 1000


def untouched(values):
    """A copy of the values that this process has not written to yet."""
    file = os.memfd_create("values")
    try:
        os.truncate(file, values.nbytes)
        with mmap.mmap(file, values.nbytes) as memory:
            memory[:] = values.tobytes()
        private = mmap.mmap(file, values.nbytes, access=mmap.ACCESS_COPY)
    finally:
        os.close(file)
    return np.frombuffer(private, values.dtype).reshape(values.shape)


def faults():
    """Of each thread, by the system's number of it."""
    found = {}
    for task in Path("/proc/self/task").iterdir():
        try:
            fields = (task / "stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue  # a thread that has ended
        found[int(task.name)] = int(fields[7])
    return found


def pages_by_worker(step):
    """Run the step; the pages that each of the other threads was the first to write."""
    before = faults()
    step()
    after = faults()
    mine = threading.get_native_id()
    written = (after[task] - before.get(task, 0) for task in after if task != mine)
    return [pages for pages in written if pages >= PAGES]


def until_shared(prepare):
    """Run the steps that ``prepare`` returns, and their checks, until workers did part of one."""
    for _ in range(ATTEMPTS):
        step, check = prepare()
        pages = pages_by_worker(step)
        check()
        if pages:
            return
    raise AssertionError(f"in {ATTEMPTS} steps no worker did anything")
