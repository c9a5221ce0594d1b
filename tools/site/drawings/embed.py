"""Put a drawing where a page says <!-- drawing: NAME -->, as part of the page.

It is an extension of Markdown and no plugin of mkdocs, so that every builder of the site has it.
Within the page, unlike an image, a drawing has the page's colours and is read aloud.
"""

import html
import re

from markdown import Extension, Markdown  # type: ignore[import-untyped] # it has no types
from markdown.preprocessors import Preprocessor  # type: ignore[import-untyped] # nor has this

from tools.site.drawings.sheets import DRAW

COMMENT = re.compile(r"^(?P<indent>\s*)<!-- drawing: (?P<name>[\w-]+) -->\s*$")
# After included files are there (32) and code is set apart (25), before HTML is (20).
PRIORITY = 22


def as_figure(name: str) -> str:
    """Return a drawing with its caption. Raises ValueError if there is none of that name."""
    if name not in DRAW:
        raise ValueError(f"there is no drawing {name}; there are {', '.join(DRAW)}")
    sheet = DRAW[name]()
    caption = html.escape(sheet.caption, quote=False)
    caption = re.sub(r"`([^`]+)`", r"<code>\1</code>", caption)
    caption = re.sub(r"\*([^*]+)\*", r"<em>\1</em>", caption)
    return f'<figure class="sheet">{sheet.as_svg()}<figcaption>{caption}</figcaption></figure>'


class _Preprocessor(Preprocessor):  # type: ignore[misc] # its base has no types
    def run(self, lines: list[str]) -> list[str]:
        return [self._replace(line) for line in lines]

    def _replace(self, line: str) -> str:
        match = COMMENT.match(line)
        if match is None:
            return line
        return match["indent"] + str(self.md.htmlStash.store(as_figure(match["name"])))


class Drawings(Extension):  # type: ignore[misc] # its base has no types
    """The extension."""

    def extendMarkdown(self, md: Markdown) -> None:
        md.preprocessors.register(_Preprocessor(md), "drawings", PRIORITY)


def makeExtension(**settings: object) -> Drawings:
    """Return the extension; Markdown asks a module for it by this name."""
    return Drawings(**settings)
