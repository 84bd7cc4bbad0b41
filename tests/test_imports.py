"""Import rules of each folder, read from the sources and from what Python really loads.

The table is DESIGN's section "Who may import whom", with three additions: objective, tasks and
modules also import the types that flow between them (data.types, nets.taps, nets.ensemble).
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "kd_lightning"

BELOW_RUNS = {
    "compress",
    *("utils", "losses", "schedules", "nets", "metrics", "data", "transfer", "objective"),
    *("tasks", "teachers", "modules", "callbacks"),
}
# Which parts of this package a folder or top-level file may import, beside itself. A dotted
# name allows that module alone.
INSIDE = {
    "utils": set(),
    "losses": {"utils"},
    "schedules": {"utils"},
    "nets": {"utils"},
    "metrics": {"utils"},
    "data": {"utils"},
    "transfer": {"utils", "losses", "nets", "schedules"},
    "objective": {"utils", "losses", "schedules", "transfer", "nets", "data.types"},
    "tasks": {"utils", "metrics", "losses", "data.types", "nets.preprocessing"},
    "teachers": {"utils", "nets", "data.types"},
    "modules": {
        *("utils", "objective", "tasks", "teachers", "metrics", "data.types", "nets"),
        "transfer",
    },
    "compress": {"utils", "data.types"},
    "callbacks": {"utils", "modules", "metrics", "data.types", "compress"},
    "runs": BELOW_RUNS,
    "sweeps": {*BELOW_RUNS, "runs"},
    "report": {"utils", "metrics.figures"},
    "cli": {*BELOW_RUNS, "runs", "report", "sweeps"},
}
ROOT = "kd_lightning"  # __init__.py resolves public names late; it says the version

# Which other packages a folder may import beside Python's own; the rest may import any but
# Hydra and OmegaConf.
TORCH = {"torch", "torchmetrics"}
OUTSIDE = {
    "losses": TORCH,
    "schedules": TORCH,
    "transfer": TORCH,
    "objective": TORCH,
    "metrics": TORCH,
    "tasks": TORCH,
    "nets": {"torch", "torchvision", "timm", "safetensors"},
    "utils": {"torch", "rich"},
    "compress": {"torch", "numpy", "onnx", "onnxruntime", "onnxscript", "executorch", "torchao"},
    "report": {"jinja2", "markupsafe", "matplotlib", "numpy", "scipy"},
}
CONFIGURED = {"cli", "runs", "sweeps"}
HYDRA = {"hydra", "omegaconf"}


def imports(file: Path) -> Iterator[str]:
    """Yield what a file imports, anywhere in it: dotted names, the imported names included."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} imports relatively"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def broken_rules(part: str, names: Iterator[str]) -> list[str]:
    """The imported names that a part of the package may not import."""
    return [name for name in names if not _is_allowed(part, name)]


def _is_allowed(part: str, name: str) -> bool:
    root, _, rest = name.partition(".")
    if root == ROOT:
        allowed = {part, "__version__", "STARTED", *INSIDE[part]}
        return any(f"{rest}.".startswith(f"{prefix}.") for prefix in allowed)
    if root in HYDRA:
        return part in CONFIGURED
    return part not in OUTSIDE or root in OUTSIDE[part] | sys.stdlib_module_names


def part_of(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


FILES = [f for f in sorted(PACKAGE.rglob("*.py")) if f != PACKAGE / "__init__.py"]


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.relative_to(PACKAGE).as_posix())
def test_imports_flow_one_way(file: Path) -> None:
    assert broken_rules(part_of(file), imports(file)) == []


def test_every_part_has_a_rule_and_every_rule_a_part() -> None:
    assert INSIDE.keys() == {part_of(file) for file in FILES}


@pytest.mark.parametrize(
    ("part", "line"),
    [
        ("losses", "import numpy"),
        ("losses", "from kd_lightning import objective"),
        ("nets", "import lightning as L"),
        ("metrics", "from kd_lightning.modules.base import BaseModule"),
        ("objective", "from kd_lightning.modules import DistillationModule"),
        ("data", "def late():\n    from kd_lightning.objective import Objective"),
        ("data", "import omegaconf"),
        ("modules", "from hydra.utils import instantiate"),
        ("modules", "from kd_lightning.losses.response import soft_targets"),
        ("tasks", "from kd_lightning.data.images import ImageDataModule"),
        ("callbacks", "if True:\n    import hydra.core"),
        ("report", "import torch.nn"),
        ("report", "from kd_lightning.metrics.evaluation import Evaluation"),
        ("report", "from kd_lightning.runs.load import load_run"),
        ("runs", "from kd_lightning.cli.console import console"),
        ("teachers", "from omegaconf import DictConfig"),
    ],
)
def test_a_broken_rule_is_found(tmp_path: Path, part: str, line: str) -> None:
    file = tmp_path / "file.py"
    file.write_text(f"from pathlib import Path\n{line}\n")
    assert len(broken_rules(part, imports(file))) == 1


def test_only_the_command_line_prints() -> None:
    printing = {
        part_of(file)
        for file in FILES
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "print"
    }
    assert printing == {"cli"}


@pytest.mark.slow  # a process for each
@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("cli.report", {"torch", "lightning", "numpy", *HYDRA}),
        ("losses", {"lightning", "torchvision", *HYDRA}),
        ("modules", HYDRA),
        ("utils.run_directory", {"torch", "numpy", "yaml", *HYDRA}),
        ("metrics.figures", {"torch", "numpy", *HYDRA}),
    ],
)
def test_what_an_import_loads(module: str, absent: set[str]) -> None:
    code = f"import sys, kd_lightning.{module}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert f"kd_lightning.{module}" in loaded
    assert absent & loaded == set()


@pytest.mark.parametrize("word", ["--help", "method=unheard", "trainer.max_epoch=3"])
def test_help_and_wrong_settings_wait_for_no_import(word: str) -> None:
    code = f"""
import atexit, sys
from kd_lightning.cli.train import main
atexit.register(lambda: print(*sys.modules))
sys.argv = ["train.py", {word!r}]
main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == (word != "--help"), done.stderr
    assert {"torch", "lightning"} & set(done.stdout.splitlines()[-1].split()) == set()


def test_the_package_itself_imports_nothing_of_its_own() -> None:
    code = "import sys, kd_lightning; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert {name for name in loaded if name.startswith("kd_lightning.")} == set()
    assert {"torch", "numpy"} & loaded == set()


def test_public_names_are_there() -> None:
    import kd_lightning

    for name in kd_lightning.__all__:
        assert getattr(kd_lightning, name).__name__.rpartition(".")[2] == name
        assert name in dir(kd_lightning)
    assert issubclass(kd_lightning.transfer.FitNet, kd_lightning.transfer.Term)
    assert callable(kd_lightning.losses.soft_targets)
    with pytest.raises(AttributeError, match="no attribute 'Teacher'"):
        kd_lightning.Teacher  # noqa: B018
