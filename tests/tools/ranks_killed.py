"""Training over ranks with a keeper, for test_mpi_killed.py: ``ranks_killed.py FOLDER STEPS``.

Each rank writes its number of process into the folder and prints nothing; whoever kills one of them
at any moment starts the job again, until it ends and leaves ``result.npy``.
"""

import os
import sys
import time
from pathlib import Path

import numpy as np
from mpi4py import MPI

import thalweg as tw
import thalweg.mpi as tm
from thalweg.mpi import base

COMM = MPI.COMM_WORLD


def main(folder, steps):
    base.SMALL = 0  # cut, small as they are
    folder = Path(folder)
    params = {"w": np.ones((60, 50)), "b": np.ones(7, np.float32)}
    opt = tm.SGD(params, lr=0.1, momentum=0.9)
    keeper = tw.CheckpointKeeper(folder / "kept", keep=2)
    keeper.restore(opt)
    (folder / f"rank-{COMM.rank}.tmp").write_text(str(os.getpid()))
    os.replace(folder / f"rank-{COMM.rank}.tmp", folder / f"rank-{COMM.rank}")
    while opt.step_count < steps:
        rng = np.random.default_rng([opt.step_count, COMM.rank])
        opt.step({k: rng.standard_normal(w.shape).astype(w.dtype) for k, w in params.items()})
        keeper.save(opt)
        time.sleep(0.002)
    if COMM.rank == 0:
        np.save(folder / "result.npy", np.concatenate([w.reshape(-1) for w in params.values()]))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
