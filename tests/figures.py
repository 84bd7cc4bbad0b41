"""The figures of ``metrics.json``, recomputed in float64 from the checkpoints and the data.

Every formula is written down again, in NumPy: of the package, only the networks and the files of
a run directory are used.
"""

import copy
import json
import math
from functools import cache
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from torch import nn

from kd_lightning import load_run
from kd_lightning.nets.cnn import TeacherCNN
from kd_lightning.runs.checkpoints import read_checkpoint
from kd_lightning.runs.load import Run

Array = NDArray[np.float64]
Labels = NDArray[np.int64]

SPLITS = ("val", "test")
# What a second measurement does not repeat.
TIMES = {"seconds", "latency_ms", "teacher_latency_ms"}


def check(run_dir: Path) -> None:
    """Assert that a run has the recomputed figures, the times, and no others."""
    found, expected = read(run_dir), recomputed(run_dir)
    assert {*found} - TIMES == {*expected}
    assert all(0 < found[name] < math.inf for name in TIMES & {*found})
    # Of float32: 1e-7 for a share, and the networks' rounding for what depends on probabilities.
    assert {k: found[k] for k in expected} == pytest.approx(expected, rel=2e-5, abs=1e-6)


def read(run_dir: Path) -> dict[str, Any]:
    """The figures of a run."""
    return json.loads((run_dir / "metrics.json").read_text())


def recomputed(run_dir: Path) -> dict[str, float]:
    """All figures of a finished run but its times."""
    facts = json.loads((run_dir / "run.json").read_text())
    links = [run_dir / "links" / str(i) for i in range(len(facts["links"]))]
    home = links[-1] if links else run_dir  # a chain has the figures of its last link, and more
    run = load_run(home)
    best, last = (read_checkpoint(home / "checkpoints" / f"{n}.ckpt") for n in ("best", "last"))
    others = peers(run, best)
    figures = {"epochs": last["epoch"] + 1, **sizes(run.network)}
    figures |= {f"parameters_{k}": sizes(net)["parameters"] for k, net in others.items()}
    teacher = teacher_of(run)
    taught_by = run.facts["teacher"] or f"untrained, seed {run.seed}"
    if teacher is not None:
        figures |= {f"teacher_{k}": v for k, v in sizes(teacher).items()}
        figures["compression"] = figures["teacher_parameters"] / figures["parameters"]
    bias = 0.0
    for split in SPLITS:
        y, z = samples(split)[1], logits_of(str(home), run.network, run, split)
        found = quality(z, y)
        if teacher is not None and run.facts["method"] != "feature_matching":
            z_t = logits_of(taught_by, teacher, run, split)
            found |= {f"teacher_{k}": v for k, v in quality(z_t, y).items()}
            found |= fidelity(z, z_t, y, temperature(run, best, z, z_t))
        for name, net in others.items():
            own = quality(logits(net, run, split), y)
            found |= {f"{k}_{name}": own[k] for k in ("accuracy", "loss")}
        if links:
            found |= of_links(links, split)
        if "class_bias" in run.config.callbacks:
            added = np.isin(np.arange(10), run.config.callbacks.class_bias.classes).astype(float)
            if split == "val":
                bias = found["bias"] = best_bias(z, y, added) if added.any() else 0.0
            found |= of_unseen(z, y, added, bias)
        figures |= {f"{split}/{k}": v for k, v in found.items()}
    return figures


@cache
def samples(split: str) -> tuple[torch.Tensor, Labels]:
    """The images of a split of the digits, N×1×28×28 in 0…255, and their classes, N."""
    digits: Any = load_digits()
    small = torch.from_numpy(digits.images)[:, None] / 16
    large = F.interpolate(small, size=(28, 28), mode="bilinear", align_corners=False)
    images, target = (large * 255).round(), digits.target
    if split == "test":
        return images[-360:], target[-360:]
    count = len(target) - 360
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    chosen = order[: math.ceil(0.1 * count)]
    return images[chosen], target[chosen.numpy()]


def logits(net: nn.Module, run: Run, split: str) -> Array:
    """A network's logits for a split, normalised as for a run, N×C."""
    images = samples(split)[0]
    mean, std = (torch.tensor(v).double().view(1, -1, 1, 1) for v in (run.spec.mean, run.spec.std))
    with torch.inference_mode():
        return net.double().eval()((images.double() / 255 - mean) / std).numpy()


# Many students of a session have one teacher, and the links of a chain are read several times.
known: dict[tuple[str, str, str], Array] = {}


def logits_of(path: str, net: nn.Module, run: Run, split: str) -> Array:
    """The logits of the network in a run directory, computed once, N×C."""
    key = (path, str(run.spec), split)
    if key not in known:
        known[key] = logits(net, run, split)
    return known[key]


def teacher_of(run: Run) -> nn.Module | None:
    """The network that taught a run; None if it had none."""
    if path := run.facts["teacher"]:
        return load_run(Path(path)).network
    if run.facts["role"] != "control: untrained":
        return None
    L.seed_everything(run.facts["seed"], verbose=False)  # no file holds its weights
    return TeacherCNN(run.spec.input_shape, run.spec.num_classes)


def peers(run: Run, checkpoint: dict[str, Any]) -> dict[str, nn.Module]:
    """The other students of mutual learning, by name."""
    if "students" not in run.config.model:
        return {}
    _, *others = run.config.model.students
    found = {name: copy.deepcopy(run.network).float() for name in others}
    for name, net in found.items():
        prefix = f"students.{name}."
        own = {k: v for k, v in checkpoint["state_dict"].items() if k.startswith(prefix)}
        net.load_state_dict({k.removeprefix(prefix): v for k, v in own.items()})
    return found


