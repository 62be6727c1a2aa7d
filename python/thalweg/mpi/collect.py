"""The gradients of a step, by the structure of the params, checked before anything is sent."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from thalweg._optimizer.tree import label
from thalweg.rows import RowGrad

FLOATS = (np.dtype(np.float16), np.dtype(np.float32), np.dtype(np.float64))


class Gradients:
    """Finds what stands for each param, and that the params are still those they were."""

    def __init__(self, opt: Any) -> None:
        self._opt = opt
        self.watched: Any = None  # the containers that the params came in

    def found(self, grads: Any, partial: bool) -> list[Any]:
        """Arrays, RowGrads and None, one for each leaf; TypeError or ValueError."""
        opt = self._opt
        names, shown, tree = opt._names, opt._shown, opt._tree
        arrays = opt._arrays.values()
        for array, view in zip(arrays, shown, strict=True):
            if array.shape != view.shape or not array.flags.writeable or array.dtype != view.dtype:
                self._refuse_change()
        if self.watched is not None and tree != 0:
            _check_held(tree, self.watched, list(arrays))
        found: list[Any] = [None] * len(names)
        collect(tree, grads, partial, opt._frozen, found)
        for i, grad in enumerate(found):
            if opt._frozen[i]:
                found[i] = None
            elif grad is not None and not _fits(grad, shown[i]):
                found[i] = checked(grad, shown[i], names[i])
        return found

    def _refuse_change(self) -> None:
        opt = self._opt
        for (name, array), view in zip(opt._arrays.items(), opt._shown, strict=True):
            if array.shape != view.shape or not array.flags.writeable or array.dtype != view.dtype:
                raise RuntimeError(
                    f"{label('params', name)}: expected the memory it had when the optimizer was "
                    f"made, {view.dtype} of shape {view.shape} and writeable, received "
                    f"{array.dtype} of shape {array.shape}; make a new optimizer after changing an "
                    "array's memory or layout"
                )


def _fits(grad: Any, param: np.ndarray[Any, Any]) -> bool:
    return type(grad) is np.ndarray and grad.dtype == param.dtype and grad.shape == param.shape


def _check_held(tree: Any, container: Any, arrays: list[Any], path: str = "") -> None:
    """RuntimeError where another array stands in a param's place."""
    if isinstance(tree, int):
        if path and container is not arrays[tree]:
            raise RuntimeError(
                f"{label('params', path)}: expected the array that the optimizer was made with, "
                "received another one in its place, which no step would reach; write into it, "
                'params["W"][...] = x, or make a new optimizer; watch=False for code that replaces '
                "arrays on purpose"
            )
        return
    for key, child in tree.items() if isinstance(tree, dict) else enumerate(tree):
        try:
            held = container[key]
        except (KeyError, IndexError):
            held = None
        _check_held(child, held, arrays, _join(path, key))


def collect(
    tree: Any, grads: Any, partial: bool, optional: list[bool], found: list[Any], path: str = ""
) -> None:
    """Put what stands for each leaf of ``tree`` into ``found``; what is None or missing stays."""
    if isinstance(tree, int):
        found[tree] = grads
    elif isinstance(tree, (list, tuple)):
        if not isinstance(grads, (list, tuple)):
            raise TypeError(
                f"{label('grads', path)}: expected a list or tuple of {len(tree)} items, as "
                f"{label('params', path)} is, received {type(grads).__name__}"
            )
        if len(grads) != len(tree):
            raise ValueError(
                f"{label('grads', path)}: expected {len(tree)} items, one for each of "
                f"{label('params', path)}, received {len(grads)}; None stands for an array "
                "without gradient"
            )
        for i, (child, grad) in enumerate(zip(tree, grads, strict=True)):
            collect(child, grad, partial, optional, found, _join(path, i))
    else:
        _collect_mapping(tree, grads, partial, optional, found, path)


def _collect_mapping(
    tree: dict[Any, Any],
    grads: Any,
    partial: bool,
    optional: list[bool],
    found: list[Any],
    path: str,
) -> None:
    if not isinstance(grads, Mapping):
        raise TypeError(
            f"{label('grads', path)}: expected a mapping with the keys "
            f"{', '.join(map(repr, tree))}, as {label('params', path)} is, received "
            f"{type(grads).__name__}"
        )
    for key in grads:
        if key not in tree:
            raise ValueError(
                f"{label('grads', path)}: expected the keys {', '.join(map(repr, tree))}, those of "
                f"{label('params', path)}, received the unknown key {key!r}"
            )
    for key, child in tree.items():
        if key in grads:
            collect(child, grads[key], partial, optional, found, _join(path, key))
        elif not partial and not _is_optional(child, optional):
            raise ValueError(
                f"{label('grads', _join(path, key))}: expected a gradient, received none: the key "
                "is missing; pass partial=True to step only the arrays that have one"
            )


def checked(grad: Any, param: np.ndarray[Any, Any], name: str) -> Any:
    """A gradient that fits this param: an array or a RowGrad."""
    if isinstance(grad, RowGrad):
        return _checked_rows(grad, param, name)
    if param.ndim == 0 and isinstance(grad, (float, np.floating)):
        grad = np.asarray(grad)
    if not isinstance(grad, np.ndarray) or isinstance(grad, np.ma.MaskedArray):
        raise TypeError(
            f"{label('grads', name)}: expected an array or a RowGrad, received "
            f"{type(grad).__name__}"
        )
    _check_dtype(grad, label("grads", name))
    if grad.shape != param.shape:
        raise ValueError(
            f"{label('grads', name)}: expected shape {param.shape}, that of "
            f"{label('params', name)}, received {grad.shape}"
        )
    return grad


def _checked_rows(grad: RowGrad, param: np.ndarray[Any, Any], name: str) -> RowGrad:
    rows, values = grad.rows, grad.values
    _check_dtype(values, f"{label('grads', name)}.values")
    if param.ndim == 0 or values.shape != (len(rows), *param.shape[1:]):
        raise ValueError(
            f"{label('grads', name)}: expected values of shape ({len(rows)}, "
            f"*{param.shape[1:]}), rows of {label('params', name)}, received {values.shape}"
        )
    if grad.height is not None and grad.height != param.shape[0]:
        raise ValueError(
            f"{label('grads', name)}: expected a RowGrad of height {param.shape[0]}, the rows of "
            f"{label('params', name)}, received height {grad.height}"
        )
    if len(rows) and not (rows.min() >= 0 and rows.max() < param.shape[0]):
        bad = rows[(rows < 0) | (rows >= param.shape[0])][0]
        raise IndexError(
            f"{label('grads', name)}.rows: expected rows from 0 to {param.shape[0] - 1}, "
            f"received {bad}"
        )
    return grad


def _check_dtype(grad: np.ndarray[Any, Any], what: str) -> None:
    if grad.dtype not in FLOATS:
        raise TypeError(
            f"{what}: expected float16, float32 or float64 in native byte order, received "
            f"{grad.dtype}; use .astype(np.float32)"
        )


def _is_optional(tree: Any, optional: list[bool]) -> bool:
    if isinstance(tree, int):
        return optional[tree]
    return all(
        _is_optional(x, optional) for x in (tree.values() if isinstance(tree, dict) else tree)
    )


def _join(path: str, key: object) -> str:
    return f"{path}.{key}" if path else str(key)
