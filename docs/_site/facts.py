"""Tables of the pages that are read from the code, so that they cannot go stale."""

import re

from docutils import nodes
from sphinx.ext.napoleon import NumpyDocstring
from sphinx.util.docutils import SphinxDirective

from defaults import defaults


class Defaults(SphinxDirective):
    """``{defaults} SGD``: what is in force where an option is not given, beside the presets."""

    required_arguments = 1

    def run(self):
        found = self.parse_text_to_nodes("\n".join(defaults(self.arguments[0])))
        return [nodes.container("", *found, classes=["defaults"])]


# "By name: the velocity" is a sentence, not a type and its description.
NumpyDocstring._consume_inline_attribute = lambda self: ("", self._dedent(self._consume_to_end()))


def as_fields(app, what, name, thing, options, lines):
    """ "lr: the first value" at a line's beginning, further lines indented, is a field of RST."""
    before = ""
    for i, line in enumerate(lines):
        if before.startswith((":", " ")) or not before:
            lines[i] = re.sub(r"^([A-Za-z]+): (?=\S)", r":\1: ", line)
        before = lines[i]


def setup(app):
    app.connect("autodoc-process-docstring", as_fields)
    app.add_directive("defaults", Defaults)
    return {"parallel_read_safe": True}
