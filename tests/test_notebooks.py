"""The notebooks: what is saved in them, and that every cell runs on the digits."""

import sys
import tempfile
from pathlib import Path
from typing import Any

import nbclient
import nbformat
import pytest

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))
by_name = pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda p: p.stem)


def read(notebook: Path) -> Any:
    return nbformat.read(notebook, as_version=4)


def outputs(content: Any) -> list[Any]:
    return [output for cell in content.cells for output in cell.get("outputs", [])]


@by_name
def test_outputs_are_saved_without_warnings_and_paths(notebook: Path) -> None:
    content = read(notebook)
    cells = [cell for cell in content.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert outputs(content)
    for output in outputs(content):
        assert output.output_type != "error"
        assert output.get("name") != "stderr"
    for place in (Path.home(), tempfile.gettempdir(), sys.prefix, notebook.parent.parent):
        assert f"{place}/" not in notebook.read_text(encoding="utf-8")


@pytest.mark.slow
@by_name
@pytest.mark.filterwarnings("ignore")  # a kernel is a program of its own
def test_notebook_runs(
    notebook: Path, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], tmp_path: Path
) -> None:
    saved, content = read(notebook), read(notebook)
    for name in ("KD_TEACHERS", "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, environment[name])
    monkeypatch.setenv("MPLCONFIGDIR", str(tmp_path))
    monkeypatch.delenv("KD_DATA_DIR", raising=False)
    nbclient.NotebookClient(content, timeout=300).execute()
    # the saved notebook has no warnings, so this one has none either
    assert kinds(content) == kinds(saved)


def kinds(content: Any) -> list[set[tuple[str, str]]]:
    """The kinds of output of each cell; a kernel may send one text in several parts."""
    return [
        {(o.output_type, o.get("name", "")) for o in cell.get("outputs", [])}
        for cell in content.cells
    ]
