"""Verification of an exported file by what its own runtime answers."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kd_lightning.compress.deployed import Deployed
from kd_lightning.data.types import ImageSpec

BATCHES = (1, 7, 64)  # sizes in turn, so that a file with a fixed size fails
TOLERANCE = 1e-4  # of the largest logit

Runtime = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


def verify(
    runtime: Runtime,
    network: nn.Module,
    spec: ImageSpec,
    samples: Iterable[tuple[Tensor, Tensor]],
) -> dict[str, Any]:
    """Compare an exported file with the network it was written from.

    Args:
        runtime: runs the file: probabilities and logits of uint8 images.
        network: the network, in evaluation mode, on the CPU.
        spec: shape and normalisation of its data.
        samples: uint8 images, N×C×H×W, and their labels, N, in any number of parts.

    Returns:
        Numbers by name: ``images``, ``accuracy`` of the file and ``checkpoint_accuracy``, their
        ``agreement``, ``largest_difference`` of the logits and ``largest_logit``; and whether the
        file ``passed``: all answers agree, and the difference is at most :data:`TOLERANCE` of the
        largest logit.
    """
    deployed = Deployed(network, spec).eval()
    count = agreed = correct = expected = 0
    difference = scale = 0.0
    for images, target in samples:
        with torch.inference_mode():
            exact = deployed(images)[1].numpy()
        found = np.concatenate([runtime(part)[1] for part in _parts(images.numpy())])
        ours, theirs, labels = exact.argmax(1), found.argmax(1), target.numpy()
        count += len(labels)
        agreed += int((ours == theirs).sum())
        correct += int((theirs == labels).sum())
        expected += int((ours == labels).sum())
        difference = max(difference, float(np.abs(exact - found).max()))
        scale = max(scale, float(np.abs(exact).max()))
    return {
        "images": count,
        "accuracy": correct / count,
        "checkpoint_accuracy": expected / count,
        "agreement": agreed / count,
        "largest_difference": difference,
        "largest_logit": scale,
        "passed": agreed == count and difference <= TOLERANCE * scale,
    }


def _parts(images: np.ndarray) -> Iterable[np.ndarray]:
    start, turn = 0, 0
    while start < len(images):
        size = BATCHES[turn % len(BATCHES)]
        yield images[start : start + size]
        start, turn = start + size, turn + 1
