"""ReviewKD: early stages of the teacher teach later ones of the student, too.

Chen et al. 2021, "Distilling Knowledge via Knowledge Review", arXiv 2104.09044. Going from
the last stage to the first, each stage's map is fused with all that came after it, by
weights that a small convolution reads from both, and compared with the teacher's.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd_lightning.losses.feature import hierarchical_context
from kd_lightning.transfer.term import Term


class Review(Term):
    """Hierarchical context loss between fused maps of the student and maps of the teacher.

    See :class:`~kd_lightning.transfer.term.Term` for the arguments; layers go from
    early to late.
    """

    role = "maps"

    def build(self, f_s: list[Tensor], f_t: list[Tensor], labels: Tensor) -> None:
        width = min(512, f_s[-1].shape[1])
        last = len(f_s) - 1
        self.fusions = nn.ModuleList(
            Fusion(s.shape[1], width, t.shape[1], fuse=i < last)
            for i, (s, t) in enumerate(zip(f_s, f_t, strict=True))
        )

    def compare(self, f_s: list[Tensor], f_t: list[Tensor], index: Tensor) -> Tensor:
        later: Tensor | None = None
        losses = []
        for fusion, s, t in reversed(list(zip(self.fusions, f_s, f_t, strict=True))):
            out, later = fusion(s, later, (t.shape[2], t.shape[3]))
            losses.append(hierarchical_context(out, t))
        return torch.stack(losses).sum()


class Fusion(nn.Module):
    """A map of the student and what came after it, as one map of the teacher's shape.

    Args:
        inputs: channels of the student's map.
        width: channels in which stages are fused.
        outputs: channels of the teacher's map.
        fuse: whether there is a later stage.
    """

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
        """The map at the teacher's ``size``, B×outputs×H×W, and what an earlier stage fuses."""
        x = F.adaptive_avg_pool2d(self.enter(x), size)
        if self.weigh is not None and later is not None:
            later = F.interpolate(later, size=size, mode="nearest")
            share = self.weigh(torch.cat([x, later], dim=1)).sigmoid()
            x = x * share[:, :1] + later * share[:, 1:]
        return self.leave(x), x