def sizes(net: nn.Module) -> dict[str, float]:
    """Parameters, bytes in float32, and multiply-adds of one image of 28×28."""
    kept = [*net.parameters(), *net.buffers()]
    return {
        "parameters": sum(p.numel() for p in net.parameters()),
        "bytes": sum(t.numel() * (4 if t.is_floating_point() else t.element_size()) for t in kept),
        "multiply_adds": multiply_adds(net),
    }


def multiply_adds(net: nn.Module) -> int:
    """Multiply-adds of the convolutions and linear layers."""
    counts: list[int] = []

    def count(layer: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        assert isinstance(layer, nn.Conv2d | nn.Linear)
        counts.append(output.numel() * layer.weight[0].numel())

    layers = [m for m in net.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    with torch.inference_mode():
        net.double().eval()(torch.zeros(1, 1, 28, 28).double())
    for hook in hooks:
        hook.remove()
    return sum(counts)


def log_softmax(z: Array) -> Array:
    z = z - z.max(1, keepdims=True)
    return z - np.log(np.exp(z).sum(1, keepdims=True))


def quality(z: Array, y: Labels) -> dict[str, float]:
    """Figures of one network."""
    log_p, right = log_softmax(z), z.argmax(1) == y
    p = np.exp(log_p)
    return {
        "accuracy": right.mean(),
        "loss": -log_p[np.arange(len(y)), y].mean(),
        "brier": ((p - np.eye(z.shape[1])[y]) ** 2).sum(1).mean(),
        "ece": calibration_error(p.max(1), right),
        **by_class("class_accuracy", right, y),
    }


def calibration_error(confidence: Array, right: NDArray[np.bool_]) -> float:
    """Mean distance of accuracy and confidence over 15 bins, weighted by their samples."""
    row = np.minimum((confidence * 15).astype(int), 14)
    bins = [row == b for b in range(15) if (row == b).any()]
    gaps = [b.sum() * abs(right[b].mean() - confidence[b].mean()) for b in bins]
    return sum(gaps) / len(right)


def by_class(name: str, values: NDArray[Any], y: Labels) -> dict[str, float]:
    return {f"{name}_{c}": values[y == c].mean() for c in np.unique(y)}


def fidelity(z: Array, z_t: Array, y: Labels, t: float | Array) -> dict[str, float]:
    """Figures of a student beside its teacher."""
    same, errors = z.argmax(1) == z_t.argmax(1), z_t.argmax(1) != y
    found = {
        "agreement": same.mean(),
        "kl_teacher": divergence(z_t, z),
        "kl_teacher_t": divergence(z_t / t, z / t),
        **by_class("class_agreement", same, y),
    }
    return {**found, "inherited_errors": same[errors].mean()} if errors.any() else found


def divergence(z_t: Array, z: Array) -> float:
    """Mean KL(p_t ‖ p_s)."""
    log_t, log_s = log_softmax(z_t), log_softmax(z)
    return float((np.exp(log_t) * (log_t - log_s)).sum(1).mean())


def temperature(run: Run, checkpoint: dict[str, Any], z: Array, z_t: Array) -> float | Array:
    """The temperature at the end of the best epoch: one number, or N×1."""
    chosen = run.config.method.temperature
    if not hasattr(chosen, "_target_"):
        return float(chosen)
    prefix = "objective.temperature."
    learned = {k: v for k, v in checkpoint["state_dict"].items() if k.startswith(prefix)}
    state = {k.removeprefix(prefix): v.double().numpy() for k, v in learned.items()}
    if "theta" in state:
        theta = state["theta"]
    elif state:
        hidden = np.concatenate([z, z_t], 1) @ state["layers.0.weight"].T + state["layers.0.bias"]
        theta = np.maximum(hidden, 0) @ state["layers.2.weight"].T + state["layers.2.bias"]
    else:  # linear over the whole training
        done = (checkpoint["epoch"] + 1) / run.config.trainer.max_epochs
        return chosen.start + (chosen.end - chosen.start) * done
    return 1 + 20 / (1 + np.exp(-theta))


def of_links(links: list[Path], split: str) -> dict[str, float]:
    """What a chain has beside the figures of its last link."""
    runs, y = [load_run(link) for link in links], samples(split)[1]
    z = [logits_of(str(run.path), run.network, run, split) for run in runs]
    p = [np.exp(log_softmax(one)) for one in z]
    found = {f"accuracy_{i}": (q.argmax(1) == y).mean() for i, q in enumerate(p)}
    return {**found, "ensemble_accuracy": (np.mean(p, 0).argmax(1) == y).mean()}


def of_unseen(z: Array, y: Labels, added: Array, bias: float) -> dict[str, float]:
    """What the callback ``class_bias`` counts with a bias of some classes."""
    wrong, corrected = ((z + b * added).argmax(1) != y for b in (0.0, bias))
    unseen = added[y] == 1
    return {
        "errors": wrong.sum(),
        "errors_unseen": (wrong & unseen).sum(),
        "errors_corrected": corrected.sum(),
        "errors_unseen_corrected": (corrected & unseen).sum(),
        "accuracy_corrected": 1 - corrected.mean(),
    }


def best_bias(z: Array, y: Labels, added: Array) -> float:
    """The middle of the middle one of the intervals of biases with the fewest errors."""
    lead = z[:, added == 0].max(1) - z[:, added == 1].max(1)
    edges = np.sort([*lead, lead.min() - 1, lead.max() + 1])
    middles = (edges[1:] + edges[:-1]) / 2
    errors = [((z + b * added).argmax(1) != y).sum() for b in middles]
    best = np.flatnonzero(np.array(errors) == min(errors))
    return float(middles[best[len(best) // 2]])
