"""Where the configuration lies."""

from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent
# A wheel contains conf/ inside the package; in a clone it lies beside the package.
CONF = next(p for p in (PACKAGE / "conf", PACKAGE.parent / "conf") if p.is_dir())
