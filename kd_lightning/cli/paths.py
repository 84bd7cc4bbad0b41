"""Paths: where the configuration lies, and paths on the command line."""

from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent
# A wheel contains conf/ inside the package; in a clone it lies beside the package.
CONF = next(p for p in (PACKAGE / "conf", PACKAGE.parent / "conf") if p.is_dir())

NEW = ("hydra.run.dir", "hydra.sweep.dir", "teacher_store", "cache.root")  # may not exist yet
OLD = ("teacher_ckpt", "teacher_from.path", "data.path", "data.root")
SPECIAL = set(",:='\"{}[]() $\\")  # with a meaning in Hydra's grammar


def quoted(path: str | Path) -> str:
    """Return a path as a value of Hydra's grammar, in which commas and braces have a meaning."""
    escaped = str(path).replace("\\'", "\\\\'").replace("'", "\\'")
    return f"'{escaped}'"


def with_quoted_path(word: str) -> str:
    """Quote the path in an override, unless it is already written in Hydra's grammar.

    >>> with_quoted_path("hydra.run.dir=runs/a,b")
    "hydra.run.dir='runs/a,b'"
    """
    key, _, value = word.partition("=")
    name = key.lstrip("+")
    is_plain = value[:1] not in ("'", '"', "[") and "${" not in value
    # Several values of a sweep, too, are separated by commas: a path of one of them exists.
    is_path = Path(value).exists() if name in OLD else name in NEW and is_plain
    return f"{key}={quoted(value)}" if is_path and SPECIAL & set(value) else word
