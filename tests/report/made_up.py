"""Run directories as training leaves them, made up: a sweep with a story to tell."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import yaml

CLASSES = 10
# What options of method= put into the configuration, beside alpha.
OPTIONS: dict[str, dict[str, Any]] = {
    "ce": {"method": {"alpha": 0.0}},
    "label_smoothing": {"method": {"alpha": 0.0, "label_smoothing": 0.1}},
    "permuted": {
        "method": {"response": {"_target_": "kd_lightning.losses.controls.permuted_soft_targets"}}
    },
    "untrained": {"model": {"_target_": "kd_lightning.modules.untrained.with_untrained_teacher"}},
}


def write_run(
    folder: Path,
    typed: dict[str, Any],
    seed: int = 0,
    val: float = 0.97,
    test: float = 0.96,
    *,
    finished: bool = True,
    evidence: bool = False,
    **figures: Any,
) -> Path:
    """One run directory; what was typed ends up in its configuration as Hydra would have it."""
    (folder / ".hydra").mkdir(parents=True)
    config: dict[str, Any] = {
        "seed": seed,
        "method": {"alpha": 0.5, "temperature": 5.0},
        "student": {"width": 16},
    }
    for section, settings in OPTIONS.get(str(typed.get("method")), {}).items():
        config.setdefault(section, {}).update(settings)
    for key, value in typed.items():
        section, _, name = key.partition(".")
        if name:
            config.setdefault(section, {})[name] = value
    lines = [*(f"{k}={v}" for k, v in typed.items()), f"seed={seed}", "data=digits"]
    (folder / ".hydra" / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump(lines))
    if finished:
        metrics = _metrics(val, test, seed, figures)
        (folder / "metrics.json").write_text(json.dumps(metrics))
        _write_curve(folder / "metrics.csv", metrics)
    if evidence:
        arrays = made_up_evidence(seed, soft=typed.get("method") != "ce")
        np.savez(folder / "evidence.npz", allow_pickle=False, **arrays)
    return folder


def _metrics(val: float, test: float, seed: int, figures: dict[str, Any]) -> dict[str, Any]:
    return {
        **{"val/accuracy": val, "val/teacher_accuracy": 0.985, "val/loss": 2 - 2 * val},
        **{"val/ece": 0.02, "val/teacher_ece": 0.01, "val/kl_teacher": 0.05},
        **{"test/accuracy": test, "test/teacher_accuracy": 0.98, "test/agreement": 0.972},
        **{"parameters": 27210, "teacher_parameters": 1199882, "latency_ms": 0.41},
        **{"seconds": 12.5, "seed": seed, "epochs": 8, "commit": "abc", "role": "student"},
        **{"teacher": "teachers/TeacherCNN-1/checkpoints/best.ckpt"},
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
        writer.writerow([8, 800, "", metrics["val/accuracy"]])  # the best epoch, once more


def made_up_evidence(seed: int, soft: bool = True, classes: int = CLASSES) -> dict[str, Any]:
    """Arrays as training code leaves them."""
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
    """Entropy, gradient and distance as the laws have them, by temperature."""
    t = np.logspace(-1, 3, 25)
    columns = np.log(classes) * t / (t + 5), 2 / (t + 4) ** 2, 1 / (t + 1)
    return np.column_stack([t, *columns]).astype(np.float32)


def _softmax(z: np.ndarray) -> np.ndarray:
    powers = np.exp(z - z.max(1, keepdims=True))
    return (powers / powers.sum(1, keepdims=True)).astype(np.float32)


def write_sweep(
    folder: Path, settings: list[dict[str, Any]], seeds: int = 5, evidence: bool = True
) -> Path:
    """A sweep of every setting and seed: distillation helps, more at T = 5 and in a wide student.

    ``settings`` may hold, beside what is typed, ``gain``: what its accuracy gains.
    """
    number = 0
    for setting in settings:
        typed = {k: v for k, v in setting.items() if k != "gain"}
        width = typed.get("student.width", 16)
        for seed in range(seeds):
            luck, own = np.random.default_rng([seed, 7]).normal(size=2) * 0.002
            own += np.random.default_rng([seed, number]).normal() * 0.0008
            base = 0.955 + 0.006 * np.log2(width / 8) + setting.get("gain", 0.0)
            write_run(
                folder / str(number),
                typed,
                seed,
                float(base + luck + own + 0.004),
                float(base + luck + own),
                evidence=evidence,
                parameters=1700 * width,
            )
            number += 1
    return folder
