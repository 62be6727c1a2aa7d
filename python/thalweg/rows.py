"""Gradients that name their rows, and the rules on one table without an object."""

from collections.abc import Iterable
from typing import Any, Self

import numpy as np

from thalweg import _core
from thalweg.functional import _apply, native, sgd_
from thalweg.optimizers import Adagrad

__all__ = ["RowGrad", "adagrad_rows_", "sgd_rows_"]


class RowGrad(_core.RowGrad):
    """A gradient that is zero but for some rows of its param, which may come more than once.

    ::

        g[r] = values[i0] + values[i1] + ...     i0 < i1 < ... all i with rows[i] = r
        one update of w[r] and of its state with g[r], for each distinct row r

    It stands where any gradient may stand. The values are converted to the param's dtype first,
    and summed from the first one on, in order of appearance. Rows that are not named keep param and
    state, the velocity and the weight decay included (the lazy form). The step counts for the whole
    array.

    Parameters
    ----------
    rows : integers of any dtype, or a list of them; shape (n,), or any, as a batch's ids (B, L)
        Indices along the param's first axis, in any order, from 0. int32 and int64 of shape (n,)
        are held as they are; of others an int64 copy is.
    values : array of float16, float32 or float64, shape (*rows.shape, *param.shape[1:])
        Of any strides.
    height : int or None
        How many rows the table must have; None: any.

    Raises
    ------
    TypeError, ValueError
        The arrays do not go together. Whether they fit a param is checked by ``step``, which raises
        IndexError, with nothing changed, for a row that the param does not have.

    References
    ----------
    Duchi, Hazan and Singer, Adaptive Subgradient Methods, 2011: why sparse features want Adagrad.

    Example
    -------
    >>> import numpy as np, thalweg as tw
    >>> table = np.zeros((4, 2))
    >>> opt = tw.SGD(table, lr=1.0)
    >>> opt.step(tw.RowGrad(np.array([2, 0, 2]), np.ones((3, 2))))
    True
    >>> table
    array([[-1., -1.],
           [ 0.,  0.],
           [-2., -2.],
           [ 0.,  0.]])
    """

    @classmethod
    def from_scipy(cls, matrix: Any) -> Self:
        """The rows of a ``scipy.sparse`` matrix or array in which anything is stored.

        Their zeros are made explicit: for gradients of few rows, not of few elements. What is
        stored twice at one place is summed, as scipy does.

        Example
        -------
        >>> import scipy.sparse, thalweg as tw
        >>> tw.RowGrad.from_scipy(scipy.sparse.csr_array([[0.0, 0.0], [0.0, 3.0]]))
        RowGrad(rows=array([1]), values=array([[0., 3.]]), height=2)
        """
        if not hasattr(matrix, "tocsr") or getattr(matrix, "ndim", 0) != 2:
            raise TypeError(
                "matrix: expected a 2-D scipy.sparse matrix or array, received "
                f"{type(matrix).__name__}"
            )
        csr = matrix.tocsr()
        rows = np.flatnonzero(np.diff(csr.indptr))
        return cls(rows, csr[rows].toarray(), csr.shape[0])

    @classmethod
    def concat(cls, grads: Iterable[_core.RowGrad]) -> Self:
        """The sum of several, as of micro-batches: their rows and values one behind the other.

        Raises TypeError, ValueError: none, of another kind, or not of one table.

        Example
        -------
        >>> import numpy as np, thalweg as tw
        >>> a, b = tw.RowGrad([0, 2], np.ones((2, 1))), tw.RowGrad([2], np.ones((1, 1)))
        >>> tw.RowGrad.concat([a, b]).rows
        array([0, 2, 2])
        """
        found = list(grads)
        if not found:
            raise ValueError("concat: expected at least one RowGrad, received none")
        for i, grad in enumerate(found):
            if not isinstance(grad, _core.RowGrad):
                raise TypeError(
                    f"concat[{i}]: expected a RowGrad, received {type(grad).__name__}; "
                    "pass a list of them, and dense gradients as their sum"
                )
        heights = {grad.height for grad in found if grad.height is not None}
        shapes = {grad.values.shape[1:] for grad in found}
        if len(heights) > 1 or len(shapes) > 1:
            told = f"heights {sorted(heights)}" if len(heights) > 1 else f"rows of {shapes}"
            raise ValueError(f"concat: expected gradients of one table, received {told}")
        rows = np.concatenate([grad.rows for grad in found])
        values = np.concatenate([grad.values for grad in found])
        return cls(rows, values, *heights)

    def __repr__(self) -> str:
        height = "" if self.height is None else f", height={self.height}"
        return f"{type(self).__name__}(rows={self.rows!r}, values={self.values!r}{height})"

    def __reduce__(self) -> tuple[Any, ...]:
        # The third only where it is there: a subclass may take two.
        height = () if self.height is None else (self.height,)
        return type(self), (self.rows, self.values, *height)


