"""Contrastive knowledge: a sample's student and teacher belong together, others apart.

Shapes: B samples, D numbers in an embedding, N samples of the whole data, K negatives.
Half precision is computed, and returned, in float32.

Source: Tian, Krishnan, Isola 2020, "Contrastive Representation Distillation",
arXiv 1910.10699.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from kd_lightning.losses.feature import products
from kd_lightning.losses.response import wide


def contrastive(
    e_s: Tensor,
    e_t: Tensor,
    bank_s: Tensor,
    bank_t: Tensor,
    index: Tensor,
    data_size: int,
    normalizer_s: float | Tensor,
    normalizer_t: float | Tensor,
    temperature: float = 0.07,
) -> Tensor:
    r"""Contrastive loss (CRD): noise-contrastive estimation against memory banks, both ways.

    An anchor e and a bank's row b are a pair of one sample with probability
    :math:`h = P/(P + K/N)`, where :math:`P = \exp(e\cdot b/\tau)/Z`. The loss of an anchor
    is :math:`-\ln h` of its own row :math:`- \sum \ln(1 - h)` of its K negatives; averaged
    over the batch; summed over the student's anchors against the teacher's bank and the
    teacher's anchors against the student's bank.

    Gradient reaches both embeddings, the teacher's too: they are learned projections, and
    the teacher's own features must be detached before theirs. None reaches the banks.

    Args:
        e_s: projection of the student's features, B×D, rows of length 1.
        e_t: projection of the teacher's features, B×D, rows of length 1.
        bank_s: remembered projections of the student, N×D.
        bank_t: remembered projections of the teacher, N×D.
        index: rows of the banks, B×(1 + K): the sample's own, then those of its negatives.
        data_size: N of the noise distribution 1/N.
        normalizer_s: Z > 0 of the student's anchors, see :func:`partition_estimate`.
        normalizer_t: Z > 0 of the teacher's anchors.
        temperature: τ > 0, dimensionless.

    Returns:
        A scalar, in nats; with K negatives a sum of 2·(1 + K) terms.

    Raises:
        ValueError: if there are no negatives.

    Source: as above, and the authors' code.

    >>> import torch
    >>> e, bank = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    >>> index = torch.tensor([[0, 1]])
    >>> round(contrastive(e, e, bank, bank, index, 2, 1.0, 1.0, temperature=1.0).item(), 4)
    1.4406
    """
    of_student = _one_way(e_s, bank_t, index, data_size, normalizer_s, temperature)
    of_teacher = _one_way(e_t, bank_s, index, data_size, normalizer_t, temperature)
    return of_student + of_teacher


def partition_estimate(e: Tensor, bank: Tensor, index: Tensor, temperature: float = 0.07) -> Tensor:
    r"""Estimate :math:`N \cdot \mathrm{mean}\exp(e\cdot b/\tau)` of Z, to be kept as a constant.

    Args:
        e: one network's anchors, B×D, rows of length 1.
        bank: the *other* network's bank, N×D.
        index: rows of the bank, B×(1 + K).
        temperature: τ > 0, dimensionless.

    Returns:
        A positive scalar without gradient.

    Source: as above; the authors' code takes it from the first batch.

    >>> import torch
    >>> bank = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    >>> round(partition_estimate(bank[:1], bank, torch.tensor([[0, 1]]), temperature=1.0).item(), 4)
    3.7183
    """
    return _scores(e.detach(), bank, index, temperature).exp().mean() * len(bank)


def _one_way(
    e: Tensor,
    bank: Tensor,
    index: Tensor,
    data_size: int,
    normalizer: float | Tensor,
    temperature: float,
) -> Tensor:
    negatives = index.shape[1] - 1
    if negatives < 1:
        raise ValueError("contrastive needs a negative at least: index must be B×(1 + K), K ≥ 1")
    scores = _scores(e, bank, index, temperature)
    log_z = torch.as_tensor(normalizer, dtype=scores.dtype, device=scores.device).detach().log()
    log_odds = scores - log_z - math.log(negatives / data_size)  # ln h / (1 − h)
    own, others = log_odds[:, 0], log_odds[:, 1:]
    return -(F.logsigmoid(own) + F.logsigmoid(-others).sum(1)).mean()


def _scores(e: Tensor, bank: Tensor, index: Tensor, temperature: float) -> Tensor:
    """e·b/τ for the rows b of the index, B×(1 + K).

    All B×N products are taken first: copying B·(1 + K) rows of the bank, D numbers each,
    needs more memory and time unless N is much larger than K.
    """
    return products(wide(e), wide(bank.detach())).gather(1, index) / temperature
