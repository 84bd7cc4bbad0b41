"""Tests of run directories that are damaged, or made to do harm: each costs one line."""

import csv
import io
import os
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from zipfile import ZIP_DEFLATED, ZipFile

import pytest
from made_up import edit, write_run, write_sweep

from kd_lightning.cli.console import print_line
from kd_lightning.cli.report import main
from kd_lightning.report.plots.diagnostics import load
from kd_lightning.report.read import read_runs
from kd_lightning.report.sweep import sweep_table
from kd_lightning.report.table import write_csv
from kd_lightning.runs.recorded import read_config, read_yaml
from kd_lightning.utils.errors import UserError
from kd_lightning.utils.run_directory import read_run

Break = Callable[[Path], object]
ESCAPES = "\x1b[31m\x07\x9b2J\u202eevil"
SHOWN = r"\x1b[31m\x07\x9b2J\u202eevil"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run", {"method": "kd"}, diagnostics=True)


def refused(call: Callable[[], object], *named: object) -> str:
    """The error of a call: one short line that names the file."""
    with pytest.raises(UserError) as caught:
        call()
    line = str(caught.value)
    assert line.isprintable()
    assert len(line) < 400
    assert all(str(name) in line for name in named)
    return line


def to_pipe(file: Path) -> None:
    os.mkfifo(file)


PLACED: dict[str, Break] = {
    "directory": Path.mkdir,
    "pipe": to_pipe,
    "link to itself": lambda file: file.symlink_to(file.name),
    "link to nowhere": lambda file: file.symlink_to("nowhere"),
    "endless device": lambda file: file.symlink_to("/dev/zero"),
}


@pytest.mark.parametrize("name", ["run.json", "metrics.json", "diagnostics.npz"])
@pytest.mark.parametrize("place", PLACED)
def test_what_stands_in_place_of_a_file_is_named(run: Path, name: str, place: str) -> None:
    (run / name).unlink()
    PLACED[place](run / name)
    assert "is not a file" in refused(lambda: load(read_run(run)), run / name)


JSON: dict[str, tuple[str, str]] = {
    "nested": ("[" * 100_000, "recursion"),
    "digits": ('{"a": ' + "9" * 1_000_000 + "}", "a number of 1,000,000 digits"),
    "string": ('{"a": "' + "a" * 1_000_000 + '"}', "a string of 1,000,000 characters"),
    "key": ('{"' + "a" * 1_000_000 + '": 1}', "a string of 1,000,000 characters"),
    "large": (" " * 9_000_000 + "{}", "larger than 8 MiB"),
    "surrogate": ('{"a": ["\\ud800"]}', "not valid Unicode"),
    "list": ("[]", "holds a list"),
}


@pytest.mark.parametrize("name", ["run.json", "metrics.json"])
@pytest.mark.parametrize("kind", JSON)
def test_json_of_no_run_is_refused(run: Path, name: str, kind: str) -> None:
    text, why = JSON[kind]
    (run / name).write_text(text)
    assert why in refused(lambda: read_run(run), run / name)


def test_bytes_that_are_no_text_are_refused(run: Path) -> None:
    (run / "metrics.json").write_bytes(b"\xff\xfe{}")
    assert "not UTF-8" in refused(lambda: read_run(run), run / "metrics.json")


@pytest.mark.parametrize("links", [[1], ["a", None], ["a"] * 1000])
def test_links_of_another_type_are_refused(run: Path, links: list[Any]) -> None:
    edit(run / "run.json", links=links)
    refused(lambda: read_runs([run]), run / "run.json", "'links'")


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join(9 * [f'*a{i - 1}'])}]\n" for i in range(1, 12)
)
YAML: dict[str, tuple[str, str]] = {
    "bomb": (BOMB, "references (*a0)"),
    "recursive": ("a: &a [*a]", "references (*a)"),
    "nested": ("[" * 100_000, "nested too deeply"),
    "tag": ("!!python/object/apply:os.mkdir [made]", "python/object/apply"),
    "name": ("a: !!python/name:os.system", "python/name"),
    "several": ("a: 1\n---\nb: 1\n", "document"),
    "large": ("a: " + "b" * 2_000_000, "larger than 1 MiB"),
    "digits": ("a: " + "9" * 9_000, "4300 digits"),
}


