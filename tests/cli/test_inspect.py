"""Tests of kd-inspect: the tables of both networks, and proposals that can be pasted."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT, Command
from hydra import compose, initialize_config_dir
from torch import Tensor, nn

from kd_lightning.cli.inspect import in_short, network_table, print_side_by_side, proposals
from kd_lightning.cli.paths import CONF
from kd_lightning.metrics.cost import multiply_adds
from kd_lightning.nets.cnn import StudentCNN, TeacherCNN
from kd_lightning.nets.taps import dry_run
from kd_lightning.runs.build import make
from kd_lightning.transfer.term import Term

SAMPLE = torch.zeros(2, 1, 28, 28)


@pytest.fixture(scope="module")
def printed(
    environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> tuple[list[str], Path]:
    """The lines that the command prints, and its working directory."""
    folder = tmp_path_factory.mktemp("inspect")
    done = subprocess.run(
        [sys.executable, "-m", "kd_lightning.cli.inspect", "data=digits"],
        cwd=folder,
        env={**environment, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines(), folder


@pytest.mark.slow
def test_both_networks_are_printed_side_by_side(printed: tuple[list[str], Path]) -> None:
    lines, _ = printed
    assert lines[0].split() == ["student:", "StudentCNN", "teacher:", "TeacherCNN"]
    first = next(line.split() for line in lines if line.strip().startswith("features.0"))
    assert first == [
        *("features.0", "16×26×26", "160", "97.3", "k"),
        *("features.0", "32×26×26", "320", "195", "k"),
    ]
    student, teacher = (line.split() for line in lines if "total" in line)
    assert student[:4] == ["total", "27,210", "124", "k"]
    assert teacher == ["total", "1,199,882", "12", "M"]


@pytest.mark.slow
def test_command_writes_no_files(printed: tuple[list[str], Path]) -> None:
    assert list(printed[1].iterdir()) == []


def test_multiply_adds_are_those_of_one_sample() -> None:
    conv, linear = 16 * 26 * 26 * (1 * 3 * 3), 2704 * 10
    found = multiply_adds(StudentCNN((1, 28, 28), 10), SAMPLE)
    assert found["features.0"] == found["features"] == conv
    assert found["classifier.1"] == found["classifier"] == linear
    assert found[""] == conv + linear
    strided = nn.Sequential(nn.Conv2d(4, 6, 5, stride=2, groups=2), nn.ReLU())
    assert multiply_adds(strided, torch.zeros(3, 4, 11, 9))[""] == 6 * 4 * 3 * (2 * 5 * 5)


def test_tables_stand_one_below_the_other_on_a_narrow_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    nets = StudentCNN((1, 28, 28), 10), TeacherCNN((1, 28, 28), 10)
    for columns, titles in (("160", 1), ("80", 2)):
        monkeypatch.setenv("COLUMNS", columns)
        print_side_by_side([network_table("a", net, SAMPLE) for net in nets])
        lines = capsys.readouterr().out.splitlines()
        assert sum("CNN" in line for line in lines) == titles
        assert sum("classifier.0" in line for line in lines) == 2  # no path is folded


@pytest.mark.parametrize(
    ("count", "text"), [(0, ""), (999, "999"), (97_344, "97.3 k"), (1_179_776, "1.18 M")]
)
def test_large_numbers_are_abbreviated(count: int, text: str) -> None:
    assert in_short(count) == text


def pasted(line: str) -> Term:
    """The term that a proposed line describes."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        method = make(compose("train", shlex.split(line)).method)
    (term,) = method.terms.values()
    return term


class Unnamed(nn.Sequential):
    """A network whose layers' paths are numbers."""

    def __init__(self, width: int) -> None:
        block = nn.Sequential(nn.Conv2d(1, width, 3, stride=2), nn.ReLU())
        last = nn.Sequential(nn.Conv2d(width, width, 3, stride=2), nn.ReLU())
        super().__init__(block, last, nn.Sequential(nn.Flatten(), nn.Linear(width * 36, 5)))


@pytest.mark.parametrize(
    ("student", "teacher"),
    [(StudentCNN((1, 28, 28), 10), TeacherCNN((1, 28, 28), 10)), (Unnamed(2), Unnamed(3))],
)
def test_proposals_are_the_layers_that_methods_choose_by_default(
    student: nn.Module, teacher: nn.Module
) -> None:
    lines = [line for line in proposals(student, teacher, SAMPLE) if line.startswith("  ")]
    assert [line.split()[0] for line in lines] == ["method=fitnet", "method=review", "method=rkd"]
    for line in lines:
        term = pasted(line)
        paths = term.student, term.teacher
        assert dry_run(student, SAMPLE, term.student).keys() == {"logits", *term.student}
        term.student, term.teacher = [], []
        term.connect(student, teacher, SAMPLE, torch.arange(2))
        assert (term.student, term.teacher) == paths


@pytest.mark.slow
def test_pasted_proposal_runs(
    printed: tuple[list[str], Path], command: Command, tmp_path: Path
) -> None:
    (line,) = (line for line in printed[0] if "method=review" in line)
    done = command(
        *(*shlex.split(line), "data=digits", "trainer.max_epochs=1"),
        f"hydra.run.dir={tmp_path / 'run'}",
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "metrics.json").is_file()


def test_networks_without_maps_get_proposals_for_embeddings() -> None:
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.hidden, self.last = nn.Linear(784, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.hidden(x.flatten(1)))

    title, line = proposals(Flat(), Flat(), SAMPLE)
    assert title.startswith("embeddings")
    assert (
        line == "  method=rkd method.transfer.rkd.student=hidden method.transfer.rkd.teacher=hidden"
    )
