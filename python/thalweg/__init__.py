"""Momentum and Adagrad for NumPy training loops: in place, fast, with the formula's exact bits."""

from thalweg import schedules
from thalweg._config import show_config
from thalweg._core import __version__
from thalweg._threads import default_num_threads, get_num_threads, set_num_threads
from thalweg.functional import adagrad_, sgd_
from thalweg.optimizers import SGD, Adagrad
from thalweg.rows import RowGrad, adagrad_rows_, sgd_rows_

__all__ = [
    "SGD",
    "Adagrad",
    "RowGrad",
    "__version__",
    "adagrad_",
    "adagrad_rows_",
    "get_num_threads",
    "schedules",
    "set_num_threads",
    "sgd_",
    "sgd_rows_",
    "show_config",
]

set_num_threads(default_num_threads())
