"""Tests of runs that are killed anywhere; ``python tests/faults.py`` tries many more."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import DATA, ROOT


@pytest.mark.slow
def test_killed_runs_end_as_if_uninterrupted(tmp_path: Path) -> None:
    words = ("--kinds", "student", "--kills", "1", "--operations", "3")
    done = subprocess.run(
        [sys.executable, "tests/faults.py", *words, "--folder", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "KD_DATA_DIR": str(DATA)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
