"""FitNets: regression of the teacher's maps from the student's.

Source: Romero et al. 2014, "FitNets: Hints for Thin Deep Nets", arXiv 1412.6550.
"""

import torch
from torch import Tensor, nn

from kd_lightning.losses.feature import hint
from kd_lightning.transfer.term import Term


class FitNet(Term):
    """Hint loss of each pair of maps, after a regressor where their shapes differ.

    See :class:`~kd_lightning.transfer.term.Term` for the arguments.
    """

    # The paper pretrains the student's first half on the hint, then trains all of it by KD.
    # Here, as in most later comparisons, the hint is a term of one joint training.

    def build(self, f_s: list[Tensor], f_t: list[Tensor], labels: Tensor) -> None:
        self.regressors = nn.ModuleList(regressor(s, t) for s, t in zip(f_s, f_t, strict=True))

    def compare(self, f_s: list[Tensor], f_t: list[Tensor], index: Tensor | None) -> Tensor:
        triples = zip(self.regressors, f_s, f_t, strict=True)
        losses = [hint(regress(s), t) for regress, s, t in triples]
        return torch.stack(losses).sum()


def regressor(f_s: Tensor, f_t: Tensor) -> nn.Module:
    """Build an adapter from the student's map to the shape of the teacher's.

    Args:
        f_s: a map of the student, B×C×H×W.
        f_t: a map of the teacher, B×C'×H'×W'.

    Returns:
        Pooling, convolution, batch norm and ReLU; the identity for equal shapes.
    """
    # The identity, because a needless regressor could absorb what the student should learn.
    if f_s.shape == f_t.shape:
        return nn.Identity()
    channels = f_t.shape[1]
    return nn.Sequential(
        # A padded 3×3 convolution after pooling. The paper chooses an unpadded kernel as large
        # as the difference in size, which fails where the student's map is the smaller one.
        nn.AdaptiveAvgPool2d((f_t.shape[2], f_t.shape[3])),
        nn.Conv2d(f_s.shape[1], channels, 3, padding=1, bias=False),  # the batch norm has one
        nn.BatchNorm2d(channels),
        # The teacher's map usually follows a ReLU, so the prediction should not be negative.
        nn.ReLU(),
    )
