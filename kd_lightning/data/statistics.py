"""Mean and standard deviation of the channels of images."""

import torch
from torch import Tensor

from kd_lightning.data.stored import StoredImages

MEASURED = 2000  # images on disk, in random order, whose mean and standard deviation are computed
A_READ = 256  # of them read at once


def channel_stats(inputs: Tensor | StoredImages) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation of each channel, N×C×H×W uint8 scaled to 0…1.

    Of images on disk, the first :data:`MEASURED` are measured.
    """
    if isinstance(inputs, StoredImages):
        parts = torch.arange(min(len(inputs), MEASURED)).split(A_READ)
        blocks = [inputs[part] for part in parts]
    else:
        blocks = [inputs]
    # From histograms of the 256 values: no copy of the data in floating point is needed.
    counts = torch.stack(
        [
            torch.stack([torch.bincount(c.flatten(), minlength=256) for c in block.unbind(1)])
            for block in blocks
        ]
    ).sum(0)
    counts = counts.double()
    weights = counts / counts.sum(1, keepdim=True)
    values = torch.arange(256, dtype=torch.float64) / 255
    mean = weights @ values
    variance = (weights * (values - mean[:, None]) ** 2).sum(1)
    return mean.tolist(), variance.sqrt().clamp_min(1e-6).tolist()
