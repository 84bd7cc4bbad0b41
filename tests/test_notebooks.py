"""The notebooks run from the first cell to the last, on the digits, which are soon learnt."""

from pathlib import Path

import nbclient
import nbformat
import pytest

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))


@pytest.mark.slow
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda p: p.stem)
@pytest.mark.filterwarnings("ignore")  # a kernel is a program of its own
def test_notebook_runs(
    notebook: Path, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], tmp_path: Path
) -> None:
    for name in ("KD_TEACHERS", "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, environment[name])
    monkeypatch.setenv("MPLCONFIGDIR", str(tmp_path))
    monkeypatch.delenv("KD_DATA_DIR", raising=False)
    content = nbformat.read(notebook, as_version=4)
    nbclient.NotebookClient(content, timeout=300).execute()
    outputs = [o for cell in content.cells for o in cell.get("outputs", [])]
    assert any("image/png" in o.get("data", {}) for o in outputs)
