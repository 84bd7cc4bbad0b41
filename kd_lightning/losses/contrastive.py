"""Contrastive losses: identify a sample's own embedding among those of other samples.

Shapes: B samples, D dimensions of an embedding, N training samples, K negatives per
sample. Half-precision inputs are computed, and the loss is returned, in float32.

Source: Tian, Krishnan, Isola 2020, "Contrastive Representation Distillation",
arXiv 1910.10699, and the authors' code.
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
    r"""Contrastive loss (CRD): noise-contrastive estimation against two memory banks.

    With :math:`P = \exp(e\cdot b/\tau)/Z`, an anchor e and a row b of a bank belong to one
    sample with probability :math:`h = P/(P + K/N)`. Each anchor contributes :math:`-\ln h`
    of its own row and :math:`-\sum\ln(1 - h)` of its negatives. Averaged over the batch,
    summed over both directions: e_s against bank_t and e_t against bank_s. Gradient reaches
    both embeddings, since both projections are learned, but not the banks.

    Args:
        e_s: projected features of the student, B×D, rows of unit length.
        e_t: projected features of the teacher (detached before the projection), B×D.
        bank_s, bank_t: stored projections of the student and of the teacher, N×D.
        index: rows of the banks, B×(1 + K): the sample's own, then its negatives.
        data_size: N of the noise distribution 1/N.
        normalizer_s, normalizer_t: Z > 0 of each direction, see :func:`partition_estimate`.
        temperature: τ > 0, dimensionless.

    Returns:
        A scalar, in nats; a sum of 2·(1 + K) terms.

    Raises:
        ValueError: if there are no negatives.

    >>> e, bank = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    >>> index = torch.tensor([[0, 1]])
    >>> round(contrastive(e, e, bank, bank, index, 2, 1.0, 1.0, temperature=1.0).item(), 4)
    1.4406
    """
    of_student = _one_way(e_s, bank_t, index, data_size, normalizer_s, temperature)
    of_teacher = _one_way(e_t, bank_s, index, data_size, normalizer_t, temperature)
    return of_student + of_teacher


def partition_estimate(e: Tensor, bank: Tensor, index: Tensor, temperature: float = 0.07) -> Tensor:
    r"""Estimate the constant :math:`Z = N \cdot \mathrm{mean}\exp(e\cdot b/\tau)`.

    Args:
        e: one network's anchors, B×D, rows of unit length.
        bank: the *other* network's bank, N×D.
        index: rows of the bank, B×(1 + K).
        temperature: τ > 0, dimensionless.

    Returns:
        A positive scalar without gradient. The authors' code computes it from the first
        batch and keeps it.

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
        raise ValueError(
            f"index has shape {tuple(index.shape)}, which leaves no negatives; "
            "pass B×(1 + K) with K ≥ 1"
        )
    scores = _scores(e, bank, index, temperature)
    # Detached: Z is a constant of the estimator, also where the caller passes a tensor.
    log_z = torch.as_tensor(normalizer, dtype=scores.dtype, device=scores.device).detach().log()
    # Log-odds instead of the authors' P/(P + K/N + ε): their ε biases small P, and the
    # exponential overflows for embeddings that are not normalised. logsigmoid needs neither.
    log_odds = scores - log_z - math.log(negatives / data_size)  # ln h / (1 − h)
    own, others = log_odds[:, 0], log_odds[:, 1:]
    # Summed over the negatives, not averaged: the estimator weighs the noise by K.
    return -(F.logsigmoid(own) + F.logsigmoid(-others).sum(1)).mean()


def _scores(e: Tensor, bank: Tensor, index: Tensor, temperature: float) -> Tensor:
    """Return e·b/τ for the rows b of the index, B×(1 + K)."""
    # One B×N product, then a gather. Gathering first, as the authors' code does, copies
    # B·(1 + K) rows of D numbers; that costs more memory and time unless N is much larger
    # than K.
    return products(wide(e), wide(bank.detach())).gather(1, index) / temperature
