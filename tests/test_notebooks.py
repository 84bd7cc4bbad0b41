"""The notebooks run from the first cell to the last."""

import os
from pathlib import Path

import nbclient
import nbformat
import pytest

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))


@pytest.mark.slow
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda p: p.stem)
@pytest.mark.filterwarnings("ignore")  # a kernel is a program of its own
def test_notebook_runs(notebook: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(os.environ, "MPLCONFIGDIR", str(tmp_path))
    content = nbformat.read(notebook, as_version=4)
    nbclient.NotebookClient(content, timeout=300).execute()
    outputs = [o for cell in content.cells for o in cell.get("outputs", [])]
    assert any("image/png" in o.get("data", {}) for o in outputs)
    assert len(NOTEBOOKS) >= 1
