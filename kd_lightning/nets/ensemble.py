"""Ensembles: M teachers, of any architectures, as one network with logits B×M×C."""

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
        # Stacked, not averaged: the mean of probabilities depends on T, so one cache of the
        # members' logits serves all temperatures. Members come next to the classes, where
        # selecting samples or tokens does not concern them.
        return torch.stack([call(member, given) for member in self.members], dim=-2)


def mean_probabilities(z: Tensor, temperature: float | Tensor = 1.0) -> Tensor:
    """Return logits whose softmax at T is the mean of the members' softmax at T.

    Args:
        z: logits, B×M×C, or B×C of a single teacher, which are returned unchanged.
        temperature: T > 0, dimensionless; a number, a scalar tensor, or B×1.

    Returns:
        Logits, B×C.
    """
    # Losses take logits and soften them, so the mean is turned back into logits. In logarithms,
    # since the logarithm of a mean of underflowed probabilities would be −∞.
    if z.dim() == 2:
        return z
    t = torch.as_tensor(temperature, dtype=z.dtype, device=z.device)
    inner = t[:, None] if t.dim() else t
    mean = (z / inner).log_softmax(-1).logsumexp(1) - math.log(z.shape[1])
    return mean * t


def mean_logits(z: Tensor, temperature: float | Tensor = 1.0) -> Tensor:
    """Return the mean of the members' logits, B×C, which does not depend on T."""
    # The geometric instead of the arithmetic mean of the distributions; TAKD's code uses it.
    return z if z.dim() == 2 else z.mean(1)


# The values of the setting method.ensemble.
MEANS: dict[str, Callable[..., Tensor]] = {
    "probabilities": mean_probabilities,
    "logits": mean_logits,
}
