"""The limits of a step, decided over all ranks; the core holds those that one rank can decide."""

from typing import Any

from thalweg import _core
from thalweg._optimizer.base import Optimizer
from thalweg._optimizer.groups import LIMITS
from thalweg._optimizer.options import same

# Each element by itself: the core may do that again.
LOCAL = "max_value"


def _over_ranks(name: str, doc: str) -> Any:
    def get(opt: "Limited") -> Any:
        return _NATIVE[name].__get__(opt) if opt._is_whole else opt._limits[name]

    def put(opt: "Limited", value: Any) -> None:
        opt._set_limit(name, value)

    return property(get, put, doc=doc)


def _by_one_process(name: str, off: Any, cure: str) -> Any:
    def put(opt: "Limited", value: Any) -> None:
        if not same(off, value):
            raise TypeError(f"{name}: expected {off} over ranks, received {value!r}; {cure}")

    return property(lambda opt: off, put, doc=f"{off}: {name} is for one process.")


_NATIVE = vars(_core.Optimizer)


class Limited(Optimizer):
    """An optimizer whose ranks decide together what all gradients of a step decide."""

    _is_whole: bool

    def __init__(self, *args: Any, **options: Any) -> None:
        self._limits = dict(LIMITS)
        super().__init__(*args, **options)

    max_norm = _over_ranks("max_norm", "The global norm that the sum is scaled down to, or None.")
    max_array_norm = _over_ranks(
        "max_array_norm", "The norm that each array's sum is scaled down to by itself, or None."
    )
    norm_eps = _over_ranks("norm_eps", "What is added to the norm that a limit is divided by.")
    max_value = _over_ranks(
        "max_value", "The magnitude that elements of the sum are clipped to, or None."
    )
    on_nonfinite = _over_ranks("on_nonfinite", "propagate, skip or raise: judged on the sum.")

    zero_grads = _by_one_process("zero_grads", False, "each rank zeroes its own: g[...] = 0")
    weight_average = _by_one_process(
        "weight_average", None, "average opt.params after the step, on one rank or on all"
    )

    def _set_limit(self, name: str, value: Any) -> None:
        if self._is_whole:
            _NATIVE[name].__set__(self, value)
        else:
            try:
                for each, held in self._limits.items():  # what excludes which, the core knows
                    _NATIVE[each].__set__(self, held)
                _NATIVE[name].__set__(self, value)
                self._limits[name] = _NATIVE[name].__get__(self)
            finally:
                for each, unlimited in LIMITS.items():
                    if each != LOCAL:
                        _NATIVE[each].__set__(self, unlimited)
                _NATIVE[LOCAL].__set__(self, self._limits[LOCAL])
        self._forget()

    def _forget(self) -> None:
        """What the ranks agree on has changed."""
        raise NotImplementedError
