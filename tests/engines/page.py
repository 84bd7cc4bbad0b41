"""The commands on docs/clusters.md, which the tests of the engines run."""

import re
import shlex
import sys
from pathlib import Path

from conftest import ROOT

PAGE = ROOT / "docs" / "clusters.md"


def commands() -> list[str]:
    """All commands on the page but those that install packages."""
    blocks = re.findall(r"^```\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    lines = [line for block in blocks for line in block.splitlines()]
    return [line for line in lines if not line.startswith("pip ")]


def command(part: str, *own: str) -> list[str]:
    """The words of the command that contains a text, to be run in any folder.

    Args:
        part: occurs in one command of the page.
        own: overrides of the test; they replace the page's of the same key.
    """
    (line,) = (line for line in commands() if part in line)
    program, *words = shlex.split(line, comments=True)
    keys = {word.partition("=")[0] for word in own}
    kept = [word for word in words if "=" not in word or word.partition("=")[0] not in keys]
    beside = Path(sys.executable).with_name(program)  # python, and what is installed with it
    program = str(beside) if beside.exists() else program
    return [program, *(str(ROOT / w) if w == "train.py" else w for w in kept), *own]
