"""Under mpiexec: the cases of ranks_*.py, or those named, one after the other."""

import sys
from importlib import import_module

from ranks import CASES, COMM, RANK, sizes

MODULES = ("ranks_bits", "ranks_refusals", "ranks_tables", "ranks_files")


def main(names):
    for module in MODULES:
        import_module(module)
    for name in names or CASES:
        sizes(1 << 20, 1 << 20)
        CASES[name]()
        COMM.Barrier()
        if RANK == 0:
            print(f"passed {name}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
