"""Locks that end with what holds them, or with its process; no forked child keeps one."""

import os
import threading
import weakref
from contextlib import suppress
from typing import Any

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

# Held while something that locks is opened and handed to ``not_in_children``.
opening = threading.RLock()
_held: weakref.WeakSet[Any] = weakref.WeakSet()


def lock(file: Any, wait: bool = False) -> bool:
    """Lock an open file or folder. False: its file system has no locks. BlockingIOError: another
    open file, of whatever process, has locked it."""
    if not fcntl:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        raise
    except OSError:
        return False
    return True


def unlock(file: Any) -> None:
    """Of a forked child's copy, too, which may not have closed it yet."""
    if fcntl:
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_UN)


def not_in_children(holder: Any) -> None:
    """A forked child, in which it would outlive its owner, calls its ``close_in_child``."""
    _held.add(holder)


def _close_in_child() -> None:
    for holder in list(_held):
        with suppress(OSError):
            holder.close_in_child()
    _held.clear()
    opening.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=opening.acquire,
        after_in_parent=opening.release,
        after_in_child=_close_in_child,
    )
