"""A trained network as it is shipped: raw images in, probabilities out."""

import torch
from torch import Tensor, nn

from kd_lightning.data.types import ImageSpec


class Deployed(nn.Module):
    """A network with the normalisation of its data before it and softmax after it.

    Args:
        network: answers N×C×H×W normalised images by N×K logits.
        spec: the data's mean and standard deviation.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, spec: ImageSpec) -> None:
        super().__init__()
        self.network = network
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (spec.mean, spec.std))
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return probabilities and logits, N×K each, of uint8 images, N×C×H×W."""
        logits = self.network((images.float() / 255 - self.mean) / self.std)
        return logits.softmax(dim=1), logits
