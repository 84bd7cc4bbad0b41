"""CRD: a sample's two embeddings are to know one another among many others.

Tian, Krishnan, Isola 2020, "Contrastive Representation Distillation", arXiv 1910.10699.
Two banks hold an embedding of every training sample, one as the student sees it, one as
the teacher does; negatives are drawn from them.
"""

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from kd_lightning.losses.contrastive import contrastive, partition_estimate
from kd_lightning.losses.response import wide
from kd_lightning.transfer.term import Term
from kd_lightning.utils.errors import UserError


class CRD(Term):
    """Noise-contrastive estimation between linear embeddings of both networks' features.

    Args:
        negatives: K, drawn for each sample; at most the size of the data.
        size: of the embeddings.
        temperature: τ of the similarities.
        momentum: how much of a bank's row stays when its sample comes again.
        other_classes: draw negatives from other classes only, not from all other samples.
        **settings: see :class:`~kd_lightning.transfer.term.Term`.

    Raises:
        UserError: from :meth:`connect`, where there is one class only and others are asked for.
    """

    role = "embedding"
    bank_s: Tensor
    bank_t: Tensor
    log_normalizers: Tensor

    def __init__(
        self,
        negatives: int = 16384,
        size: int = 128,
        temperature: float = 0.07,
        momentum: float = 0.5,
        other_classes: bool = True,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        self.negatives, self.size = negatives, size
        self.temperature, self.momentum = temperature, momentum
        self.other_classes = other_classes

    def build(self, f_s: list[Tensor], f_t: list[Tensor], labels: Tensor) -> None:
        self.embed_s = nn.Linear(f_s[0].flatten(1).shape[1], self.size)
        self.embed_t = nn.Linear(f_t[0].flatten(1).shape[1], self.size)
        bound = (self.size / 3) ** -0.5
        for name in ("bank_s", "bank_t"):
            bank = torch.empty(len(labels), self.size).uniform_(-bound, bound)
            self.register_buffer(name, bank)
        # ln Z, set by the first batch; Z itself would not fit half precision
        self.register_buffer("log_normalizers", torch.full((2,), torch.nan))
        self._estimated = False
        self._sort(labels if self.other_classes else torch.arange(len(labels)))
        self._seen: tuple[Tensor, Tensor, Tensor] | None = None
        self.register_state_dict_pre_hook(lambda term, *_: term._remember())

    def compare(self, f_s: list[Tensor], f_t: list[Tensor], index: Tensor) -> Tensor:
        self._remember()
        e_s = F.normalize(wide(self.embed_s(f_s[0].flatten(1))), dim=1)
        e_t = F.normalize(wide(self.embed_t(f_t[0].flatten(1))), dim=1)
        rows = torch.cat([index[:, None], self._draw(index)], dim=1)
        if not self._estimated:
            self._set_normalizers(e_s.detach(), e_t.detach(), rows)
        z_s, z_t = self.log_normalizers.float().exp().unbind()
        loss = contrastive(
            e_s, e_t, self.bank_s, self.bank_t, rows, len(self.bank_s), z_s, z_t, self.temperature
        )
        if self.training:
            self._seen = (e_s.detach(), e_t.detach(), index)
        return loss

    def _sort(self, labels: Tensor) -> None:
        """Order the samples by class; note each one's class, as a range in that order."""
        _, classes, counts = labels.unique(return_inverse=True, return_counts=True)
        if len(counts) == 1:
            raise UserError("all samples are of one class, so there are no negatives")
        starts = counts.cumsum(0) - counts
        self._order = classes.argsort()
        self._range = torch.stack([starts[classes], counts[classes]])

    def _draw(self, index: Tensor) -> Tensor:
        """B×K rows of samples of other classes, each as likely as any."""
        self._order, self._range = (x.to(index.device) for x in (self._order, self._range))
        start, own = self._range[:, index, None]
        others = len(self._order) - own
        size = (len(index), min(self.negatives, len(self._order)))
        drawn = (torch.rand(size, device=index.device, dtype=torch.float64) * others).long()
        return self._order[torch.where(drawn < start, drawn, drawn + own)]

    def _set_normalizers(self, e_s: Tensor, e_t: Tensor, rows: Tensor) -> None:
        """Estimate Z from a batch, unless a checkpoint has brought it along."""
        self._estimated = True
        estimates = torch.stack(
            [
                partition_estimate(e_s, self.bank_t, rows, self.temperature),
                partition_estimate(e_t, self.bank_s, rows, self.temperature),
            ]
        )
        if _ranks() > 1:
            dist.all_reduce(estimates)
            estimates /= _ranks()
        unset = self.log_normalizers.isnan()
        self.log_normalizers.copy_(torch.where(unset, estimates.log(), self.log_normalizers))

    def _remember(self) -> None:
        """Move the banks' rows towards the last batch, on all ranks alike.

        That waits for the next batch or checkpoint: the gradient still needs the banks.
        """
        if self._seen is None:
            return
        e_s, e_t, index = (_gathered(x) for x in self._seen)
        self._seen = None
        for bank, e in ((self.bank_s, e_s), (self.bank_t, e_t)):
            moved = self.momentum * bank[index] + (1 - self.momentum) * e
            bank[index] = F.normalize(moved, dim=1).to(bank)


def _ranks() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _gathered(x: Tensor) -> Tensor:
    """The rows of all ranks, whose batches are equally large."""
    if _ranks() == 1:
        return x
    parts = [torch.empty_like(x) for _ in range(_ranks())]
    dist.all_gather(parts, x)
    return torch.cat(parts)
