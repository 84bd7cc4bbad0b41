"""Tests of the files of a report: whole in themselves, safe, with every picture there is."""

import csv
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Sweep
from made_up import made_up_evidence, write_run, write_sweep

from kd_lightning.report.answer import headline
from kd_lightning.report.compare import build_report
from kd_lightning.report.page import draw, write_report
from kd_lightning.report.read import read_runs
from kd_lightning.utils.errors import UserError

CE, KD = {"method": "ce"}, {"method": "kd", "gain": 0.01}
EVIDENCE = ["reliability", "dark_knowledge", "temperature_theory", "class_similarity"]
HOSTILE = "<script>alert(1)</script>|[x](http://evil.example)`$\\frac$_&\"'"


@dataclass
class Page(HTMLParser):
    """What a browser would find in a page."""

    tags: list[tuple[str, dict[str, str | None]]] = field(default_factory=list)
    texts: list[tuple[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append((self.tags[-1][0] if self.tags else "", data))

    @property
    def text(self) -> str:
        return "".join(data for tag, data in self.texts if tag != "style")

    @property
    def pictures(self) -> list[str | None]:
        return [attrs.get("id") for tag, attrs in self.tags if tag == "figure"]


def parse(html: str) -> Page:
    page = Page()
    page.feed(html)
    page.close()
    return page


def report_of(*folders: Path, out: Path) -> Page:
    write_report(build_report(read_runs(folders)), out)
    return parse((out / "report.html").read_text(encoding="utf-8"))


Make = Callable[..., Page]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """``make(*settings)`` writes a sweep and its report, and reads the page."""

    def write(*settings: dict[str, Any], seeds: int = 2, evidence: bool = False) -> Page:
        write_sweep(tmp_path / "sweep", list(settings), seeds, evidence)
        return report_of(tmp_path / "sweep", out=tmp_path / "out")

    return write


def test_the_page_is_whole_in_itself(make: Make, tmp_path: Path) -> None:
    page = make(CE, KD, {"method": "dkd"}, seeds=3, evidence=True)
    assert page.pictures == ["learning_curves", *EVIDENCE]
    for tag, attrs in page.tags:
        assert tag not in {"script", "link", "iframe", "object", "base", "form"}
        for name, value in attrs.items():
            if name in {"src", "href", "xlink:href"}:
                assert (value or "").startswith(("#", "data:image/png;base64,")), (tag, value)
            assert not name.startswith("on")
    html = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"https?://|@import|url\((?!#)", html)
    assert "prefers-color-scheme: dark" in html


def test_the_first_thing_said_is_whether_it_helped(make: Make, tmp_path: Path) -> None:
    page = make(CE, KD, seeds=5)
    sentence = headline(build_report(read_runs([tmp_path / "sweep"])))
    assert sentence.startswith("Yes, distillation helped")
    assert ("p", sentence) in page.texts
    assert page.text.index(sentence) < page.text.index("method")
    assert [data for _, data in page.texts].count("helps") == 1
    assert "picked on validation, never on test" in page.text


@pytest.mark.parametrize(
    ("settings", "pictures"),
    [
        ([CE, KD], []),
        (
            [CE]
            + [
                {"method": "kd", "method.temperature": t, "method.alpha": a}
                for t in (1, 5)
                for a in (0.1, 0.9)
            ],
            ["temperature_alpha"],
        ),
        (
            [CE, *({"method": "kd", "method.temperature": t} for t in (1, 2, 20))],
            ["accuracy_temperature"],
        ),
        ([{"method.alpha": a} for a in (0.0, 0.5, 1.0)], ["accuracy_alpha"]),
        ([{**m, "student.width": w} for m in (CE, KD) for w in (8, 16)], ["size"]),
    ],
)
def test_there_is_a_picture_of_what_was_swept(
    make: Make, tmp_path: Path, settings: list[dict[str, Any]], pictures: list[str]
) -> None:
    page = make(*settings)
    expected = [*pictures, "learning_curves"]
    assert page.pictures == expected
    assert [tag for tag, _ in page.tags].count("figcaption") == len(expected)
    found = {file.stem for file in (tmp_path / "out" / "pictures").iterdir()}
    assert found == set(expected)
    text = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert re.findall(r"\(pictures/(\w+)\.png\)", text) == expected


def test_names_inside_one_picture_do_not_meet_another_s(make: Make) -> None:
    page = make(CE, KD, evidence=True)
    names = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(names) == len(set(names))


def test_where_there_are_no_data_there_is_no_picture(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / m, {"method": m}) for m in ("ce", "kd")]
    for run in runs:
        (run / "metrics.csv").write_text("epoch,step,train/loss\n0,1,0.5\n")
    page = report_of(*runs, out=tmp_path / "out")
    assert page.pictures == []
    assert "Pictures" not in page.text
    assert not (tmp_path / "out" / "pictures").exists()


