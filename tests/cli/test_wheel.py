"""Tests of the wheel: it contains the configuration, and its command runs without a clone."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, read_facts, read_metrics

pytestmark = pytest.mark.slow


def run(
    *arguments: str | Path, cwd: Path, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(arguments, cwd=cwd, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel built from this tree."""
    folder = tmp_path_factory.mktemp("wheel")
    build = (sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder)
    run(*build, ROOT, cwd=folder)
    (wheel,) = folder.glob("*.whl")
    return wheel


def test_wheel_contains_package_and_configuration(wheel: Path) -> None:
    packages = (ROOT / "kd_lightning", ROOT / "hydra_plugins")
    files = (p for package in packages for p in package.rglob("*") if p.is_file())
    tree = {str(p.relative_to(ROOT)) for p in files if p.suffix != ".pyc"}
    tree |= {f"kd_lightning/{p.relative_to(ROOT)}" for p in (ROOT / "conf").rglob("*.yaml")}
    names = {n for n in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in n}
    assert names == tree


def test_command_runs_on_two_processes_outside_the_clone(
    wheel: Path, digits_run: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    pip = (sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    run(*pip, "--no-deps", "--no-index", "--target", site, wheel, cwd=elsewhere)
    done = run(
        *(site / "bin" / "kd-train", "data=digits", "trainer.max_epochs=1", "trainer.devices=2"),
        cwd=elsewhere,
        env={**environment, "PYTHONPATH": str(site)},
    )
    assert "Training the teacher in" not in done.stdout  # found by the same key as in the clone
    (finished,) = elsewhere.glob("outputs/*/*/metrics.json")
    facts = read_facts(finished.parent)
    assert facts["teacher"] == read_facts(digits_run)["teacher"]
    assert (facts["code"], facts["processes"]) == ("", 2)
    assert read_metrics(finished.parent)["epochs"] == 1
    hydra = yaml.safe_load((finished.parent / ".hydra" / "hydra.yaml").read_text())
    sources = {s["provider"]: s["path"] for s in hydra["hydra"]["runtime"]["config_sources"]}
    assert sources["main"] == str(site / "kd_lightning" / "conf")
    assert [p.name for p in elsewhere.iterdir()] == ["outputs"]
