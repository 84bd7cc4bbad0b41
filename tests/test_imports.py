"""Tests of who may import whom, read from the sources and from what Python really loads."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "kd_lightning"

# Who may import which parts of this package (beside its own folder and `errors`).
INSIDE = {
    "losses": set(),
    "schedules": set(),
    "taps": set(),
    "nets": set(),
    "metrics": {"sums", "theory"},
    "sums": set(),
    "theory": {"sums"},
    "step_terms": set(),
    "costs": {"taps"},
    "batch": set(),
    "errors": set(),
    "partials": set(),
    "process": set(),
    "sources": set(),
    "cache": {"batch", "sources", "taps"},
    "checkpoints": set(),
    "loggers": set(),
    "teachers": set(),
    "launch": {"report"},
    "seeds": set(),
    "callbacks": {"batch", "modules", "seeds", "taps"},
    "ensemble": set(),
    "transfer": {"losses", "partials", "schedules", "taps"},
    "objective": {"ensemble", "losses", "partials", "schedules", "taps", "transfer"},
    "data": {"batch", "seeds"},
    "modules": {
        *("batch", "cache", "costs", "ensemble", "metrics", "objective", "partials", "step_terms"),
        "taps",
    },
    "report": set(),
}
# Who may import which other packages; the rest may import any but Hydra.
PURE = (
    *("losses", "schedules", "taps", "nets", "metrics", "transfer", "objective", "batch"),
    *("ensemble", "sums", "theory", "step_terms", "costs"),
)
OUTSIDE = {
    **{part: {"torch", "torchmetrics"} for part in PURE},
    "nets": {"torch", "torchvision"},
    "errors": set(),
    "partials": set(),
    "seeds": set(),
    "report": {"matplotlib", "numpy", "rich", "scipy", "yaml"},
}
CONFIGURED = {"train", "launch", "runs", "build", "pretrain", "chain", "inspect"}
HYDRA = {"hydra", "omegaconf"}


def imports(file: Path) -> Iterator[str]:
    """What a file imports, anywhere in it: dotted names, the imported names included."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} imports relatively"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def broken_rules(part: str, names: Iterator[str]) -> list[str]:
    """Those of the imported names that a part of the package may not import."""
    own = INSIDE[part] | {part, "errors"} if part in INSIDE else None
    packages = OUTSIDE.get(part)
    broken = []
    for name in names:
        root, _, rest = name.partition(".")
        if root == "kd_lightning":
            allowed = own is None or rest.partition(".")[0] in own
        elif root in HYDRA:
            allowed = part in CONFIGURED
        else:
            allowed = packages is None or root in packages | sys.stdlib_module_names
        if not allowed:
            broken.append(name)
    return broken


def part_of(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.relative_to(PACKAGE).as_posix())
def test_imports_flow_one_way(file: Path) -> None:
    assert broken_rules(part_of(file), imports(file)) == []


def test_the_rules_are_about_what_is_there() -> None:
    assert {*INSIDE, *OUTSIDE, *CONFIGURED} <= {part_of(file) for file in FILES}


@pytest.mark.parametrize(
    ("part", "line"),
    [
        ("losses", "import numpy"),
        ("losses", "from kd_lightning import objective"),
        ("nets", "import lightning as L"),
        ("metrics", "from kd_lightning.modules.base import Learner"),
        ("objective", "from kd_lightning.modules import DistillationModule"),
        ("data", "def late():\n    from kd_lightning.objective import Objective"),
        ("data", "import omegaconf"),
        ("modules", "from hydra.utils import instantiate"),
        ("modules", "from kd_lightning.losses.response import soft_targets"),
        ("callbacks", "if True:\n    import hydra.core"),
        ("report", "import torch.nn"),
        ("report", "from kd_lightning.runs.directory import load_run"),
        ("teachers", "from omegaconf import DictConfig"),
    ],
)
def test_a_broken_rule_is_found(tmp_path: Path, part: str, line: str) -> None:
    file = tmp_path / "file.py"
    file.write_text(f"from pathlib import Path\n{line}\n")
    assert len(broken_rules(part, imports(file))) == 1


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("report.main", {"torch", "lightning", "numpy", *HYDRA}),
        ("losses", {"lightning", "torchvision", *HYDRA}),
        ("teachers", {"torch", "lightning", *HYDRA}),
        ("modules", HYDRA),
    ],
)
def test_what_is_loaded_in_the_end(module: str, absent: set[str]) -> None:
    code = f"import sys, kd_lightning.{module}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert f"kd_lightning.{module}" in loaded
    assert absent & loaded == set()
