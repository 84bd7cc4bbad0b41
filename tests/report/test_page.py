"""Tests of the files of a report: complete, safe, with every plot that there are data for."""

import csv
import io
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from zipfile import ZIP_DEFLATED, ZipFile

import numpy as np
import pytest
from conftest import Sweep
from made_up import made_up_diagnostics, write_run, write_sweep

from kd_lightning.report.compare import build_report
from kd_lightning.report.page import write_report
from kd_lightning.report.plots import draw
from kd_lightning.report.read import read_runs
from kd_lightning.report.verdicts import headline
from kd_lightning.utils.errors import UserError

pytestmark = pytest.mark.slow  # drawing the plots takes a second a page

CE, KD = {"method": "ce"}, {"method": "kd", "gain": 0.01}
DIAGNOSTIC = ["reliability", "class_probabilities", "temperature", "class_similarity"]
HOSTILE = "<script>alert(1)</script>|[x](http://evil.example)`$\\frac$_&\"'"


@dataclass
class Page(HTMLParser):
    """The tags and texts of a page."""

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
    def plots(self) -> list[str | None]:
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

    def write(*settings: dict[str, Any], seeds: int = 2, diagnostics: bool = False) -> Page:
        write_sweep(tmp_path / "sweep", list(settings), seeds, diagnostics)
        return report_of(tmp_path / "sweep", out=tmp_path / "out")

    return write


def test_the_page_needs_no_other_file(make: Make, tmp_path: Path) -> None:
    page = make(CE, KD, {"method": "dkd"}, seeds=3, diagnostics=True)
    assert page.plots == ["learning_curves", *DIAGNOSTIC]
    for tag, attrs in page.tags:
        assert tag not in {"script", "link", "iframe", "object", "base", "form"}
        for name, value in attrs.items():
            if name in {"src", "href", "xlink:href"}:
                assert (value or "").startswith(("#", "data:image/png;base64,")), (tag, value)
            assert not name.startswith("on")
    html = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"https?://|@import|url\((?!#)", html)
    assert "prefers-color-scheme: dark" in html


def test_the_page_begins_with_the_headline(make: Make, tmp_path: Path) -> None:
    page = make(CE, KD, seeds=5)
    sentence = headline(build_report(read_runs([tmp_path / "sweep"])))
    assert sentence.startswith("Yes, distillation helped")
    assert ("p", sentence) in page.texts
    assert page.text.index(sentence) < page.text.index("method")
    assert [data for _, data in page.texts].count("helps") == 1
    assert "chosen on validation data, never on test data" in page.text


@pytest.mark.parametrize(
    ("settings", "plots"),
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
def test_there_is_a_plot_of_what_was_swept(
    make: Make, tmp_path: Path, settings: list[dict[str, Any]], plots: list[str]
) -> None:
    page = make(*settings)
    expected = [*plots, "learning_curves"]
    assert page.plots == expected
    assert [tag for tag, _ in page.tags].count("figcaption") == len(expected)
    found = {file.stem for file in (tmp_path / "out" / "plots").iterdir()}
    assert found == set(expected)
    text = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert re.findall(r"\(plots/(\w+)\.png\)", text) == expected


def test_ids_are_unique_in_the_page(make: Make) -> None:
    page = make(CE, KD, diagnostics=True)
    names = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(names) == len(set(names))


def test_without_data_there_are_no_plots(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / m, {"method": m}) for m in ("ce", "kd")]
    for run in runs:
        (run / "metrics.csv").write_text("epoch,step,train/loss\n0,1,0.5\n")
    page = report_of(*runs, out=tmp_path / "out")
    assert page.plots == []
    assert "Plots" not in page.text
    assert not (tmp_path / "out" / "plots").exists()


def test_some_of_the_diagnostics_give_some_of_the_plots(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / m, {"method": m}) for m in ("ce", "kd")]
    arrays = made_up_diagnostics(0)
    np.savez(runs[1] / "diagnostics.npz", bins=arrays["bins"], class_probabilities=np.ones(3))
    page = report_of(*runs, out=tmp_path / "out")
    assert page.plots == ["learning_curves", "reliability"]


def test_many_classes_are_not_numbered(tmp_path: Path) -> None:
    for classes in (10, 100):
        run = write_run(tmp_path / str(classes), {"method": "kd"})
        np.savez(
            run / "diagnostics.npz", allow_pickle=False, **made_up_diagnostics(0, classes=classes)
        )
        (dark,) = [
            p for p in draw(build_report(read_runs([run]))) if p.name == "class_probabilities"
        ]
        numbers = [data for tag, data in parse(dark.svg()).texts if tag == "text" and data == "9"]
        assert len(numbers) == (8 if classes == 10 else 0)


def huge_header() -> bytes:
    """An archive whose array claims to be a petabyte."""
    header = io.BytesIO()
    shape = {"descr": "<f8", "fortran_order": False, "shape": (2**47,)}
    np.lib.format.write_array_header_1_0(header, shape)  # pyright: ignore
    return _archive({"bins.npy": header.getvalue()})


def bomb() -> bytes:
    """An archive of a few kilobytes that unpacks to half a gigabyte."""
    return _archive({"bins.npy": bytes(2**29)})


