"""Hashes that decide things: seeds made of several numbers, and the code of networks."""

import hashlib
import inspect
import sys
from collections.abc import Iterable


def mixed(*numbers: int) -> int:
    """A seed that differs where any of the numbers does.

    32 bits, because torch's generator on the CPU reads no more: an epoch shifted into the
    upper half of a seed would change nothing.
    """
    digest = hashlib.blake2b(repr(numbers).encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big")


def sources(modules: Iterable[str]) -> dict[str, str]:
    """The source text of each module, without torch's own and those that have no file.

    Keys of teachers and of cached outputs contain it, so that a change of a network's code
    invalidates what the old code computed.
    """
    names = (name for name in sorted(set(modules)) if name.partition(".")[0] != "torch")
    return {name: text for name in names if (text := _text(name))}


def _text(name: str) -> str:
    try:
        return inspect.getsource(sys.modules[name])
    except (KeyError, OSError, TypeError):  # typed at a prompt, or compiled
        return ""
