"""Files that are written whole or not at all, and checked when they are read."""

import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

BLOCK = 2**24  # bytes read at a time


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file beside its target and rename it.

    A process that is killed leaves the old file or the new one, never a part. The folder is
    made where it is missing.

    Args:
        path: the target.
        write: is given the open file.

    Raises:
        OSError: if the file cannot be written; nothing is left behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with partial.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())  # otherwise a power cut may leave an empty file
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    write_atomically(path, lambda file: file.write(text.encode()))


def crc32(path: Path) -> int:
    """Checksum of a file's content."""
    checksum = 0
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            checksum = zlib.crc32(block, checksum)
    return checksum
