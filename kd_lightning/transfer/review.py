"""ReviewKD: fused maps of the student's stages, compared with the teacher's maps.

From the last stage to the first, each stage's map is fused with the result of the later
stages, by weights that a small convolution computes from both. A later stage of the student
is thus also trained by earlier stages of the teacher.

Source: Chen et al. 2021, "Distilling Knowledge via Knowledge Review", arXiv 2104.09044.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd_lightning.losses.feature import hierarchical_context
from kd_lightning.transfer.term import Term


class Review(Term):
    """Hierarchical context loss between fused maps of the student and maps of the teacher.

    See :class:`~kd_lightning.transfer.term.Term` for the arguments. Layers are given from
    early to late.
    """

    # The authors' CIFAR networks add the pooled embedding as a further stage, of size 1×1.
    # Here only maps are stages, so that any pair of networks with maps works.
    role = "maps"

    def build(self, f_s: list[Tensor], f_t: list[Tensor], labels: Tensor) -> None:
        width = min(512, f_s[-1].shape[1])  # as in the authors' code
        last = len(f_s) - 1
        # The last stage has no later one: a gate there would get no gradient, and DDP raises
        # on parameters without one.
        self.fusions = nn.ModuleList(
            Fusion(s.shape[1], width, t.shape[1], fuse=i < last)
            for i, (s, t) in enumerate(zip(f_s, f_t, strict=True))
        )

    def compare(self, f_s: list[Tensor], f_t: list[Tensor], index: Tensor | None) -> Tensor:
        later: Tensor | None = None
        losses = []
        # From late to early; the sum does not depend on the order, but the fusion does.
        for fusion, s, t in reversed(list(zip(self.fusions, f_s, f_t, strict=True))):
            out, later = fusion(s, later, (t.shape[2], t.shape[3]))
            losses.append(hierarchical_context(out, t))
        return torch.stack(losses).sum()


class Fusion(nn.Module):
    """Attention-based fusion of a stage's map with the result of the later stages.

    Args:
        inputs: channels of the student's map.
        width: channels of the fused map.
        outputs: channels of the teacher's map.
        fuse: whether there is a later stage.
    """

    # The authors draw the convolutions from kaiming_uniform_(a=1); batch norm follows each, so
    # PyTorch's default, another scale of the same distribution, is kept.

    def __init__(self, inputs: int, width: int, outputs: int, fuse: bool) -> None:
        super().__init__()
        self.enter = nn.Sequential(nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width))
        self.weigh = nn.Conv2d(2 * width, 2, 1) if fuse else None
        self.leave = nn.Sequential(
            nn.Conv2d(width, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs)
        )

    def forward(
        self, x: Tensor, later: Tensor | None, size: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """Fuse a map with the result of the later stages.

        Args:
            x: the student's map, B×inputs×H×W.
            later: fused map of the later stages, B×width×H'×W', or None.
            size: height and width of the teacher's map.

        Returns:
            The map to compare, B×outputs×size, and the fused map, B×width×size.
        """
        # The authors fuse at the student's size and resize the result by nearest neighbours.
        # Pooling first keeps all positions where the student's map is larger, and both maps
        # need one size only.
        x = F.adaptive_avg_pool2d(self.enter(x), size)
        if self.weigh is not None and later is not None:
            later = F.interpolate(later, size=size, mode="nearest")
            # Two independent sigmoids per position, not a softmax: both maps may count fully.
            share = self.weigh(torch.cat([x, later], dim=1)).sigmoid()
            x = x * share[:, :1] + later * share[:, 1:]
        return self.leave(x), x
