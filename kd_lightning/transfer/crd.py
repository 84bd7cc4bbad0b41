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


class CRD(Term):
    """Noise-contrastive estimation between linear embeddings of both networks' features.

    Args:
        negatives: K, drawn for each sample; at most the size of the data.
        size: of the embeddings.
        temperature: τ of the similarities.
        momentum: how much of a bank's row stays when its sample comes again.
        other_classes: draw negatives from other classes only, not from all other samples.
        **settings: see :class:`~kd_lightning.transfer.term.Term`.
    """

    role = "embedding"
    bank_s: Tensor
    bank_t: Tensor
    normalizers: Tensor

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
        self.register_buffer("normalizers", torch.zeros(2))  # Z, set by the first batch
        self._estimated = False
        self.labels = labels if self.other_classes else torch.arange(len(labels))
        self._seen: tuple[Tensor, Tensor, Tensor] | None = None
        self.register_state_dict_pre_hook(lambda term, *_: term._remember())

    def compare(self, f_s: list[Tensor], f_t: list[Tensor], index: Tensor) -> Tensor:
        self._remember()
        e_s = F.normalize(wide(self.embed_s(f_s[0].flatten(1))), dim=1)
        e_t = F.normalize(wide(self.embed_t(f_t[0].flatten(1))), dim=1)
        rows = torch.cat([index[:, None], self._draw(index)], dim=1)
        if not self._estimated:
            self._set_normalizers(e_s.detach(), e_t.detach(), rows)
        z_s, z_t = self.normalizers.unbind()
        loss = contrastive(
            e_s, e_t, self.bank_s, self.bank_t, rows, len(self.bank_s), z_s, z_t, self.temperature
        )
        if self.training:
            self._seen = (e_s.detach(), e_t.detach(), index)
        return loss

    def _draw(self, index: Tensor) -> Tensor:
        """B×K rows of other samples; a forbidden one is replaced by drawing again."""
        self.labels = self.labels.to(index.device)
        count = len(self.labels)
        own = self.labels[index][:, None]
        rows = torch.randint(count, (len(index), min(self.negatives, count)), device=index.device)
        for _ in range(4):  # after that the share of its own class, p at first, is p⁵
            again = torch.randint(count, rows.shape, device=index.device)
            rows = torch.where(self.labels[rows] == own, again, rows)
        return rows

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
        self.normalizers.copy_(torch.where(self.normalizers > 0, self.normalizers, estimates))

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
