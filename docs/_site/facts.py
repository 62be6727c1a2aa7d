"""Tables of the pages that are read from the code, so that they cannot go stale."""

from sphinx.ext.napoleon import NumpyDocstring
from sphinx.util.docutils import SphinxDirective

from defaults import defaults


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
