"""Shows the examples in docstrings as code: the site's parser would take `>>>` for a quotation."""

import re

from griffe import Extension, Object

EXAMPLE = re.compile(r"^( *)>>> .*(?:\n(?! *$).*)*", re.MULTILINE)


class FencedExamples(Extension):
    """Puts a fence around each example, from its first `>>>` to the next blank line."""

    def on_object(self, *, obj: Object, **_: object) -> None:
        """Rewrites the docstring of whatever is documented."""
        if obj.docstring:
            obj.docstring.value = EXAMPLE.sub(fenced, obj.docstring.value)


def fenced(example: re.Match[str]) -> str:
    """One example as a fenced block at its own indentation."""
    return f"{example[1]}```pycon\n{example[0]}\n{example[1]}```"
