"""FSP: how a network goes from one layer to the next, as products of their channels.

Yim et al. 2017, "A Gift from Knowledge Distillation", CVPR.
"""

import torch
from torch import Tensor, nn

from kd_lightning.losses.feature import flow
from kd_lightning.transfer.term import Term
from kd_lightning.utils.errors import UserError


class FSP(Term):
    """The flow between each layer and the next; so it takes at least two of each network.

    Channels are brought to the teacher's number by a 1×1 convolution where they differ.
    See :class:`~kd_lightning.transfer.term.Term` for the arguments.
    """

    role = "maps"

    def build(self, f_s: list[Tensor], f_t: list[Tensor], labels: Tensor) -> None:
        if len(f_s) < 2:
            raise UserError("FSP compares the flow between layers: it takes two or more of each")
        self.widen = nn.ModuleList(_widen(s, t) for s, t in zip(f_s, f_t, strict=True))

    def compare(self, f_s: list[Tensor], f_t: list[Tensor], index: Tensor) -> Tensor:
        f_s = [widen(s) for widen, s in zip(self.widen, f_s, strict=True)]
        steps = range(len(f_s) - 1)
        losses = [flow(f_s[i], f_s[i + 1], f_t[i], f_t[i + 1]) for i in steps]
        return torch.stack(losses).sum()


def _widen(f_s: Tensor, f_t: Tensor) -> nn.Module:
    if f_s.shape[1] == f_t.shape[1]:
        return nn.Identity()
    return nn.Conv2d(f_s.shape[1], f_t.shape[1], 1, bias=False)
