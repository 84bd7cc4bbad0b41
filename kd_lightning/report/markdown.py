"""Tables and text in Markdown; nothing in a cell can break out of it."""

from collections.abc import Iterable, Sequence
from html import escape


def pipe_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of text; a line break in a cell stays in it."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(map(as_it_is, line))} |\n" for line in lines)


def as_it_is(text: str) -> str:
    """Text that Markdown shows as it is."""
    for sign in "\\`*[]":
        text = text.replace(sign, f"\\{sign}")
    return escape(text, quote=False).replace("|", "&#124;").replace("\n", "<br>")
