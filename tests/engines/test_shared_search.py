"""Tests of a search that several processes share, one of which is killed."""

import subprocess
import time
from pathlib import Path

import pytest
from page import command

from kd_lightning.cli.command_line import arranged
from kd_lightning.utils.errors import UserError

optuna = pytest.importorskip("optuna")

pytestmark = pytest.mark.slow

QUICK = ("data=digits", "trainer.max_epochs=1", "student.width=4")
STUDY = {"study_name": "kd", "storage": "sqlite:///study.db"}


def test_a_study_is_shared_and_goes_on_after_a_kill(
    environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    subprocess.run(command("optuna create-study"), check=True)

    def start(number: int, trials: int) -> subprocess.Popen[str]:
        own = (f"hydra.sweeper.n_trials={trials}", f"hydra.sweep.dir=sweep-{number}")
        return subprocess.Popen(
            command("experiment=shared_search", *QUICK, *own),
            env=environment,
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )

    killed, other = start(0, 1000), start(1, 2)
    # Each has told the study what it found.
    while not any(Path("sweep-0").glob("1/run.json")) and killed.poll() is None:
        time.sleep(0.05)
    killed.kill()
    _, message = other.communicate(timeout=120)
    assert other.returncode == 0, message
    killed.communicate()
    before = {t.number: t for t in optuna.load_study(**STUDY).trials}
    again = start(2, 2)
    _, message = again.communicate(timeout=120)
    assert again.returncode == 0, message
    trials = optuna.load_study(**STUDY).trials
    assert [t.number for t in trials] == list(range(len(before) + 2))
    complete = [t for t in trials if t.state.name == "COMPLETE"]
    assert len(complete) >= 5  # one or more of the killed process, two of each of the others
    assert len(trials) - len(complete) <= 1  # what it was killed in
    assert all(trials[n].params == before[n].params for n in before)
    assert len({t.params["method.alpha"] for t in trials}) == len(trials)  # none proposed twice
    with pytest.raises(UserError, match="repeat the command of the search"):
        arranged(["train.py", "resume=sweep-2"])
