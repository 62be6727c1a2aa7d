"""SGD, Adagrad and tables over the ranks of an MPI job, with bits that can be stated.

Gradients are summed in the order of the ranks; each rank keeps the state of its part of the params.
docs/mpi.md says what is compared, sent and kept.
"""

try:
    import mpi4py  # noqa: F401
except ImportError as error:
    raise ImportError(
        "thalweg.mpi: expected mpi4py, found none; pip install 'thalweg[mpi]' installs it, for the "
        "MPI library that is there (pip install mpich brings one)"
    ) from error

from thalweg.mpi.optimizers import SGD, Adagrad
from thalweg.mpi.table import Table

__all__ = ["SGD", "Adagrad", "Table"]
