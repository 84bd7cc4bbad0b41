"""Several teachers as one: M networks, different ones allowed, on the same inputs.

Their answers stay apart (B×M×C) until the temperature is known, because the mean of
probabilities at T is not that at another T; so one cache serves all temperatures.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn


class Ensemble(nn.Module):
    """Logits of all members, B×M×C.

    Args:
        members: networks from B×… to logits B×C.
    """

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.stack([member(inputs) for member in self.members], dim=1)


def mean_probabilities(z: Tensor, temperature: float | Tensor = 1.0) -> Tensor:
    """Logits, B×C, whose softmax at T is the mean of the members' softmax at T.

    Args:
        z: B×M×C, or the logits of one teacher, B×C, which stay as they are.
        temperature: a number, or a tensor of one or, as B×1, of each sample.
    """
    if z.dim() == 2:
        return z
    t = torch.as_tensor(temperature, dtype=z.dtype, device=z.device)
    inner = t[:, None] if t.dim() else t
    mean = (z / inner).log_softmax(-1).logsumexp(1) - math.log(z.shape[1])
    return mean * t


def mean_logits(z: Tensor, temperature: float | Tensor = 1.0) -> Tensor:
    """The mean of the members' logits, at any temperature."""
    return z if z.dim() == 2 else z.mean(1)


MEANS: dict[str, Callable[..., Tensor]] = {
    "probabilities": mean_probabilities,
    "logits": mean_logits,
}
