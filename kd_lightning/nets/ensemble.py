"""Several teachers as one network: M members, of different architectures if need be.

Their logits stay apart (B×M×C) until the temperature is known: the mean of probabilities at
one T is not their mean at another, and this way one cache serves all temperatures.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from kd_lightning.utils.networks import Inputs, call


class Ensemble(nn.Module):
    """Logits of all members, B×M×C, or B×L×M×C of token classifiers.

    Args:
        members: networks whose logits are B×C, or B×L×C.
    """

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, inputs: Inputs | None = None, **named: Tensor) -> Tensor:
        given = named if inputs is None else inputs
        # next to the classes, so that whatever selects samples or tokens need not know of members
        return torch.stack([call(member, given) for member in self.members], dim=-2)


def mean_probabilities(z: Tensor, temperature: float | Tensor = 1.0) -> Tensor:
    """Logits, B×C, whose softmax at T is the mean of the members' softmax at T.

    Args:
        z: logits, B×M×C of several teachers, or B×C of one, which are returned as they are.
        temperature: T > 0: a number, a scalar, or B×1 with one for each sample.
    """
    if z.dim() == 2:
        return z
    t = torch.as_tensor(temperature, dtype=z.dtype, device=z.device)
    inner = t[:, None] if t.dim() else t
    mean = (z / inner).log_softmax(-1).logsumexp(1) - math.log(z.shape[1])
    return mean * t


def mean_logits(z: Tensor, temperature: float | Tensor = 1.0) -> Tensor:
    """Mean of the members' logits; it is the same at every temperature."""
    return z if z.dim() == 2 else z.mean(1)


MEANS: dict[str, Callable[..., Tensor]] = {
    "probabilities": mean_probabilities,
    "logits": mean_logits,
}
