"""Momentum and Adagrad for NumPy training loops: in place, fast, with the formula's exact bits."""

from thalweg import schedules
from thalweg._config import show_config
from thalweg._core import __version__
from thalweg._threads import default_num_threads, get_num_threads, set_num_threads
from thalweg.functional import adagrad_, sgd_
from thalweg.optimizers import SGD, Adagrad

__all__ = [
    "SGD",
    "Adagrad",
    "__version__",
    "adagrad_",
    "get_num_threads",
    "schedules",
    "set_num_threads",
    "sgd_",
    "show_config",
]

set_num_threads(default_num_threads())
