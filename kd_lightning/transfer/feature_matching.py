"""Feature matching: the student's embedding is mapped to that of the teacher."""

from typing import Any

import torch
from torch import Tensor, nn

from kd_lightning.losses.feature import embedding_match
from kd_lightning.transfer.term import Term


class FeatureMatching(Term):
    """Mean squared error and cosine distance of embeddings, after a projector.

    Args:
        cosine: weight of the cosine distance.
        hidden: width of the projector's hidden layer; None for a linear projector.
        **settings: see :class:`~kd_lightning.transfer.term.Term`.
    """

    role = "embedding"

    def __init__(self, cosine: float = 1.0, hidden: int | None = None, **settings: Any) -> None:
        super().__init__(**settings)
        self.cosine, self.hidden = cosine, hidden

    def build(self, f_s: list[Tensor], f_t: list[Tensor], labels: Tensor) -> None:
        widths = [
            (s.flatten(1).shape[1], t.flatten(1).shape[1]) for s, t in zip(f_s, f_t, strict=True)
        ]
        self.projectors = nn.ModuleList(projector(d, to, self.hidden) for d, to in widths)

    def compare(self, f_s: list[Tensor], f_t: list[Tensor], index: Tensor | None) -> Tensor:
        triples = zip(self.projectors, f_s, f_t, strict=True)
        losses = [
            embedding_match(project(s.flatten(1)), t.flatten(1), self.cosine)
            for project, s, t in triples
        ]
        return torch.stack(losses).sum()


def projector(width: int, to: int, hidden: int | None) -> nn.Module:
    """Return a map from B×width to B×to, linear or with a hidden layer."""
    if hidden is None:
        return nn.Linear(width, to)
    return nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, to))
