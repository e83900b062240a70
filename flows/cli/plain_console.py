"""A console that shows text of data, models and recipes as it is.

Brackets are no markup, and control characters, which could rewrite what the terminal shows, are written out.
"""

import re
from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""All but tab and line feed; and what turns the direction of writing, which hides what a line says."""


def visible(text: str) -> str:
    """The text with control characters as their escapes, such as \\x1b."""
    return _CONTROL.sub(lambda match: f"\\x{ord(match.group()):02x}", text)


class PlainConsole(Console):
    """Rich's console without markup in strings."""

    def __init__(self, **options: Any):
        super().__init__(markup=False, emoji=False, **options)

    def lines(self, lines: Iterable[str]) -> None:
        """Print lines as they are, without layout: a hundred thousand of them take a second, where rich needs a minute."""
        self.file.write("".join(f"{visible(line)}\n" for line in lines))

    def render_str(self, text: str, **options: Any) -> Text:  # type: ignore[override]
        """Strings, also those in tables and trees, come through here before they are laid out."""
        return super().render_str(visible(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """What was no string, such as a Text, comes through here."""
        for segment in super().render(renderable, options):
            # Rich's own control codes and the carriage return of a live bar stay; text is made visible.
            own = segment.control is not None or segment.text == "\r"
            yield segment if own else Segment(visible(segment.text), segment.style)
