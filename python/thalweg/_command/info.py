"""What this build is and what it uses on this machine."""

from typing import Any

import numpy as np

from thalweg import _core


def config() -> dict[str, Any]:
    """Version, NumPy and ISA levels."""
    return {
        "thalweg": _core.__version__,
        "numpy": np.__version__,
        "isa compiled": list(_core.isa_compiled),
        "isa supported": list(_core.isa_supported),
        "isa in use": _core.isa,
        "threads": _core.get_num_threads(),
    }


def show_config() -> None:
    """Print the versions, the ISA levels (compiled, supported, in use) and the threads.

    Example
    -------
    >>> import thalweg as tw
    >>> tw.show_config()  # doctest: +ELLIPSIS
    thalweg        ...
    numpy          ...
    isa compiled   baseline...
    isa supported  baseline...
    isa in use     ...
    threads        ...
    """
    for name, value in config().items():
        print(f"{name:<14} {', '.join(value) if isinstance(value, list) else value}")
