"""The rules over ranks."""

from typing import Any

from thalweg import optimizers
from thalweg.mpi.base import Distributed

__all__ = ["SGD", "Adagrad"]


class SGD(Distributed, optimizers.SGD):
    """``thalweg.SGD`` over the ranks of an MPI job.

    ::

        g <- ((g0 + g1) + g2) + ...      the ranks' gradients in order, in the param's dtype
        g <- (scale / N) * g             one factor; average=False: scale * g
        one step of thalweg.SGD with g   each rank the rows it owns, which then go to all

    The bits are those of one process that is fed the sum. All ranks make the optimizer with the
    same params and options, and call ``step`` together; docs/mpi.md says what is kept where.

    Parameters
    ----------
    params, lr, momentum, ... : as for ``thalweg.SGD``
        ``max_norm``, ``max_value`` and ``on_nonfinite`` hold for the sum.
    comm : mpi4py.MPI.Intracomm, default COMM_WORLD
    average : bool
        The mean of the ranks' gradients, or their sum.
    broadcast : bool
        Begin with rank 0's params on all ranks.

    Raises
    ------
    TypeError, ValueError
        Arrays or options do not fit, or differ between ranks: the same error on all.

    Example
    -------
    >>> import numpy as np, thalweg.mpi
    >>> w = np.ones(2)
    >>> opt = thalweg.mpi.SGD(w, lr=0.5)
    >>> opt.step(np.ones(2))
    True
    >>> w
    array([0.5, 0.5])
    """

    def __init__(self, params: Any, *args: Any, **options: Any) -> None:
        super().__init__(params, *args, **options)


class Adagrad(Distributed, optimizers.Adagrad):
    """``thalweg.Adagrad`` over the ranks of an MPI job; see ``thalweg.mpi.SGD``.

    ::

        g <- ((g0 + g1) + g2) + ...        the ranks' gradients in order, in the param's dtype
        g <- (scale / N) * g               one factor; average=False: scale * g
        one step of thalweg.Adagrad with g

    Parameters
    ----------
    params, lr, eps, ... : as for ``thalweg.Adagrad``
    comm, average, broadcast : as for ``thalweg.mpi.SGD``

    Raises
    ------
    TypeError, ValueError
        Arrays or options do not fit, or differ between ranks: the same error on all.

    Example
    -------
    >>> import numpy as np, thalweg.mpi
    >>> w = np.ones(1)
    >>> opt = thalweg.mpi.Adagrad(w, lr=0.5)
    >>> opt.step(np.array([4.0]))
    True
    >>> w.round(6)
    array([0.5])
    """

    def __init__(self, params: Any, *args: Any, **options: Any) -> None:
        super().__init__(params, *args, **options)
