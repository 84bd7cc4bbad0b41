"""CRD: contrastive representation distillation with memory banks.

Two banks hold an embedding of every training sample, one of the student's features and one
of the teacher's. Negatives are drawn from them.

Source: Tian, Krishnan, Isola 2020, "Contrastive Representation Distillation",
arXiv 1910.10699.
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
        negatives: K per sample; at most the number of training samples.
        size: dimensions of the embeddings.
        temperature: τ > 0 of the similarities, dimensionless.
        momentum: share of a bank's row that an update keeps, in 0…1.
        other_classes: draw negatives from other classes only, not from all other samples.
        **settings: see :class:`~kd_lightning.transfer.term.Term`.

    Raises:
        UserError: if a number is not positive; from :meth:`connect`, if there are no samples to
            draw negatives from.
    """

    role = "embedding"
    needs_index = True
    # Also without other_classes: the number of labels is the size of the banks.
    needs_labels = True
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
        for name, value in (("negatives", negatives), ("size", size), ("temperature", temperature)):
            if not value > 0:
                raise UserError(f"crd: {name} must be positive, got {value}")
        self.negatives, self.size = negatives, size
        self.temperature, self.momentum = temperature, momentum
        self.other_classes = other_classes

    def build(self, f_s: list[Tensor], f_t: list[Tensor], labels: Tensor) -> None:
        # The teacher's features are projected, too: only a common space can be compared.
        self.embed_s = nn.Linear(f_s[0].flatten(1).shape[1], self.size)
        self.embed_t = nn.Linear(f_t[0].flatten(1).shape[1], self.size)
        # This bound makes the expected squared length of a random row 1.
        bound = (self.size / 3) ** -0.5
        # Buffers, so that checkpoints keep the banks and a resumed run continues exactly.
        for name in ("bank_s", "bank_t"):
            bank = torch.empty(len(labels), self.size).uniform_(-bound, bound)
            self.register_buffer(name, bank)
        # ln Z rather than Z, which overflows float16. NaN means not estimated yet.
        self.register_buffer("log_normalizers", torch.full((2,), torch.nan))
        # A flag in addition to the NaN, as testing the buffer would synchronise with the GPU in
        # every step.
        self._estimated = False
        self._sort(labels if self.other_classes else torch.arange(len(labels)))
        self._seen: tuple[Tensor, Tensor, Tensor] | None = None
        # The last batch's update is still pending when a checkpoint is written.
        self.register_state_dict_pre_hook(lambda term, *_: term._remember())

    def compare(self, f_s: list[Tensor], f_t: list[Tensor], index: Tensor | None) -> Tensor:
        assert index is not None, "the objective rejects batches without an index"
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
        """Sort the samples by class and store each sample's class as a range of that order."""
        # Samples of other classes are then two contiguous ranges. The authors' code keeps a
        # list of negatives per class, C·N numbers in all.
        _, classes, counts = labels.unique(return_inverse=True, return_counts=True)
        if len(counts) == 1:
            raise UserError(
                "all training samples are of one class, which leaves no negatives: set "
                "other_classes=false"
            )
        starts = counts.cumsum(0) - counts
        self._order = classes.argsort()
        self._range = torch.stack([starts[classes], counts[classes]])

    def _draw(self, index: Tensor) -> Tensor:
        """Draw the rows of negatives, B×K, uniformly from the other classes."""
        # Moved on first use: plain attributes, since buffers would enlarge every checkpoint.
        self._order, self._range = (x.to(index.device) for x in (self._order, self._range))
        start, own = self._range[:, index, None]
        others = len(self._order) - own
        size = (len(index), min(self.negatives, len(self._order)))
        # With replacement, as in the authors' memory (their data set draws without, at the
        # cost of a permutation per sample). Float64: float32 has 24 bits, so among 16 million
        # samples some would never be drawn.
        drawn = (torch.rand(size, device=index.device, dtype=torch.float64) * others).long()
        # Skips the sample's own class.
        return self._order[torch.where(drawn < start, drawn, drawn + own)]

    def _set_normalizers(self, e_s: Tensor, e_t: Tensor, rows: Tensor) -> None:
        """Estimate both Z from a batch, unless they were loaded from a checkpoint."""
        self._estimated = True
        estimates = torch.stack(
            [
                partition_estimate(e_s, self.bank_t, rows, self.temperature),
                partition_estimate(e_t, self.bank_s, rows, self.temperature),
            ]
        )
        # Averaged over the processes, which would otherwise train on different losses.
        if _ranks() > 1:
            dist.all_reduce(estimates)
            estimates /= _ranks()
        unset = self.log_normalizers.isnan()
        self.log_normalizers.copy_(torch.where(unset, estimates.log(), self.log_normalizers))

    def _remember(self) -> None:
        """Update the banks' rows with the embeddings of the last batch, on all ranks alike."""
        # Delayed to the next batch or checkpoint: an update in place before the backward pass
        # would change tensors that the gradient needs. The authors' code copies B·(1 + K) rows
        # and can update at once.
        if self._seen is None:
            return
        e_s, e_t, index = (_gathered(x) for x in self._seen)
        self._seen = None
        for bank, e in ((self.bank_s, e_s), (self.bank_t, e_t)):
            # Scaled to unit length again, as the mean of two unit vectors is shorter.
            moved = self.momentum * bank[index] + (1 - self.momentum) * e
            bank[index] = F.normalize(moved, dim=1).to(bank)


def _ranks() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _gathered(x: Tensor) -> Tensor:
    """Return the rows of all ranks, in order of rank."""
    # Every rank has to hold the same banks. all_gather needs equal shapes, which Lightning's
    # distributed sampler provides.
    if _ranks() == 1:
        return x
    parts = [torch.empty_like(x) for _ in range(_ranks())]
    dist.all_gather(parts, x)
    return torch.cat(parts)
