"""An optimizer in one line, for ``repr``."""

from typing import Any

from thalweg._optimizer.groups import LIMITS


def described(opt: Any) -> str:
    words = ", ".join(f"{k}={v!r}" for k, v in opt.param_groups[0].items() if v or k != "frozen")
    names = [group.name for group in opt.param_groups]
    if len(names) > 1:
        words = f"{len(names)} groups"
    if any(names):
        told = ", ".join(repr(name) if name else str(i) for i, name in enumerate(names))
        words += f": {told}" if len(names) > 1 else f", name={names[0]!r}"
    for name, default in LIMITS.items():
        if (value := getattr(opt, name)) != default:
            words += f", {name}={value!r}"
    if opt.zero_grads:
        words += ", zero_grads=True"
    arrays = opt._arrays.values()
    dtypes = " and ".join(sorted({str(array.dtype) for array in arrays}))
    count, size = len(arrays), sum(array.size for array in arrays)
    many = "" if count == 1 else "s"
    return f"{type(opt).__name__}({words}; {count} array{many}, {size:,} elements, {dtypes})"
