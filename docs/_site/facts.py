"""Tables that are read from the code when the site is built, so that they cannot go stale."""

import inspect

from sphinx.ext.napoleon import NumpyDocstring
from sphinx.util.docutils import SphinxDirective

import thalweg as tw
from thalweg.presets import ADAGRAD_PRESETS, REQUIRED, SGD_PRESETS

RULES = {"SGD": (tw.SGD, SGD_PRESETS), "Adagrad": (tw.Adagrad, ADAGRAD_PRESETS)}
NOT_NUMBERS = ("grads", "state", "watch", "zero_grads")


def shown(value):
    if value is REQUIRED:
        return "you give it"
    if isinstance(value, float) and 0 < value < 1e-3:
        return f"{value:.0e}".replace("e-0", "e-")
    return str(value)


def defaults(rule):
    """A row for each option in which some preset differs, a column for thalweg and each preset."""
    make, presets = RULES[rule]
    ours = {
        name: parameter.default
        for name, parameter in inspect.signature(make).parameters.items()
        if parameter.default is not parameter.empty and name not in NOT_NUMBERS
    }
    differing = [name for name in ours if any(name in options for options in presets.values())]
    yield f"| {rule} | thalweg | " + " | ".join(presets) + " |"
    yield "|---" * (len(presets) + 2) + "|"
    for name in differing:
        values = [ours[name], *(options.get(name, ours[name]) for options in presets.values())]
        yield f"| `{name}` | " + " | ".join(map(shown, values)) + " |"
    same = [f"`{name}={shown(value)}`" for name, value in ours.items() if name not in differing]
    yield ""
    yield "The same in all: " + ", ".join(same) + "."


class Defaults(SphinxDirective):
    """``{defaults} SGD``: what is in force where an option is not given, beside the presets."""

    required_arguments = 1

    def run(self):
        return self.parse_text_to_nodes("\n".join(defaults(self.arguments[0])))


# "By name: the velocity" is a sentence, not a type and its description.
NumpyDocstring._consume_inline_attribute = lambda self: ("", self._dedent(self._consume_to_end()))


def setup(app):
    app.add_directive("defaults", Defaults)
    return {"parallel_read_safe": True}
