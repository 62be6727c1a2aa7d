"""Momentum and Adagrad for NumPy training loops: in place, fast, with the formula's exact bits."""

from typing import TYPE_CHECKING, Any

from thalweg._command.info import show_config
from thalweg._core import __version__
from thalweg._threads import default_num_threads, get_num_threads, set_num_threads
from thalweg.functional import adagrad_, sgd_
from thalweg.optimizers import SGD, Adagrad
from thalweg.rows import RowGrad, adagrad_rows_, sgd_rows_

if TYPE_CHECKING:
    from thalweg import schedules
    from thalweg._identify.search import identify
    from thalweg._optimizer.matching import LoadReport
    from thalweg._range_test.search import find_rate
    from thalweg.checkpoint import (
        CheckpointError,
        CheckpointKeeper,
        load_checkpoint,
        read_checkpoint,
        save_checkpoint,
    )
    from thalweg.joint import Joint

__all__ = [
    "SGD",
    "Adagrad",
    "CheckpointError",
    "CheckpointKeeper",
    "Joint",
    "LoadReport",
    "RowGrad",
    "__version__",
    "adagrad_",
    "adagrad_rows_",
    "find_rate",
    "get_num_threads",
    "identify",
    "load_checkpoint",
    "read_checkpoint",
    "save_checkpoint",
    "schedules",
    "set_num_threads",
    "sgd_",
    "sgd_rows_",
    "show_config",
]

set_num_threads(default_num_threads())

_LATER = {
    "Joint": "thalweg.joint",
    "LoadReport": "thalweg._optimizer.matching",
    "find_rate": "thalweg._range_test.search",
    "identify": "thalweg._identify.search",
}


def __getattr__(name: str) -> Any:
    # Imported when first asked for: zipfile and twelve dataclasses take longer than all the rest,
    # and a Joint or a report wants the latter.
    if name not in __all__:
        raise AttributeError(f"module 'thalweg' has no attribute {name!r}")
    from importlib import import_module

    if name == "schedules":
        return import_module("thalweg.schedules")
    return getattr(import_module(_LATER.get(name, "thalweg.checkpoint")), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
