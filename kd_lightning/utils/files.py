"""Atomic writing of files, and their checksums."""

import os
import sys
import zlib
from collections.abc import Callable, Iterator
from itertools import takewhile
from pathlib import Path
from typing import BinaryIO

PARTIAL = ".partial"  # suffix of files that are being written
BLOCK = 2**24  # bytes per read, so that a large file need not fit into memory


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file atomically: beside its target, then renamed.

    A process that is killed leaves either the old file or the new one, and what it had written
    of the new one for :func:`remove_partial`. Missing folders are created.

    Args:
        path: the target.
        write: writes the content to an open binary file.

    Raises:
        OSError: if the file cannot be written, with its path; no partial file is left.
    """
    # In the target's folder, because a rename is atomic within one file system only; with the
    # process id, because several processes may write the same file.
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}{PARTIAL}")
    handled = sys.exception()  # by the caller: not an error of this writing
    try:
        with partial.open("wb") as file:
            write(file)
            file.flush()
            # Otherwise the rename may reach the disk before the content, and a power failure
            # leaves an empty file.
            os.fsync(file.fileno())
        partial.replace(path)
    except Exception as error:
        # torch.save raises a RuntimeError as it closes an archive that it could not write.
        during = takewhile(lambda e: e is not handled, _contexts(error))
        failed = next((e for e in during if isinstance(e, OSError)), None)
        if failed is None:
            raise
        if failed.errno is not None and failed.filename is None:
            failed.filename = str(path)  # a write to an open file does not know it
        if failed is error:
            raise
        raise failed from None
    finally:
        partial.unlink(missing_ok=True)


def _contexts(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an exception and those that were being handled as it was raised."""
    while error is not None:
        yield error
        error = error.__context__


def remove_partial(folder: Path, names: str = "*") -> None:
    """Remove what killed processes left of files that they were writing.

    Args:
        folder: the folder, in which no other process may be writing such files.
        names: pattern of the files' names.
    """
    for file in folder.glob(f".{names}{PARTIAL}"):
        file.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    write_atomically(path, lambda file: file.write(text.encode()))


def crc32(path: Path) -> int:
    """Return the CRC-32 checksum of a file's content."""
    # It detects damage, not tampering, so a fast checksum is enough.
    checksum = 0
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            checksum = zlib.crc32(block, checksum)
    return checksum