def _archive(members: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with ZipFile(file, "w", ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


@pytest.mark.parametrize(
    "damage",
    [
        lambda: b"",
        lambda: b"PK\x03\x04 cut",
        lambda: b"no archive",
        lambda: _archive({"bins.npy": b"no array"}),
        huge_header,
        bomb,
    ],
)
def test_damaged_diagnostics_are_one_line(tmp_path: Path, damage: Callable[[], bytes]) -> None:
    run = write_run(tmp_path / "0", {"method": "kd"})
    (run / "diagnostics.npz").write_bytes(damage())
    with pytest.raises(UserError, match=r"diagnostics\.npz is damaged"):
        report_of(run, out=tmp_path / "out")


def test_diagnostics_cannot_run_code(tmp_path: Path) -> None:
    run = write_run(tmp_path / "0", {"method": "kd"})
    np.savez(run / "diagnostics.npz", bins=np.array([print], dtype=object))
    with pytest.raises(UserError, match=r"diagnostics\.npz is damaged"):
        report_of(run, out=tmp_path / "out")


def test_hostile_names_remain_text(make: Make, tmp_path: Path) -> None:
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
        baseline, ours = csv.DictReader(lines)
    runs = read_runs([tmp_path / "sweep"])[3:]
    scores = [run.metrics["test/accuracy"] for run in runs]
    assert (ours["method"], ours["n"], ours["seeds"]) == ("kd", "3", "0 1 2")
    assert float(ours["test/accuracy mean"]) == pytest.approx(np.mean(scores), abs=1e-12)
    assert float(ours["test/accuracy sd"]) == pytest.approx(np.std(scores, ddof=1), abs=1e-12)
    assert (ours["baseline"], ours["verdict"], ours["paired"]) == ("method=ce", "helps", "True")
    assert (baseline["verdict"], baseline["difference"], baseline["best"]) == (
        "baseline",
        "",
        "False",
    )
    assert float(ours["difference"]) > 0
    assert float(ours["p"]) == float(ours["p_holm"]) < 0.05


def test_further_figures_have_declared_labels(make: Make) -> None:
    page = make(CE, KD)
    headers = [data for tag, data in page.texts if tag == "th" and data.strip()]
    assert headers[headers.index("loss") :] == [
        *("loss", "calibration error", "KL to teacher", "latency"),
        *("group", "seed", "validation, %", "test, %", "directory"),
    ]
    rows = [data for tag, data in page.texts if tag == "td"]
    assert "1.00" in rows  # the teacher's own calibration error, in percent


@pytest.mark.slow
def test_diagnostics_of_real_runs_give_all_plots(
    device_sweep: Sweep, digits_run: Path, tmp_path: Path
) -> None:
    expected = {device_sweep.folder: "accuracy_temperature", digits_run: "learning_curves"}
    for folder, further in expected.items():
        report_of(folder, out=tmp_path / folder.name)
        drawn = {plot.stem for plot in (tmp_path / folder.name / "plots").iterdir()}
        # a single epoch is not a curve; temperature curves are measured by an optional callback
        assert drawn == {*DIAGNOSTIC, further} - {"temperature"}


def test_errors_have_a_table(tmp_path: Path) -> None:
    for seed in range(3):
        counts = {"test/errors": 74.0 + seed, "test/errors_unseen": 14.0, "val/bias": 3.5 - seed}
        fixed = {"test/errors_corrected": 70.0, "test/errors_unseen_corrected": 9.0}
        write_run(tmp_path / f"1{seed}", {"method": "kd"}, seed, **counts, **fixed)
        write_run(tmp_path / f"2{seed}", {"method": "ce"}, seed)
    page = report_of(tmp_path, out=tmp_path / "out")
    headers = [data for tag, data in page.texts if tag == "th" and data.strip()]
    start = headers.index("errors")
    assert headers[start : start + 5] == [
        *("errors", "errors on unseen classes", "errors, corrected"),
        *("errors on unseen classes, corrected", "bias of unseen classes"),
    ]
    cells = [data for tag, data in page.texts if tag == "td"]
    start = cells.index("75 ± 1")
    expected = ["14", "70", "9", "2.5000 ± 1"]
    assert [c for c in cells[start + 1 : start + 9] if c.strip()][:4] == expected
    text = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert "## Errors on test data" in text
    assert "| 75 ± 1 | 14 |" in text
    assert "## Fidelity, calibration and cost (validation data)" in text
    assert "cost (validation data)" in page.text


def test_without_errors_there_is_no_table_of_them(make: Make) -> None:
    assert "Errors on test data" not in make(CE, KD).text


def test_the_teacher_shown_is_that_of_the_best_group(tmp_path: Path) -> None:
    shares = {"ce": 0.1, "kd": 0.3}
    for number, (method, share) in enumerate(shares.items()):
        run = write_run(tmp_path / str(number), {"method": method})
        arrays = made_up_diagnostics(0)
        arrays["teacher_class_probabilities"] = np.full((4, 10, 10), share)
        arrays["teacher_bins"] = np.tile([5.0, share, 1.0], (15, 1))
        np.savez(run / "diagnostics.npz", allow_pickle=False, **arrays)
    found = {plot.name: plot for plot in draw(build_report(read_runs([tmp_path])))}
    shown = found["class_probabilities"].figure.axes[0].images[0].get_array()
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
def test_curves_of_another_shape_are_not_drawn(tmp_path: Path, curves: np.ndarray) -> None:
    run = write_run(tmp_path / "run", {"method": "kd"}, diagnostics=True)
    arrays = {**made_up_diagnostics(0), "temperature_curves": curves}
    np.savez(run / "diagnostics.npz", allow_pickle=False, **arrays)
    page = report_of(run, out=tmp_path / "out")
    assert "class_probabilities" in page.plots
    assert "temperature" not in page.plots