@native
def sgd_rows_(
    table: np.ndarray,
    rows: np.ndarray,
    values: np.ndarray,
    velocity: np.ndarray | None = None,
    *,
    lr: float,
    momentum: float = 0.0,
    dampening: float = 0.0,
    nesterov: bool = False,
    form: str = "heavy_ball",
    weight_decay: float = 0.0,
    decoupled: bool = False,
    maximize: bool = False,
    scale: float = 1.0,
    max_norm: float | None = None,
    norm_eps: float = 1e-6,
    max_value: float | None = None,
    on_nonfinite: str = "propagate",
    norm: np.ndarray | None = None,
) -> bool:
    """Take one step of SGD on some rows of a table, in place; the others are left alone.

    ``sgd_`` with a :class:`thalweg.RowGrad` as the gradient, whose semantics are these: equal rows
    are summed in order of appearance, then every distinct row is updated once, and with it its row
    of the velocity.

    Parameters
    ----------
    table : array of float32 or float64, shape (rows, ...)
        Changed in place.
    rows, values : as of a RowGrad
    velocity : array of the table's shape and dtype
        Changed in place if given; needed when momentum > 0. Starts at zeros.

    Raises
    ------
    TypeError, ValueError, IndexError
        Arrays, options or rows do not fit; nothing has changed then.

    Example
    -------
    >>> import numpy as np, thalweg as tw
    >>> table = np.zeros((3, 2))
    >>> tw.sgd_rows_(table, np.array([1]), np.ones((1, 2)), lr=0.5)
    True
    >>> table[1]
    array([-0.5, -0.5])
    """
    return sgd_(
        table,
        RowGrad(rows, values),
        velocity,
        lr=lr,
        momentum=momentum,
        dampening=dampening,
        nesterov=nesterov,
        form=form,
        weight_decay=weight_decay,
        decoupled=decoupled,
        maximize=maximize,
        scale=scale,
        max_norm=max_norm,
        norm_eps=norm_eps,
        max_value=max_value,
        on_nonfinite=on_nonfinite,
        norm=norm,
    )


@native
def adagrad_rows_(
    table: np.ndarray,
    rows: np.ndarray,
    values: np.ndarray,
    accumulator: np.ndarray,
    *,
    lr: float,
    eps: float = 1e-8,
    eps_placement: str = "inside",
    weight_decay: float = 0.0,
    decoupled: bool = False,
    maximize: bool = False,
    scale: float = 1.0,
    max_norm: float | None = None,
    norm_eps: float = 1e-6,
    max_value: float | None = None,
    on_nonfinite: str = "propagate",
    norm: np.ndarray | None = None,
) -> bool:
    """Take one step of Adagrad on some rows of a table, in place; the others are left alone.

    ``adagrad_`` with a :class:`thalweg.RowGrad` as the gradient. An accumulator of one element a
    row chooses the row-wise form, ``accumulator="row"`` in :class:`thalweg.Adagrad`.

    Parameters
    ----------
    table : array of float32 or float64, shape (rows, ...)
        Changed in place.
    rows, values : as of a RowGrad
    accumulator : array of the table's dtype, and of its shape or of shape (rows,)
        Changed in place. Starts at zeros.

    Raises
    ------
    TypeError, ValueError, IndexError
        Arrays, options or rows do not fit; nothing has changed then.

    Example
    -------
    >>> import numpy as np, thalweg as tw
    >>> table, mem = np.zeros((3, 2)), np.zeros((3, 2))
    >>> tw.adagrad_rows_(table, np.array([1, 1]), np.ones((2, 2)), mem, lr=0.5)
    True
    >>> table[1].round(6), mem[1]
    (array([-0.5, -0.5]), array([4., 4.]))
    """
    by_row = getattr(accumulator, "ndim", 0) == 1 and getattr(table, "ndim", 0) > 1
    options = {
        "lr": lr,
        "eps": eps,
        "eps_placement": eps_placement,
        "accumulator": "row" if by_row else "element",
        "weight_decay": weight_decay,
        "decoupled": decoupled,
        "maximize": maximize,
    }
    limits = {
        "scale": scale,
        "max_norm": max_norm,
        "norm_eps": norm_eps,
        "max_value": max_value,
        "on_nonfinite": on_nonfinite,
    }
    return _apply(Adagrad, table, RowGrad(rows, values), accumulator, options, limits, norm)
