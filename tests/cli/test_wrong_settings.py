"""Tests of wrong settings and files: one line each, before anything is trained.

Each case is a command of its own: see tests/forked.py. The cases are in wrong_settings.py. Every
third one is run, as a minute and a half for all would be a tenth of the suite; KD_ALL_SETTINGS=1
runs all of them.
"""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from wrong_files import make_files
from wrong_settings import CASES as ALL

pytestmark = pytest.mark.slow

EVERY = 1 if os.environ.get("KD_ALL_SETTINGS") else 3
CASES = {name: ALL[name] for name in list(ALL)[::EVERY]}


def command_of(words: str, folder: Path, run: Path, home: Path) -> dict[str, Any]:
    """The command of a case, whose teachers, cache and run directory are in ``home``."""
    named = words.replace("DIR", str(folder)).replace("RUN", str(run))
    typed = named.split() if "${" in named else shlex.split(named)
    if typed[0].startswith("resume="):
        typed.append("trainer.max_epochs=4")
    else:
        usual = ("data=digits", "trainer.max_epochs=1", "pretrain.trainer.max_epochs=1")
        given = [word.partition("=")[0] for word in typed]
        typed = [w for w in usual if w.partition("=")[0] not in given] + typed
        if "hydra.run.dir" not in given:
            typed.append(f"hydra.run.dir={home / 'run'}")
    stores = {"KD_TEACHERS": str(home / "teachers"), "KD_CACHE": str(home / "cache")}
    return {"arguments": typed, "environment": stores, "cwd": str(home)}


@pytest.fixture(scope="module")
def folder(digits_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wrong")
    make_files(folder, digits_run)
    return folder


@pytest.fixture(scope="module")
def outcomes(folder: Path, digits_run: Path, environment: dict[str, str]) -> dict[str, Any]:
    """Exit code, stdout and stderr of each case."""
    commands = {}
    for name, (words, _) in CASES.items():
        home = folder / "homes" / name
        home.mkdir(parents=True)
        commands[name] = command_of(words, folder, digits_run, home)
    (folder / "commands.json").write_text(json.dumps(commands))
    files = (str(folder / "commands.json"), str(folder / "outcomes.json"))
    no_network = dict.fromkeys(("http_proxy", "https_proxy"), "http://127.0.0.1:9")
    variables = {**environment, **no_network, "PYTHONPATH": str(ROOT)}
    script = [sys.executable, str(ROOT / "tests" / "forked.py"), *files]
    subprocess.run(script, cwd=ROOT, env=variables, check=True)
    return json.loads((folder / "outcomes.json").read_text())


@pytest.mark.parametrize("name", CASES)
def test_one_line_says_what_is_wrong(
    name: str, outcomes: dict[str, Any], folder: Path, digits_run: Path
) -> None:
    outcome = outcomes[name]
    said = outcome["stderr"].replace(str(folder), "DIR").replace(str(digits_run), "RUN")
    assert said.startswith(f"error: {CASES[name][1]}")
    assert said.count("\n") == 1
    assert outcome["code"] == 1
    assert "Traceback" not in outcome["stdout"]
    assert not list((folder / "homes" / name).rglob("*.ckpt"))  # nothing was trained


def test_no_file_has_run_code(outcomes: dict[str, Any], folder: Path) -> None:
    assert outcomes
    assert not (folder / "trace").exists()