def test_part_of_the_evidence_makes_its_own_pictures(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / m, {"method": m}) for m in ("ce", "kd")]
    arrays = made_up_evidence(0)
    np.savez(runs[1] / "evidence.npz", bins=arrays["bins"], class_probabilities=np.ones(3))
    page = report_of(*runs, out=tmp_path / "out")
    assert page.pictures == ["learning_curves", "reliability"]


def test_of_many_classes_no_numbers_are_drawn(tmp_path: Path) -> None:
    for classes in (10, 100):
        run = write_run(tmp_path / str(classes), {"method": "kd"})
        np.savez(run / "evidence.npz", allow_pickle=False, **made_up_evidence(0, classes=classes))
        (dark,) = [p for p in draw(build_report(read_runs([run]))) if p.name == "dark_knowledge"]
        numbers = [data for tag, data in parse(dark.svg()).texts if tag == "text" and data == "9"]
        assert len(numbers) == (8 if classes == 10 else 0)


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 cut", b"no archive"])
def test_damaged_evidence_is_one_line(tmp_path: Path, damage: bytes) -> None:
    run = write_run(tmp_path / "0", {"method": "kd"})
    (run / "evidence.npz").write_bytes(damage)
    with pytest.raises(UserError, match=r"evidence\.npz is damaged"):
        report_of(run, out=tmp_path / "out")


def test_evidence_can_run_no_code(tmp_path: Path) -> None:
    run = write_run(tmp_path / "0", {"method": "kd"})
    np.savez(run / "evidence.npz", bins=np.array([print], dtype=object))
    with pytest.raises(UserError, match=r"evidence\.npz is damaged"):
        report_of(run, out=tmp_path / "out")


def test_hostile_names_stay_text(make: Make, tmp_path: Path) -> None:
    page = make(CE, {"method": HOSTILE, "gain": 0.01}, {"method": "_[red]"}, seeds=3)
    assert "script" not in {tag for tag, _ in page.tags}
    assert f"method={HOSTILE} reaches" in page.text
    assert [data for tag, data in page.texts if tag == "text" and HOSTILE in data]
    text = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert "<script" not in text
    assert "[x](http" not in text.replace("\\[x\\](http", "")
    table = [line for line in text.splitlines() if line.startswith("| ")]
    assert len({line.count("|") for line in table}) == 2  # there are two tables


def test_the_csv_has_every_figure_unrounded(make: Make, tmp_path: Path) -> None:
    make(CE, KD, seeds=3)
    with (tmp_path / "out" / "report.csv").open(newline="") as lines:
        control, ours = csv.DictReader(lines)
    runs = read_runs([tmp_path / "sweep"])[3:]
    scores = [run.metrics["test/accuracy"] for run in runs]
    assert (ours["method"], ours["n"], ours["seeds"]) == ("kd", "3", "0 1 2")
    assert float(ours["test/accuracy mean"]) == pytest.approx(np.mean(scores), abs=1e-12)
    assert float(ours["test/accuracy sd"]) == pytest.approx(np.std(scores, ddof=1), abs=1e-12)
    assert (ours["control"], ours["verdict"], ours["paired"]) == ("method=ce", "helps", "True")
    assert (control["verdict"], control["difference"], control["best"]) == ("control", "", "False")
    assert float(ours["difference"]) > 0
    assert float(ours["p"]) == float(ours["p_holm"]) < 0.05


