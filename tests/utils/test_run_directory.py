"""Tests of reading run directories: facts, figures, jobs of a sweep, checkpoints."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from kd_lightning.utils.errors import UserError
from kd_lightning.utils.run_directory import (
    FORMAT,
    find_checkpoint,
    finite,
    is_run,
    jobs_of,
    read_run,
)

FACTS = {
    "format": FORMAT,
    "role": "control: permuted",
    "seed": 3,
    "overrides": {"method.alpha": "0.5"},
    "settings": {"method.alpha": 0.5, "data.val_size": 5000},
}
FIGURES = {"test/accuracy": 0.97, "epochs": 5, "val/loss": math.nan}


def unconverted(path: Path) -> dict[str, Any]:
    raise AssertionError(f"{path} has a run.json and must not be converted")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run directory with a space in its name."""
    folder = tmp_path / "my run"
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps(FACTS))
    (folder / "metrics.json").write_text(json.dumps(FIGURES))
    return folder


def refused(path: Path, **settings: Any) -> str:
    """Return the error message, which must be one line."""
    with pytest.raises(UserError) as caught:
        read_run(path, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("as_text", [True, False])
def test_finished_run_has_facts_and_figures(run: Path, as_text: bool) -> None:
    found = read_run(str(run) if as_text else run, convert=unconverted)
    assert found.is_finished
    assert (found.path, found.role, found.seed) == (run, "control: permuted", "3")
    assert found.overrides == {"method.alpha": "0.5"}
    assert found.settings == {"method.alpha": 0.5, "data.val_size": 5000}
    assert found.facts == FACTS
    assert (found.number("test/accuracy"), found.number("epochs")) == (0.97, 5.0)
    assert found.number("val/loss") is None  # not finite
    assert found.number("val/accuracy") is None  # not there


def test_run_without_metrics_is_not_finished(run: Path) -> None:
    (run / "metrics.json").unlink()
    found = read_run(run)
    assert not found.is_finished
    assert found.role == "control: permuted"
    assert found.number("test/accuracy") is None


def test_missing_fact_or_figure_names_key_and_file(run: Path) -> None:
    (run / "run.json").write_text(json.dumps({"format": FORMAT}))
    found = read_run(run)
    with pytest.raises(UserError) as caught:
        _ = found.role
    assert str(caught.value) == f"{run / 'run.json'} has no 'role'"
    with pytest.raises(UserError) as caught:
        _ = found.metrics["bias"]
    assert str(caught.value) == f"{run / 'metrics.json'} has no 'bias'"


def test_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing"):
        message = refused(path, convert=unconverted)
        assert message.startswith(f"{path} is not a run directory")
        assert "run.json" in message


@pytest.mark.parametrize("file", ["run.json", "metrics.json"])
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b'{"format": 1, "role"',
        b"role: student\n",
        b"\xff\xfe\x00binary",
        b'{"a":\n\n1,\n}',
        b"[" * 100_000,
    ],
    ids=["empty", "truncated", "yaml", "binary", "several lines", "nested"],
)
def test_damaged_file_is_named(run: Path, file: str, content: bytes) -> None:
    (run / file).write_bytes(content)
    assert refused(run).startswith(f"{run / file} cannot be read: ")


@pytest.mark.parametrize("file", ["run.json", "metrics.json"])
@pytest.mark.parametrize("content", ["[1, 2]", '"student"', "3", "null"])
def test_file_without_an_object_is_named(run: Path, file: str, content: str) -> None:
    (run / file).write_text(content)
    message = refused(run)
    assert message.startswith(f"{run / file} ")
    assert "not an object" in message


@pytest.mark.parametrize("version", [None, 0, FORMAT + 1, str(FORMAT)])
def test_foreign_format_is_refused_and_not_converted(run: Path, version: Any) -> None:
    (run / "run.json").write_text(json.dumps({**FACTS, "format": version}))
    message = refused(run, convert=unconverted)
    assert message.startswith(f"{run / 'run.json'} has format {version!r}")
    assert str(FORMAT) in message


@pytest.mark.parametrize("kept", [".hydra/config.yaml", "metrics.json"])
def test_run_of_an_earlier_version_is_converted(tmp_path: Path, kept: str) -> None:
    (tmp_path / kept).parent.mkdir(exist_ok=True)
    (tmp_path / kept).write_text("{}")
    converted = []

    def convert(path: Path) -> dict[str, Any]:
        converted.append(path)
        return {"role": "teacher"}

    assert read_run(tmp_path, convert).role == "teacher"
    assert converted == [tmp_path]
    assert "is not a run directory" in refused(tmp_path)  # without a converter


def test_jobs_are_ordered_by_number(tmp_path: Path) -> None:
    for name in ("0", "2", "10", "1", "best"):
        (tmp_path / name / ".hydra").mkdir(parents=True)
        (tmp_path / name / ".hydra" / "config.yaml").touch()
    (tmp_path / "3").mkdir()  # no run in it
    (tmp_path / "4").touch()  # no folder
    assert [job.name for job in jobs_of(tmp_path)] == ["best", "0", "1", "2", "10"]
    assert [is_run(tmp_path / name) for name in ("0", "3", "4", "missing")] == [True, *[False] * 3]


def test_checkpoint_is_the_path_itself_or_in_the_run_directory(run: Path) -> None:
    file = run / "elsewhere.ckpt"
    assert find_checkpoint(str(file)) == find_checkpoint(file, "last") == file
    assert find_checkpoint(run) == run / "checkpoints" / "best.ckpt"
    assert find_checkpoint(str(run), "last") == run / "checkpoints" / "last.ckpt"


def test_checkpoint_of_a_chain_is_that_of_its_last_link(run: Path) -> None:
    for number in (0, 2, 9, 10):  # as text, 9 is the last
        (run / "links" / str(number)).mkdir(parents=True)
    assert find_checkpoint(run) == run / "links" / "10" / "checkpoints" / "best.ckpt"


@pytest.mark.parametrize(
    ("value", "expected"),
    [(3, 3.0), (-0.5, -0.5), (0, 0.0)]
    + [(value, None) for value in (math.nan, math.inf, -math.inf, True, "3", None, [1])],
)
def test_finite_accepts_finite_numbers_alone(value: Any, expected: float | None) -> None:
    found = finite(value)
    assert found == expected
    assert type(found) is type(expected)
