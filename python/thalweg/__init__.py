"""Momentum and Adagrad for NumPy training loops: in place, fast, with the formula's exact bits."""

from thalweg import schedules
from thalweg._config import show_config
from thalweg._core import __version__
from thalweg.functional import adagrad_, sgd_
from thalweg.optimizers import SGD, Adagrad

__all__ = ["SGD", "Adagrad", "__version__", "adagrad_", "schedules", "sgd_", "show_config"]
