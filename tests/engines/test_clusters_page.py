"""A test that no command on docs/clusters.md goes untested."""

import re

from conftest import ROOT
from page import commands

# Its command is older than the page, and has tests of its own.
ELSEWHERE = {"hydra/launcher=joblib": ROOT / "tests" / "cli" / "test_sweep.py"}


def test_every_command_is_run_by_a_test() -> None:
    sources = "".join(f.read_text() for f in (ROOT / "tests" / "engines").glob("test_*.py"))
    parts = re.findall(r'command\(\s*"([^"]+)"', sources)
    for part, file in ELSEWHERE.items():
        assert part in file.read_text()
        parts.append(part)
    untested = [line for line in commands() if not any(part in line for part in parts)]
    assert untested == []
    assert len(commands()) >= 8