def test_further_figures_are_shown_where_they_are_there(make: Make) -> None:
    page = make(CE, KD)
    headers = [data for tag, data in page.texts if tag == "th" and data.strip()]
    assert headers[headers.index("loss") :] == [
        *("loss", "ece", "kl teacher", "latency ms"),
        *("group", "seed", "validation", "test", "directory"),
    ]
    rows = [data for tag, data in page.texts if tag == "td"]
    assert "0.0100" in rows  # the teacher's own calibration error


@pytest.mark.slow
def test_what_training_leaves_is_what_pictures_are_drawn_from(
    device_sweep: Sweep, digits_run: Path, tmp_path: Path
) -> None:
    for folder, curves in ((device_sweep.folder, []), (digits_run, ["learning_curves"])):
        report_of(folder, out=tmp_path / folder.name)
        drawn = {picture.stem for picture in (tmp_path / folder.name / "pictures").iterdir()}
        assert drawn == {*EVIDENCE, *curves}  # a single epoch is no curve


def test_errors_on_test_have_a_table_of_their_own(tmp_path: Path) -> None:
    for seed in range(3):
        counts = {"test/errors": 74.0 + seed, "test/errors_unseen": 14.0, "val/bias": 3.5 - seed}
        fixed = {"test/errors_corrected": 70.0, "test/errors_unseen_corrected": 9.0}
        write_run(tmp_path / f"1{seed}", {"method": "kd"}, seed, **counts, **fixed)
        write_run(tmp_path / f"2{seed}", {"method": "ce"}, seed)
    page = report_of(tmp_path, out=tmp_path / "out")
    headers = [data for tag, data in page.texts if tag == "th" and data.strip()]
    start = headers.index("errors")
    assert headers[start : start + 5] == [
        *("errors", "of unseen classes", "corrected", "of unseen classes, corrected"),
        "bias, set on validation",
    ]
    cells = [data for tag, data in page.texts if tag == "td"]
    start = cells.index("75.0 ± 1.0")
    expected = ["14.0 ± 0.0", "70.0 ± 0.0", "9.0 ± 0.0", "2.5 ± 1.0"]
    assert [c for c in cells[start + 1 : start + 9] if c.strip()][:4] == expected
    text = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert "## Test errors" in text
    assert "| 75.0 ± 1.0 | 14.0 ± 0.0 |" in text
    assert "## Fidelity, calibration and cost (validation)" in text
    assert "cost (validation)" in page.text


def test_where_no_errors_were_counted_there_is_no_table_of_them(make: Make) -> None:
    assert "Test errors" not in make(CE, KD).text


def test_the_teacher_shown_is_that_of_the_best_group(tmp_path: Path) -> None:
    answers = {"ce": 0.1, "kd": 0.3}
    for number, (method, share) in enumerate(answers.items()):
        run = write_run(tmp_path / str(number), {"method": method})
        arrays = made_up_evidence(0)
        arrays["teacher_class_probabilities"] = np.full((4, 10, 10), share)
        arrays["teacher_bins"] = np.tile([5.0, share, 1.0], (15, 1))
        np.savez(run / "evidence.npz", allow_pickle=False, **arrays)
    found = {picture.name: picture for picture in draw(build_report(read_runs([tmp_path])))}
    shown = found["dark_knowledge"].figure.axes[0].images[0].get_array()
    assert shown is not None
    assert np.asarray(shown) == pytest.approx(0.3)
    assert "teacher\ncalibration error 70.00 %" in [
        ax.get_title() for ax in found["reliability"].figure.axes
    ]


def test_the_teacher_has_a_row(make: Make) -> None:
    page = make(CE, KD)
    assert sum(attrs.get("class") == "teacher" for _, attrs in page.tags) == 2  # in both tables
    assert {"98.50", "98.00", "1,199,882"} <= {data for tag, data in page.texts if tag == "td"}


@pytest.mark.parametrize("curves", [np.ones((3, 2)), np.full((25, 4), np.nan), np.ones(4)])
def test_curves_of_another_kind_are_no_picture(tmp_path: Path, curves: np.ndarray) -> None:
    run = write_run(tmp_path / "run", {"method": "kd"}, evidence=True)
    arrays = {**made_up_evidence(0), "temperature_curves": curves}
    np.savez(run / "evidence.npz", allow_pickle=False, **arrays)
    page = report_of(run, out=tmp_path / "out")
    assert "dark_knowledge" in page.pictures
    assert "temperature_theory" not in page.pictures
