"""VID: the student's map is to say as much as it can about the teacher's.

Ahn et al. 2019, "Variational Information Distillation for Knowledge Transfer",
arXiv 1904.05835. The teacher's map is taken as normal, with a mean that a small network
reads from the student's map and a learned variance for each channel.
"""

import torch
from torch import Tensor, nn

from kd_lightning.losses.feature import initial_log_scale, variational_information
from kd_lightning.transfer.term import Term


class VID(Term):
    """Negative log-likelihood of the teacher's maps given the student's.

    See :class:`~kd_lightning.transfer.term.Term` for the arguments.
    """

    def build(self, f_s: list[Tensor], f_t: list[Tensor], labels: Tensor) -> None:
        self.means = nn.ModuleList(_mean(s, t) for s, t in zip(f_s, f_t, strict=True))
        start = initial_log_scale()
        self.log_scales = nn.ParameterList(torch.full((t.shape[1],), start) for t in f_t)

    def compare(self, f_s: list[Tensor], f_t: list[Tensor], index: Tensor) -> Tensor:
        rows = zip(self.means, self.log_scales, f_s, f_t, strict=True)
        losses = [variational_information(mean(s), t, scale) for mean, scale, s, t in rows]
        return torch.stack(losses).sum()


def _mean(f_s: Tensor, f_t: Tensor) -> nn.Module:
    channels = f_t.shape[1]
    return nn.Sequential(
        nn.AdaptiveAvgPool2d((f_t.shape[2], f_t.shape[3])),
        nn.Conv2d(f_s.shape[1], channels, 1),
        nn.ReLU(),
        nn.Conv2d(channels, channels, 1),
        nn.ReLU(),
        nn.Conv2d(channels, channels, 1),
    )
