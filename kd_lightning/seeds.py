"""Seeds made of several numbers."""

import hashlib


def mixed(*numbers: int) -> int:
    """A seed that differs where any of the numbers does.

    32 bits: torch's generator on the CPU looks at no more, so shifting an epoch into the
    upper half of a seed would change nothing.
    """
    digest = hashlib.blake2b(repr(numbers).encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big")