@pytest.mark.parametrize("read", [read_yaml, read_config])
@pytest.mark.parametrize("kind", YAML)
def test_yaml_that_is_not_plain_is_refused(
    tmp_path: Path, read: Callable[[Path], object], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text, why = YAML[kind]
    (tmp_path / "config.yaml").write_text(text)
    assert why in refused(lambda: read(tmp_path / "config.yaml"), tmp_path / "config.yaml")
    assert [p.name for p in tmp_path.iterdir()] == ["config.yaml"]


def member(shape: str, kind: str = "<f4", body: bytes = b"") -> bytes:
    """An array as NumPy writes it, whose header may claim anything."""
    header = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + body


MEMBERS = {
    "240 TB": member("(60000000000000,)", body=b"\0" * 60),
    "more than there is": member("(15, 3)"),
    "endless by nothing": member("(99999999999999, 0)", body=b"\0"),
    "objects": member("(1,)", "|O", body=b"\x80"),
    "text": member("(1,)", "<U1", body=b"\0" * 4),
    "no size": member("(99999999999999,)", "|V0"),
    "negative": member("(-1,)"),
    "code": member("__import__('os').mkdir('made')"),
    "brackets": member("(" * 5000),
    "nothing": b"",
    "bomb": member("(100000000,)", body=b"\0" * 400_000_000),
}


@pytest.mark.parametrize("kind", [*MEMBERS])
def test_arrays_that_are_not_what_they_claim_are_refused(run: Path, kind: str) -> None:
    with ZipFile(run / "diagnostics.npz", "w", ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("bins.npy", MEMBERS[kind])
    refused(lambda: load(read_run(run)), run / "diagnostics.npz", "is damaged")


def test_archives_that_are_damaged_are_refused(run: Path) -> None:
    file = run / "diagnostics.npz"
    content = file.read_bytes()
    many = io.BytesIO()
    with ZipFile(many, "w") as archive:
        for number in range(200):
            archive.writestr(f"{number}.npy", member("()", body=b"\0" * 4))
    for damaged in (content[:-30], content[:1000], b"", b"PK", many.getvalue()):
        file.write_bytes(damaged)
        refused(lambda: load(read_run(run)), file)
    file.write_bytes(content)
    assert "bins" in load(read_run(run))


CURVES = {
    "nul": "epoch,val/accuracy\n0,\0\n",
    "long": "epoch,val/accuracy\n0," + "1" * 1_000_000,
    "words": "epoch,val/accuracy\none,\x1b[31m\n",
    "infinite": "epoch,val/accuracy\ninf,0.5\n",
}


@pytest.mark.parametrize("kind", CURVES)
def test_curves_that_are_none_are_named(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_sweep(tmp_path / "sweep", [{"method": "ce"}], seeds=2) / "1" / "metrics.csv"
    file.write_text(CURVES[kind])
    arguments = ["kd-report", str(tmp_path / "sweep"), "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as error:
        main()
    line = str(error.value.code)
    assert line.startswith(f"error: {file} cannot be read: ")
    assert line.isprintable()
    assert not (tmp_path / "out").exists()


def test_control_characters_are_shown_and_not_obeyed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = write_sweep(tmp_path / f"s{ESCAPES}", [{"method": "ce"}, {"method": ESCAPES}], 2)
    edit(sweep / "3" / "run.json", **{"code": ESCAPES, "role": ESCAPES})
    for folder in (sweep, sweep / "3"):
        monkeypatch.setattr(sys, "argv", ["kd-report", str(folder), "--out", str(tmp_path / "o")])
        monkeypatch.setenv("COLUMNS", "400")
        main()
        printed = capsys.readouterr().out
        assert printed.replace("\n", "").isprintable()
        assert SHOWN in printed
    for name in ("report.html", "report.md", "report.csv"):
        text = (tmp_path / "o" / name).read_text(encoding="utf-8")
        assert text.replace("\n", "").isprintable(), name
    assert SHOWN in (tmp_path / "o" / "report.html").read_text(encoding="utf-8")
    (sweep / "0" / "run.json").write_text("{")
    with pytest.raises(SystemExit) as error:
        main_of(sweep, monkeypatch)
    assert str(error.value.code).isprintable()
    print_line("one\x1b\ntwo")
    assert capsys.readouterr().out == "one\\x1b\ntwo\n"


def main_of(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["kd-report", str(folder)])
    main()


def test_an_override_of_several_lines_stays_in_its_row(tmp_path: Path) -> None:
    settings = [{"method": "ce"}, {"method": "kd\nerror: not from here"}]
    rows = sweep_table(write_sweep(tmp_path, settings, seeds=1)).rows
    assert rows[1][1] == "kd\\nerror: not from here"


FORMULAS = {
    "=1+1": "'=1+1",
    "+cmd|' /C calc'!A0": "'+cmd|' /C calc'!A0",
    "-2+3": "'-2+3",
    "@SUM(A1)": "'@SUM(A1)",
    "\t=1": "'\t=1",
    "-inf": "'-inf",
    "-0.5": "-0.5",
    "+1e-3": "+1e-3",
    "kd=5": "kd=5",
    "": "",
}


def test_cells_are_no_formulas(tmp_path: Path) -> None:
    write_csv(tmp_path / "a.csv", [[*FORMULAS], [-1.5, None, True]])
    with (tmp_path / "a.csv").open(newline="", encoding="utf-8") as file:
        cells, others = csv.reader(file)
    assert cells == [*FORMULAS.values()]
    assert others == ["-1.5", "", "True"]


def test_tables_of_a_sweep_have_no_formulas(tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path, [{"method": "=1", "=2": "a"}, {"method": "-1", "=2": "b"}], 1)
    sweep_table(sweep).write(sweep)
    with (sweep / "sweep.csv").open(newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    assert "'=2" in header
    assert [row[header.index("method")] for row in rows] == ["", "'=1", "-1"]
