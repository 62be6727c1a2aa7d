"""Importing this module puts thalweg under threadpoolctl's ``threadpool_limits``.

Example
-------
>>> import thalweg.threadpoolctl
>>> import thalweg as tw
>>> from threadpoolctl import threadpool_limits
>>> with threadpool_limits(1):
...     tw.get_num_threads()
1
"""

from threadpoolctl import LibController, register

from thalweg import _core

__all__ = ["ThalwegController"]


class ThalwegController(LibController):  # type: ignore[misc]
    """What threadpoolctl asks of a library."""

    user_api = "thalweg"
    internal_api = "thalweg"
    filename_prefixes = ("_core",)
    # Other packages call their extension _core, too.
    check_symbols = ("thalweg_get_num_threads",)

    def get_num_threads(self) -> int:
        return _core.get_num_threads()

    def set_num_threads(self, num_threads: int) -> None:
        _core.set_num_threads(num_threads)

    def get_version(self) -> str:
        return _core.__version__


register(ThalwegController)
