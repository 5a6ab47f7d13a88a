"""Examples of docstrings as code, for the Python page: mkdocs.yml names this file."""

import re

import griffe

EXAMPLE = re.compile(r"^>>> .*(?:\n.+)*", re.MULTILINE)


class Doctests(griffe.Extension):
    """Puts each paragraph that begins with >>> into a fence: Markdown takes it for a quotation."""

    def on_object(self, *, obj: griffe.Object, **_: object) -> None:
        """Called for every function, class and attribute."""
        if obj.docstring is not None:
            obj.docstring.value = EXAMPLE.sub(r"```pycon\n\g<0>\n```", obj.docstring.value)
