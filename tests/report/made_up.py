"""Run directories as training writes them, made up: a sweep with a known outcome."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np

from kd_lightning.runs.record import settings_of
from kd_lightning.utils.run_directory import CURVES, DIAGNOSTICS, FACTS, FORMAT, METRICS

CLASSES = 10
TEACHER_PATH = "teachers/TeacherCNN-1/checkpoints/best.ckpt"
CHOICES = {
    **{"method": "kd", "model": "student", "net@student": "student_cnn", "data": "digits"},
    **{"net@teacher": "teacher_cnn", "optimizer": "adam", "trainer": "default", "cache": "disk"},
}
CONFIG: dict[str, dict[str, Any]] = {
    "method": {"alpha": 0.5, "temperature": 5.0, "response": "soft_targets"},
    "student": {"width": 16},
    "teacher": {"width": 32},
    "data": {
        "_target_": "kd_lightning.data.digits.DigitsDataModule",
        **{"batch_size": 16, "root": "data"},
    },
    "optimizer": {"lr": 0.001},
    "trainer": {"max_epochs": 8, "devices": 1},
    "cache": {"dtype": "float32"},
    "model": {},
}
# What options of method= change, and the role that the training code finds for them.
OPTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "ce": ("baseline", {"method.alpha": 0.0}),
    "label_smoothing": (
        "control: label_smoothing",
        {"method.alpha": 0.0, "method.label_smoothing": 0.1},
    ),
    "permuted": ("control: permuted", {"method.response": "permuted_soft_targets"}),
    "untrained": ("control: untrained", {"model.teacher_from": "untrained"}),
}


def write_run(
    folder: Path,
    typed: dict[str, Any],
    seed: int = 0,
    val: float = 0.97,
    test: float = 0.96,
    *,
    finished: bool = True,
    diagnostics: bool = False,
    facts: dict[str, Any] | None = None,
    **figures: Any,
) -> Path:
    """Write one run directory.

    Args:
        folder: where; it must not exist.
        typed: overrides by key, beside the seed.
        seed: of the run.
        val: validation accuracy.
        test: test accuracy.
        finished: whether it has figures.
        diagnostics: whether it has ``diagnostics.npz``.
        facts: entries of ``run.json`` that replace the made-up ones.
        figures: further figures, or other values of these.
    """
    folder.mkdir(parents=True)
    _write_json(folder / FACTS, {**_facts(typed, seed), **(facts or {})})
    if finished:
        metrics = _metrics(val, test, figures)
        _write_json(folder / METRICS, metrics)
        _write_curve(folder / CURVES, metrics)
    if diagnostics:
        arrays = made_up_diagnostics(seed, soft=typed.get("method") != "ce")
        np.savez(folder / DIAGNOSTICS, allow_pickle=False, **arrays)
    return folder


def edit(file: Path, **entries: Any) -> None:
    """Change entries of a JSON file."""
    _write_json(file, {**json.loads(file.read_text()), **entries})


def _write_json(file: Path, content: Any) -> None:
    file.write_text(json.dumps(content))


def _facts(typed: dict[str, Any], seed: int) -> dict[str, Any]:
    role, changes = OPTIONS.get(str(typed.get("method")), ("student", {}))
    config = {section: dict(values) for section, values in CONFIG.items()}
    choices = dict(CHOICES)
    for key, value in {**changes, **typed}.items():
        section, _, name = key.partition(".")
        if name and section in config:
            config[section][name] = value
        elif section in config:
            choices = {k: v for k, v in choices.items() if k.rpartition("@")[2] != key}
            choices[key] = str(value)
    if role == "student" and config["method"]["alpha"] == 0 and "transfer" not in config["method"]:
        role = "baseline"
    role = "teacher" if typed.get("model") == "teacher" else role
    return {
        **{"format": FORMAT, "task": "classification", "role": role, "seed": seed},
        **{"method": choices["method"], "processes": config["trainer"]["devices"]},
        "overrides": {**{k: str(v) for k, v in typed.items()}, "seed": str(seed), "data": "digits"},
        "settings": settings_of(config, choices, role),
        **{"teacher": TEACHER_PATH if role != "teacher" else "", "teacher_figures": {}},
        **{"links": [], "code": "abc", "versions": {}},
    }


def _metrics(val: float, test: float, figures: dict[str, Any]) -> dict[str, Any]:
    return {
        **{"val/accuracy": val, "val/teacher_accuracy": 0.985, "val/loss": 2 - 2 * val},
        **{"val/ece": 0.02, "val/teacher_ece": 0.01, "val/kl_teacher": 0.05},
        **{"val/class_accuracy_3": 0.9, "test/class_accuracy_3": 0.9},
        **{"test/accuracy": test, "test/teacher_accuracy": 0.98, "test/agreement": 0.972},
        **{"parameters": 27210, "teacher_parameters": 1199882, "latency_ms": 0.41},
        **{"seconds": 12.5, "epochs": 8},
        **figures,
    }


def _write_curve(file: Path, metrics: dict[str, Any]) -> None:
    with file.open("w", newline="") as lines:
        writer = csv.writer(lines)
        writer.writerow(["epoch", "step", "train/loss", "val/accuracy"])
        for epoch in range(8):
            rise = 0.3 * 0.5 ** (epoch + 1) - 0.3 * 0.5**8
            writer.writerow([epoch, 100 * epoch, 0.5, ""])
            writer.writerow([epoch, 100 * epoch, "", metrics["val/accuracy"] - rise])
        writer.writerow([8, 800, "", metrics["val/accuracy"]])  # the best epoch once more


def made_up_diagnostics(seed: int, soft: bool = True, classes: int = CLASSES) -> dict[str, Any]:
    """The arrays of ``diagnostics.npz``."""
    teacher = np.random.default_rng(0)  # the same for all seeds
    logits = teacher.normal(size=(classes, classes))
    logits = (logits + logits.T) + 11 * np.eye(classes)
    noise = np.random.default_rng(seed).normal(size=logits.shape) * (0.6 if soft else 2.5)
    confidence = (np.arange(15) + 0.5) / 15
    bins = np.column_stack([np.arange(15) ** 3, confidence, confidence ** (1.0 if soft else 1.5)])
    return {
        "bins": bins.astype(np.float32),
        "teacher_bins": np.column_stack([bins[:, :2], confidence**1.2]).astype(np.float32),
        "class_probabilities": _softmax(logits + noise),
        "temperatures": np.array([1, 2, 5, 20], np.float32),
        "teacher_class_probabilities": np.stack([_softmax(logits / t) for t in (1, 2, 5, 20)]),
        "temperature_curves": _curves(classes),
        "confusion": np.eye(classes, dtype=np.float32) * 30,
    }


def _curves(classes: int) -> np.ndarray:
    """Entropy, gradient and distance by temperature, with the limits that theory predicts."""
    t = np.logspace(-1, 3, 25)
    columns = np.log(classes) * t / (t + 5), 2 / (t + 4) ** 2, 1 / (t + 1)
    return np.column_stack([t, *columns]).astype(np.float32)


def _softmax(z: np.ndarray) -> np.ndarray:
    powers = np.exp(z - z.max(1, keepdims=True))
    return (powers / powers.sum(1, keepdims=True)).astype(np.float32)


def write_sweep(
    folder: Path, settings: list[dict[str, Any]], seeds: int = 5, diagnostics: bool = False
) -> Path:
    """Write a sweep of every setting and seed; wider students are more accurate.

    Args:
        folder: of the sweep.
        settings: overrides of each group; ``gain`` is what its accuracy gains.
        seeds: runs a group.
        diagnostics: whether the runs have diagnostics.
    """
    number = 0
    for setting in settings:
        typed = {k: v for k, v in setting.items() if k != "gain"}
        width = typed.get("student.width", 16)
        for seed in range(seeds):
            # most of the luck is the seed's: this is what pairs take out
            luck, own = np.random.default_rng([seed, 7]).normal(size=2) * 0.002
            own += np.random.default_rng([seed, number]).normal() * 0.0008
            test = 0.955 + 0.006 * np.log2(width / 8) + setting.get("gain", 0.0) + luck + own
            write_run(
                folder / str(number),
                typed,
                seed,
                float(test + 0.004),
                float(test),
                diagnostics=diagnostics,
                parameters=1700 * width,
            )
            number += 1
    return folder
