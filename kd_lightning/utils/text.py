"""Text that others have written, made safe to show."""

import re

# C0 and C1 controls, which move a terminal's cursor, set its title or clear it; marks that reorder
# or hide the characters beside them; line separators; halves of surrogate pairs, which no encoding
# can write. Tabs and line breaks stay.
UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]"
)
MOST_SHOWN = 2000  # characters of a message


def printable(text: str) -> str:
    r"""Return text with control characters as escapes, which a terminal shows and does not obey.

    >>> print(printable("\x1b[31mred"))
    \x1b[31mred
    """
    return UNPRINTABLE.sub(lambda found: ascii(found[0])[1:-1], text)


def one_line(text: object) -> str:
    """Return a message as one printable line, cut if it is very long."""
    line = printable(" ".join(str(text).split()))
    return line if len(line) <= MOST_SHOWN else f"{line[:MOST_SHOWN]}…"
