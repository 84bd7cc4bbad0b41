"""Seeds derived from several numbers, and source code for cache keys."""

import hashlib
import inspect
import sys
from collections.abc import Iterable


def mixed(*numbers: int) -> int:
    """Return a seed in 0…2³²−1 that depends on all of the numbers and their order.

    >>> mixed(0, 1) == mixed(0, 1), mixed(0, 1) == mixed(1, 0)
    (True, False)
    """
    # A hash instead of a sum or a shift: seed + epoch repeats seed 1's first epoch as seed 0's
    # second. 32 bits, because torch's CPU generator ignores the upper half of a seed.
    digest = hashlib.blake2b(repr(numbers).encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big")


def sources(modules: Iterable[str]) -> dict[str, str]:
    """Return the source text of modules by name.

    Keys of teachers and of cached outputs contain it, so that a change of a network's code
    invalidates what the old code computed.

    Args:
        modules: dotted names; those of torch and those without a source file are left out.
    """
    # Without torch: its text changes with every release, but what its layers compute does not.
    names = (name for name in sorted(set(modules)) if name.partition(".")[0] != "torch")
    return {name: text for name in names if (text := _text(name))}


def _text(name: str) -> str:
    try:
        return inspect.getsource(sys.modules[name])
    except (KeyError, OSError, TypeError):  # not imported, typed at a prompt, or built in
        return ""
