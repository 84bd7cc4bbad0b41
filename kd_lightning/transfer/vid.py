"""VID: variational lower bound of the mutual information between the networks' maps.

The teacher's map is modelled as normal: a small network predicts its mean from the student's
map, and each channel has a learned variance.

Source: Ahn et al. 2019, "Variational Information Distillation for Knowledge Transfer",
arXiv 1904.05835.
"""

import torch
from torch import Tensor, nn

from kd_lightning.losses.feature import initial_log_scale, variational_information
from kd_lightning.transfer.term import Term


class VID(Term):
    """Negative log-likelihood of the teacher's maps given the student's, summed over pairs.

    See :class:`~kd_lightning.transfer.term.Term` for the arguments.
    """

    def build(self, f_s: list[Tensor], f_t: list[Tensor], labels: Tensor) -> None:
        self.means = nn.ModuleList(_mean(s, t) for s, t in zip(f_s, f_t, strict=True))
        # A large initial variance (5, as in the authors' code) keeps the first gradients, which
        # scale as 1/σ², from pulling the student towards an untrained prediction.
        start = initial_log_scale()
        # Parameters, not buffers: the optimizer learns them and checkpoints keep them.
        self.log_scales = nn.ParameterList(torch.full((t.shape[1],), start) for t in f_t)

    def compare(self, f_s: list[Tensor], f_t: list[Tensor], index: Tensor | None) -> Tensor:
        rows = zip(self.means, self.log_scales, f_s, f_t, strict=True)
        losses = [variational_information(mean(s), t, scale) for mean, scale, s, t in rows]
        return torch.stack(losses).sum()


def _mean(f_s: Tensor, f_t: Tensor) -> nn.Module:
    """Build the network that predicts the mean, from B×C×H×W to the teacher's shape."""
    channels = f_t.shape[1]
    # Built for equal shapes, too: the prediction is part of the method, not an adapter. With
    # 1×1 convolutions, it uses only the student's features at the same position. There is no
    # final ReLU, since a mean may be negative.
    return nn.Sequential(
        nn.AdaptiveAvgPool2d((f_t.shape[2], f_t.shape[3])),
        nn.Conv2d(f_s.shape[1], channels, 1),
        nn.ReLU(),
        nn.Conv2d(channels, channels, 1),
        nn.ReLU(),
        nn.Conv2d(channels, channels, 1),
    )
