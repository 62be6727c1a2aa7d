"""The targets of checkpoints: as fast as NumPy's own files, checksums included, and no copy."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import thalweg as tw
from timing import Contender, interleave

Row = tuple[str, str, float, float, float]  # work, against, ours, theirs, target ratio

GIB = 1 << 30

PEAK = """
import resource, sys
import numpy as np, thalweg as tw
w = np.ones(1 << 27, np.float32)
opt = tw.SGD(w, momentum=0.9)
opt.step(w.copy())
small = tw.SGD(np.ones(8), momentum=0.9)
tw.save_checkpoint(sys.argv[1], small)
tw.load_checkpoint(sys.argv[1], small)
def peak():
    return next(int(x.split()[1]) for x in open("/proc/self/status") if x.startswith("VmHWM"))
def now():
    return next(int(x.split()[1]) for x in open("/proc/self/status") if x.startswith("VmRSS"))
open("/proc/self/clear_refs", "w").write("5")
before = now()
tw.save_checkpoint(sys.argv[1], opt)
tw.load_checkpoint(sys.argv[1], opt)
print(peak() - before)
"""


def against_numpy() -> Iterator[Row]:
    w = np.ones(GIB // 8, np.float32)
    opt = tw.SGD(w, 0.1, 0.9)
    opt.step(np.full(w.size, 0.5, np.float32))
    arrays = {"param": w, "velocity": opt.state[""]["velocity"]}
    with tempfile.TemporaryDirectory(dir=".") as folder:
        ours, theirs = Path(folder) / "ours.npz", Path(folder) / "theirs.npz"

        def savez() -> None:
            with open(theirs, "wb") as file:
                np.savez(file, **arrays)  # type: ignore[arg-type]
                file.flush()
                os.fsync(file.fileno())

        def load() -> None:
            with np.load(theirs) as loaded:
                for name in loaded:
                    loaded[name]

        names = {"tw": tw, "path": ours, "opt": opt, "savez": savez, "load": load}
        for verb, call, theirs_call, ratio in (
            ("save", "tw.save_checkpoint(path, opt)", "savez()", 0.9),
            ("load", "tw.load_checkpoint(path, opt)", "load()", 0.5),
        ):
            contenders = {"ours": Contender(call, names), "numpy": Contender(theirs_call, names)}
            times = interleave(f"{verb}, 1 GiB", contenders, 5)
            against = "np.savez and fsync" if verb == "save" else "np.load"
            yield f"{verb}, 1 GiB", against, times["ours"], times["numpy"], ratio
        if Path("/proc/self/clear_refs").exists():
            command = [sys.executable, "-c", PEAK, str(ours)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            print(f"peak extra memory of save and load, 1 GiB: {int(done.stdout) / 1024:.1f} MiB")
