"""The code that networks are made of, for keys that have to change with it."""

import inspect
import sys
from collections.abc import Iterable


def sources(modules: Iterable[str]) -> dict[str, str]:
    """The text of each of these modules; torch's own, and what has no file, are left out."""
    names = (name for name in sorted(set(modules)) if name.partition(".")[0] != "torch")
    return {name: text for name in names if (text := _text(name))}


def _text(name: str) -> str:
    try:
        return inspect.getsource(sys.modules[name])
    except (KeyError, OSError, TypeError):  # typed at a prompt, or compiled
        return ""
