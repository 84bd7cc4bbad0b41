"""Terms without adapters: a pure loss, summed over pairs of layers.

The configurations at, nst, sp, cc and pkt of conf/transfer use it with a loss of
:mod:`kd_lightning.losses`.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from kd_lightning.transfer.term import ROLES, Term
from kd_lightning.utils.errors import UserError
from kd_lightning.utils.partials import bare


class Pairwise(Term):
    """Sum of ``loss(f_s, f_t)`` over pairs of layers.

    Args:
        loss: a pure loss of the student's and the teacher's features.
        role: layers compared by default, and the shapes that are accepted: ``map``, ``maps``,
            ``embedding`` or ``any``, see :class:`~kd_lightning.transfer.term.Term`.
        **settings: see :class:`~kd_lightning.transfer.term.Term`.

    Raises:
        UserError: if the role is unknown.
    """

    def __init__(
        self, loss: Callable[[Tensor, Tensor], Tensor], role: str = "map", **settings: Any
    ) -> None:
        super().__init__(**settings)
        if role not in ROLES:
            raise UserError(f"role must be one of {', '.join(ROLES)}, got {role}")
        # bare: a partial made by Hydra checks its target at every call, once per step here.
        self.loss, self.role = bare(loss), role

    def compare(self, f_s: list[Tensor], f_t: list[Tensor], index: Tensor | None) -> Tensor:
        # Summed, not averaged, here and in all terms: the published weights refer to sums, and
        # naming another layer does not weaken the others.
        losses = [self.loss(s, t) for s, t in zip(f_s, f_t, strict=True)]
        return torch.stack(losses).sum()
