"""The tables of defaults, thalweg's beside those of the libraries that it has presets of."""

import inspect

import thalweg as tw
from thalweg.presets import ADAGRAD_PRESETS, REQUIRED, SGD_PRESETS

RULES = {"SGD": (tw.SGD, SGD_PRESETS), "Adagrad": (tw.Adagrad, ADAGRAD_PRESETS)}
WITHOUT = ("grads", "state", "watch", "zero_grads")  # of these no library has the like


def shown(value):
    if value is REQUIRED:
        return "no default"
    if value is None or value is False:
        return "off"
    if value is True:
        return "on"
    if isinstance(value, float) and 0 < value < 0.01:
        return f"{value:.0e}".replace("e-0", "e-")
    return f"{value:g}" if isinstance(value, float) else str(value)


def defaults(rule):
    """Markdown: what is in force where an option is not given, a row for each preset."""
    make, presets = RULES[rule]
    ours = {
        name: parameter.default
        for name, parameter in inspect.signature(make).parameters.items()
        if parameter.default is not parameter.empty and name not in WITHOUT
    }
    differing = [name for name in ours if any(name in options for options in presets.values())]
    yield f"| {rule} | " + " | ".join(f"`{name}`" for name in differing) + " |"
    yield "|---" * (len(differing) + 1) + "|"
    for name, options in {"thalweg": {}, **presets}.items():
        values = [options.get(option, ours[option]) for option in differing]
        yield f"| {name} | " + " | ".join(map(shown, values)) + " |"
    same = [f"`{name}` {shown(value)}" for name, value in ours.items() if name not in differing]
    yield ""
    yield "The same in all: " + ", ".join(same) + "."
