"""Reading of files that may be damaged, or made to do harm.

A run directory may come from anyone. Each kind of file has one reader, which takes no more memory
than a limit allows, runs no code, and raises a UserError that names the file.
"""

import json
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from kd_lightning.utils.errors import UserError
from kd_lightning.utils.text import one_line

MOST_JSON = 2**23  # bytes; the figures of 21,000 classes take half of it
MOST_TEXT = 10_000  # characters of one string; a list of a thousand classes takes half of it
MOST_DIGITS = 300  # of an integer: longer ones exceed the range of a float


def is_there(file: Path) -> bool:
    """Return whether there is a file.

    Raises:
        UserError: if something else is in its place, such as a directory, a pipe, or a link
            that leads nowhere.
    """
    if not os.path.lexists(file):
        return False
    if not file.is_file():
        raise UserError(f"{file} is not a file: delete it, or put the file there")
    return True


def read_bytes(file: Path, most: int) -> bytes:
    """Read a file.

    Args:
        file: the file.
        most: largest size in bytes.

    Raises:
        UserError: if it is no regular file, too large, or cannot be read.
    """
    try:
        # Without waiting: opening a pipe would last until somebody writes to it.
        with os.fdopen(os.open(file, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb") as opened:
            if not stat.S_ISREG(os.fstat(opened.fileno()).st_mode):
                raise UserError(f"{file} cannot be read: it is not a file")
            # One byte more than allowed: the file may be growing.
            content = opened.read(most + 1)
    except OSError as error:
        raise UserError(f"{file} cannot be read: {one_line(error.strerror)}") from error
    if len(content) > most:
        raise UserError(f"{file} cannot be read: it is larger than {most / 2**20:.0f} MiB")
    return content


def read_text(file: Path, most: int) -> str:
    """Read a UTF-8 file; see :func:`read_bytes`."""
    try:
        return read_bytes(file, most).decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{file} cannot be read: it is not UTF-8 text ({error.reason})") from error


def read_json(file: Path) -> dict[str, Any]:
    """Read the JSON object in a file.

    Raises:
        UserError: if the file cannot be read, does not contain an object, or contains a string
            or a number of a length that no run writes.
    """
    try:
        content = json.loads(read_text(file, MOST_JSON), parse_int=_integer)
    # Deeply nested brackets in a damaged file end in a RecursionError.
    except (json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"{file} cannot be read: {one_line(error)}") from error
    except OverflowError as error:
        raise UserError(f"{file} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{file} holds a {type(content).__name__}, not an object")
    for text in texts(content):
        check_text(file, text)
    return content


def check_text(file: Path, text: str) -> None:
    """Check a string of a file.

    Raises:
        UserError: if it is too long for a table or a message, or is not valid Unicode.
    """
    if len(text) > MOST_TEXT:
        raise UserError(f"{file} cannot be read: it has a string of {len(text):,} characters")
    if not text.isascii() and any("\ud800" <= sign <= "\udfff" for sign in text):
        raise UserError(f"{file} cannot be read: it has a string that is not valid Unicode")


def texts(value: Any) -> Iterator[str]:
    """Yield every string in nested dictionaries and lists, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from texts(key)
            yield from texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from texts(inner)


def _integer(digits: str) -> int:
    if len(digits) > MOST_DIGITS:
        raise OverflowError(f"it has a number of {len(digits):,} digits")
    return int(digits)
