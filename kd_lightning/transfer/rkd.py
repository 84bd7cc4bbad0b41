"""RKD: distances and angles between the samples' embeddings.

Source: Park et al. 2019, "Relational Knowledge Distillation", arXiv 1904.05068.
"""

from typing import Any

import torch
from torch import Tensor

from kd_lightning.losses.relation import angle_relation, distance_relation
from kd_lightning.transfer.term import Term


class RKD(Term):
    """Weighted sum of the distance-wise and the angle-wise loss of embeddings.

    Args:
        distance: weight of the distance-wise loss.
        angle: weight of the angle-wise loss.
        **settings: see :class:`~kd_lightning.transfer.term.Term`.
    """

    role = "embedding"

    # One term instead of two pairwise ones: the published 25 and 50 belong together, and the
    # term's own weight then scales both.
    def __init__(self, distance: float = 25.0, angle: float = 50.0, **settings: Any) -> None:
        super().__init__(**settings)
        self.distance, self.angle = distance, angle

    def compare(self, f_s: list[Tensor], f_t: list[Tensor], index: Tensor | None) -> Tensor:
        losses = [
            self.distance * distance_relation(s, t) + self.angle * angle_relation(s, t)
            for s, t in zip(f_s, f_t, strict=True)
        ]
        return torch.stack(losses).sum()
