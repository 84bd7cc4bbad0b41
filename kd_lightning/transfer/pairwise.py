"""Terms without layers of their own: a pure loss, summed over the pairs of layers.

AT, NST, SP, CC and PKT are such: see conf/transfer and :mod:`kd_lightning.losses`.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from kd_lightning.transfer.term import ROLES, Term
from kd_lightning.utils.errors import UserError
from kd_lightning.utils.partials import bare


class Pairwise(Term):
    """``loss(f_s, f_t)`` of each pair, summed.

    Args:
        loss: a pure loss of the student's and the teacher's features.
        role: what is compared where no layer is named: the last ``map``, all ``maps`` that
            correspond, or the ``embedding``.
        **settings: see :class:`~kd_lightning.transfer.term.Term`.

    Raises:
        UserError: if there is no such role.
    """

    def __init__(
        self, loss: Callable[[Tensor, Tensor], Tensor], role: str = "map", **settings: Any
    ) -> None:
        super().__init__(**settings)
        if role not in ROLES:
            raise UserError(f"role must be one of {', '.join(ROLES)}, got {role}")
        self.loss, self.role = bare(loss), role

    def compare(self, f_s: list[Tensor], f_t: list[Tensor], index: Tensor) -> Tensor:
        losses = [self.loss(s, t) for s, t in zip(f_s, f_t, strict=True)]
        return torch.stack(losses).sum()
