"""Options as other libraries spell them, told to whoever writes them here."""

from collections.abc import Callable, Iterable
from functools import wraps
from typing import Any, TypeVar

# The first that the function or the class has.
HERE: dict[str, tuple[str, ...]] = {
    "learning_rate": ("lr",),
    "learning_rate_init": ("lr",),
    "step_size": ("lr",),
    "eta": ("lr",),
    "eta0": ("lr",),
    "beta": ("momentum",),
    "mu": ("momentum",),
    "decay_rate": ("momentum",),
    "nesterovs_momentum": ("nesterov",),
    "use_nesterov": ("nesterov",),
    "epsilon": ("eps",),
    "initial_accumulator": ("initial_accumulator_value",),
    "l2": ("weight_decay",),
    "wd": ("weight_decay",),
    "clipnorm": ("max_array_norm", "max_norm"),
    "global_clipnorm": ("max_norm",),
    "clip_norm": ("max_norm",),
    "max_grad_norm": ("max_norm",),
    "clipvalue": ("max_value",),
    "clip_value": ("max_value",),
    "gradients": ("grads", "grad"),
    "parameters": ("params", "param"),
}

F = TypeVar("F", bound=Callable[..., Any])


def hint(name: object, known: Iterable[str]) -> str:
    """ "; did you mean lr?", or nothing."""
    names = set(known)
    found = [here for here in HERE.get(str(name), ()) if here in names]
    if not found:
        return ""
    alone = name == "clipnorm" and found[0] == "max_norm"
    return f"; did you mean {found[0]}{', the norm of all arrays together' if alone else ''}?"


def spelled(function: F) -> F:
    """The same function; an option of another library's is refused with its name here."""
    code = function.__code__
    known = frozenset(code.co_varnames[: code.co_argcount + code.co_kwonlyargcount])

    @wraps(function)
    def checked(*args: Any, **options: Any) -> Any:
        if not options.keys() <= known:
            unknown = min(options.keys() - known, key=list(options).index)
            raise TypeError(
                f"{function.__qualname__.removesuffix('.__init__')}: got an unexpected keyword "
                f"argument {unknown!r}{hint(unknown, known)}"
            )
        return function(*args, **options)

    return checked  # type: ignore[return-value]
