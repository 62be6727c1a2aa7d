"""Names for what options may be."""

from collections.abc import Callable

Schedule = Callable[[int], float]
