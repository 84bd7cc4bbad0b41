"""FitNets: the student's map, through a regressor, is to equal the teacher's.

Romero et al. 2014, "FitNets: Hints for Thin Deep Nets", arXiv 1412.6550.
"""

import torch
from torch import Tensor, nn

from kd_lightning.losses.feature import hint
from kd_lightning.transfer.term import Term


class FitNet(Term):
    """Mean squared error of maps; a regressor only where their shapes differ.

    See :class:`~kd_lightning.transfer.term.Term` for the arguments.
    """

    def build(self, f_s: list[Tensor], f_t: list[Tensor], labels: Tensor) -> None:
        self.regressors = nn.ModuleList(regressor(s, t) for s, t in zip(f_s, f_t, strict=True))

    def compare(self, f_s: list[Tensor], f_t: list[Tensor], index: Tensor) -> Tensor:
        triples = zip(self.regressors, f_s, f_t, strict=True)
        losses = [hint(regress(s), t) for regress, s, t in triples]
        return torch.stack(losses).sum()


def regressor(f_s: Tensor, f_t: Tensor) -> nn.Module:
    """From the student's map to the teacher's shape: resize, convolve, normalise, rectify."""
    if f_s.shape == f_t.shape:
        return nn.Identity()
    channels = f_t.shape[1]
    return nn.Sequential(
        nn.AdaptiveAvgPool2d((f_t.shape[2], f_t.shape[3])),
        nn.Conv2d(f_s.shape[1], channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
    )
