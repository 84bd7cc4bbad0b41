"""Runs with a pretrained teacher of other classes: a linear probe, and feature matching."""

from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import Command, accuracy, read_facts, read_metrics

from kd_lightning.data.arrays import ArraysDataModule
from kd_lightning.runs.load import load_run

CODE = """
import torch
from torch import nn


class Net(nn.Module):
    \"\"\"A network of nine classes with fixed weights, as if pretrained elsewhere.\"\"\"

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        first, second = nn.Conv2d(3, 32, 3, 2), nn.Conv2d(32, 64, 3, 2)
        self.features = nn.Sequential(first, nn.ReLU(), second, nn.ReLU())
        self.pool = nn.AdaptiveAvgPool2d(2)
        self.fc = nn.Linear(256, 9)

    def forward(self, x):
        return self.fc(self.pool(self.features(x)).flatten(1))


def net(input_shape, num_classes):
    return Net()
"""


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Arguments for colour images in four classes, and a foreign network as the teacher."""
    place = tmp_path_factory.mktemp("pretrained")
    (place / "code" / "net").mkdir(parents=True)
    (place / "code" / "foreign.py").write_text(CODE)
    option = {"_target_": "foreign.net", "_partial_": True}
    (place / "code" / "net" / "foreign.yaml").write_text(yaml.dump(option))
    random = np.random.default_rng(0)
    colours = random.integers(60, 200, (4, 1, 1, 3))
    target = {f"y_{p}": np.arange(n) % 4 for p, n in (("train", 200), ("test", 80))}
    images = {
        p.replace("y", "x"): (colours[y] + random.normal(0, 40, (len(y), 16, 16, 3))).clip(0, 255)
        for p, y in target.items()
    }
    np.savez(place / "a.npz", **{k: v.astype(np.uint8) for k, v in images.items()}, **target)
    return [
        *("--config-dir", str(place / "code"), "data=arrays", f"data.path={place}/a.npz"),
        *("net@teacher=foreign", "teacher.mean=[0.5,0.5,0.5]", "teacher.std=[0.25,0.25,0.25]"),
        *("teacher.size=24", "net@student=resnet8", "data.val_size=40", "trainer.max_epochs=3"),
    ]


def archive(settings: list[str]) -> str:
    return next(s for s in settings if s.startswith("data.path=")).partition("=")[2]


@pytest.mark.slow
def test_a_probe_is_trained_once_and_distilled(
    command: Command, settings: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = (*settings, "teacher.head=linear_probe", "method=kd")
    done = command(*arguments, f"hydra.run.dir={tmp_path}/a")
    assert done.returncode == 0, done.stderr
    assert "trained first, as a linear probe" in done.stdout
    home = Path(read_facts(tmp_path / "a")["teacher"])
    assert home.name.startswith("linear_probe-")
    figures = read_metrics(home)
    assert figures["test/accuracy"] > 0.9
    assert read_metrics(tmp_path / "a")["test/teacher_accuracy"] == figures["test/accuracy"]
    monkeypatch.syspath_prepend(settings[1])
    # The stored figures are those of the stored weights.
    run, data = load_run(home, trust=True), ArraysDataModule(archive(settings), val_size=40)
    data.setup()
    inputs, target = data.splits["test"]
    logits = run.predict(inputs).log()  # pyright: ignore[reportArgumentType]
    assert accuracy(logits, target) == pytest.approx(figures["test/accuracy"])
    again = command(*arguments, "seed=1", f"hydra.run.dir={tmp_path}/b")
    assert f"from {home}" in again.stdout


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 2])
def test_feature_matching_without_labels(
    command: Command, settings: list[str], tmp_path: Path, devices: int
) -> None:
    """Few labels solve the head; the student itself learns from embeddings alone."""
    done = command(
        *settings,
        *("method=feature_matching", "teacher_from=pretrained", "data.labelled_fraction=0.25"),
        *(f"trainer.devices={devices}", f"hydra.run.dir={tmp_path}/a"),
    )
    assert done.returncode == 0, done.stderr
    figures = read_metrics(tmp_path / "a")
    assert figures["test/accuracy"] > 0.5  # 0.25 by chance
    assert figures["labels"] == 40
    assert not any("agreement" in name for name in figures)
    run, data = load_run(tmp_path / "a"), ArraysDataModule(archive(settings), val_size=40)
    data.setup()
    inputs, target = data.splits["test"]
    logits = run.predict(inputs).log()  # pyright: ignore[reportArgumentType]
    assert accuracy(logits, target) == pytest.approx(figures["test/accuracy"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("teacher.head=mlp",), "teacher.head must be linear_probe"),
        (("student.head=linear_probe",), "only a teacher can be a linear probe"),
        (
            ("method=feature_matching", "teacher_from=pretrained", "data.labelled_fraction=0"),
            "a linear probe needs labels",
        ),
    ],
)
def test_mistakes(
    command: Command, settings: list[str], tmp_path: Path, words: tuple[str, ...], message: str
) -> None:
    done = command(*settings, *words, f"hydra.run.dir={tmp_path}/a")
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "a" / "checkpoints").exists()
