"""The structure of the params: sequences, mappings and arrays, flattened to named leaves."""

from collections.abc import ItemsView, Iterator, Mapping, ValuesView
from numbers import Integral
from typing import Any


class Flat:
    """Params as the core wants them: ``tree`` in its own words, ``leaves`` by path."""

    def __init__(self, leaves: Mapping[str, Any] | None = None) -> None:
        self.leaves: dict[str, Any] = dict(leaves or {})

    def add(self, node: Any, path: str = "") -> Any:
        """Put the arrays below ``node`` into ``leaves`` and return its form."""
        try:
            return self._add(node, path)
        except RecursionError:
            raise ValueError(
                f"{label('params', path)}: expected nesting of at most a few hundred levels, "
                "received more; does it contain itself?"
            ) from None

    def _add(self, node: Any, path: str) -> Any:
        if isinstance(node, Mapping):
            for key in node:
                if node[key] is not node[key]:
                    raise TypeError(
                        f"{label('params', _join(path, str(key)))}: expected the same array at "
                        f"every look, received new ones from a {type(node).__name__}; "
                        "pass dict(...) of it"
                    )
            return {key: self._add(node[key], _join(path, _checked_key(key, path))) for key in node}
        if isinstance(node, (list, tuple)):
            form = [self._add(child, _join(path, str(i))) for i, child in enumerate(node)]
            return tuple(form) if isinstance(node, tuple) else form
        if isinstance(node, (Iterator, ValuesView, ItemsView)):
            kind = "dict" if isinstance(node, ItemsView) else "list"
            raise TypeError(
                f"{label('params', path)}: expected an array or a list, tuple or mapping of them, "
                f"received a {type(node).__name__}; pass {kind}(...) of it"
            )
        if path in self.leaves:
            raise ValueError(
                f"{label('params', path)}: expected one array of this name, received two; "
                'keys such as "a.b" and 0 are joined by dots, as nested ones are: rename one'
            )
        self.leaves[path] = node
        return len(self.leaves) - 1


def fill(tree: Any, leaves: list[Any]) -> Any:
    """A structure of the form ``add`` returned, with these leaves."""
    if isinstance(tree, dict):
        return {key: fill(child, leaves) for key, child in tree.items()}
    if isinstance(tree, (list, tuple)):
        return type(tree)(fill(child, leaves) for child in tree)
    return leaves[tree]


def matched(tree: Any, given: Any, what: str, path: str = "") -> Iterator[Any]:
    """The leaves of ``given`` in the order of those of a structure of that form.

    None in place of a leaf, or of all below a node, stays None. ``what`` is how messages call it.
    """
    if given is None:
        yield from [None] * count(tree)
    elif isinstance(tree, dict):
        if not isinstance(given, Mapping):
            raise TypeError(
                f"{label(what, path)}: expected a mapping, as {label('params', path)} is, "
                f"received {type(given).__name__}; None stands for arrays of our own"
            )
        if set(given) != set(tree):
            keys = sorted(map(repr, set(given) ^ set(tree)))
            raise ValueError(
                f"{label(what, path)}: expected the keys of {label('params', path)}, received "
                f"others; not in both: {', '.join(keys)}; None stands for an array of our own"
            )
        for key, child in tree.items():
            yield from matched(child, given[key], what, _join(path, str(key)))
    elif isinstance(tree, (list, tuple)):
        if not isinstance(given, (list, tuple)):
            raise TypeError(
                f"{label(what, path)}: expected a list or tuple, as {label('params', path)} is, "
                f"received {type(given).__name__}; None stands for arrays of our own"
            )
        if len(given) != len(tree):
            raise ValueError(
                f"{label(what, path)}: expected {len(tree)} items, as many as in "
                f"{label('params', path)}, received {len(given)}; None stands for an array of "
                "our own"
            )
        for i, child in enumerate(tree):
            yield from matched(child, given[i], what, _join(path, str(i)))
    else:
        yield given


def count(tree: Any) -> int:
    """The leaves of a structure of that form."""
    if isinstance(tree, dict):
        return sum(map(count, tree.values()))
    return sum(map(count, tree)) if isinstance(tree, (list, tuple)) else 1


def _checked_key(key: object, path: str) -> str:
    if isinstance(key, str) or (isinstance(key, Integral) and not isinstance(key, bool)):
        return str(key)
    raise TypeError(f"{label('params', path)}: expected keys that are str or int, received {key!r}")


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def label(what: str, path: str) -> str:
    """``params["W1"]``, or ``params`` for a lone array."""
    return f'{what}["{path}"]' if path else what
