"""FSP: flow of the solution procedure, the products of channels of successive layers.

Source: Yim et al. 2017, "A Gift from Knowledge Distillation: Fast Optimization, Network
Minimization and Transfer Learning", CVPR.
"""

import torch
from torch import Tensor, nn

from kd_lightning.losses.feature import flow
from kd_lightning.transfer.term import Term
from kd_lightning.utils.errors import UserError


class FSP(Term):
    """Flow loss between each layer and the next, for two or more layers of each network.

    A 1×1 convolution adapts the student's channels where their number differs. See
    :class:`~kd_lightning.transfer.term.Term` for the arguments.

    Raises:
        UserError: from :meth:`connect`, if there are fewer than two layers.
    """

    role = "maps"

    def build(self, f_s: list[Tensor], f_t: list[Tensor], labels: Tensor) -> None:
        if len(f_s) < 2:
            raise UserError(
                f"fsp compares the flow between layers and needs at least two, got {len(f_s)}: "
                "name more layers of student and teacher"
            )
        self.widen = nn.ModuleList(_widen(s, t) for s, t in zip(f_s, f_t, strict=True))

    def compare(self, f_s: list[Tensor], f_t: list[Tensor], index: Tensor | None) -> Tensor:
        # Each map is adapted once, though all but the first and the last are in two flows.
        f_s = [widen(s) for widen, s in zip(self.widen, f_s, strict=True)]
        steps = range(len(f_s) - 1)
        losses = [flow(f_s[i], f_s[i + 1], f_t[i], f_t[i + 1]) for i in steps]
        return torch.stack(losses).sum()


def _widen(f_s: Tensor, f_t: Tensor) -> nn.Module:
    # The paper assumes equal numbers of channels. A plain projection, without batch norm and
    # ReLU: the flow is bilinear in the maps, and their scale is part of it.
    if f_s.shape[1] == f_t.shape[1]:
        return nn.Identity()
    return nn.Conv2d(f_s.shape[1], f_t.shape[1], 1, bias=False)
