"""Verification of an exported file by what its own runtime answers."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kd_lightning.compress.deployed import Deployed
from kd_lightning.data.types import ImageSpec

BATCHES = (1, 7, 64)  # sizes in turn, so that a file with a fixed size fails
TOLERANCE = 1e-4  # of the largest logit
INT8_LOSS = 0.01  # of accuracy, at most
INT8_SHARE = 0.95  # of the operators with weights, at least

# Probabilities and logits, N×K each, of uint8 images, N×C×H×W, by an exported file.
Runtime = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


def verify(
    runtime: Runtime,
    network: nn.Module,
    spec: ImageSpec,
    samples: Iterable[tuple[Tensor, Tensor]],
    int8: bool = False,
    batches: Sequence[int] = BATCHES,
) -> dict[str, Any]:
    """Compare an exported file with the network it was written from.

    Args:
        runtime: runs the file: probabilities and logits of uint8 images. Its ``int8_share`` is
            the share of the operators with weights that compute in int8, 0 if it has none.
        network: the network, in evaluation mode, on the CPU.
        spec: shape and normalisation of its data.
        samples: uint8 images, N×C×H×W, and their labels, N, in any number of parts.
        int8: whether the file is meant to compute in int8.
        batches: sizes of batches that the file is asked for, in turn.

    Returns:
        Numbers by name: ``images``, ``accuracy`` of the file and ``checkpoint_accuracy``, their
        ``agreement``, ``largest_difference`` of the logits and ``largest_logit``; and whether the
        file ``passed``: all answers agree, and the difference is at most :data:`TOLERANCE` of the
        largest logit. A file in int8 passes by other rules: its accuracy is at most
        :data:`INT8_LOSS` below the checkpoint's, and its ``int8_share`` at least
        :data:`INT8_SHARE`.
    """
    deployed = Deployed(network, spec).eval()
    count = agreed = correct = expected = 0
    difference, scale, is_finite = 0.0, 0.0, True
    for images, target in samples:
        with torch.inference_mode():
            exact = deployed(images)[1].numpy()
        found = np.concatenate([runtime(part)[1] for part in _parts(images.numpy(), batches)])
        ours, theirs, labels = exact.argmax(1), found.argmax(1), target.numpy()
        count += len(labels)
        agreed += int((ours == theirs).sum())
        correct += int((theirs == labels).sum())
        expected += int((ours == labels).sum())
        # NaN would equal NaN, and everything is small beside infinity.
        is_finite &= bool(np.isfinite(found).all() and np.isfinite(exact).all())
        difference = max(difference, float(np.abs(exact - found).max()))
        scale = max(scale, float(np.abs(exact).max()))
    passed = agreed == count and difference <= TOLERANCE * scale
    share = getattr(runtime, "int8_share", 0.0) if int8 else None
    if share is not None:
        passed = expected - correct <= INT8_LOSS * count and share >= INT8_SHARE
    return {
        "images": count,
        "accuracy": correct / count,
        "checkpoint_accuracy": expected / count,
        "agreement": agreed / count,
        "largest_difference": difference,
        "largest_logit": scale,
        **({} if share is None else {"int8_share": share}),
        "passed": passed and is_finite,
    }


def _parts(images: np.ndarray, batches: Sequence[int]) -> Iterable[np.ndarray]:
    start, turn = 0, 0
    while start < len(images):
        size = batches[turn % len(batches)]
        yield images[start : start + size]
        start, turn = start + size, turn + 1
