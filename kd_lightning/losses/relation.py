"""Relation knowledge: how examples stand to one another.

Shapes: B samples, D numbers in the embedding; maps are flattened, and the two networks' D
may differ. Embeddings come student first, then teacher; no gradient reaches the teacher's
side. Half precision is computed, and returned, in float32.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from kd_lightning.losses.feature import products, unit
from kd_lightning.losses.response import wide


def similarity(f_s: Tensor, f_t: Tensor) -> Tensor:
    r"""Similarity-preserving loss (SP) :math:`\|G_t - G_s\|_F^2 / B^2`.

    :math:`G = FF^T` holds the inner products of the samples; its rows are then made of
    length 1.

    Args:
        f_s: student's maps or embeddings, B×….
        f_t: teacher's, B×….

    Returns:
        A scalar, dimensionless. It falls as 1/B, whence weights of about 3000.

    Source: Tung, Mori 2019, "Similarity-Preserving Knowledge Distillation",
    arXiv 1907.09682.

    >>> import torch
    >>> similarity(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[0.0], [5.0]])).item()
    0.25
    """
    return F.mse_loss(_similarities(f_s), _similarities(f_t.detach()))


def distance_relation(e_s: Tensor, e_t: Tensor) -> Tensor:
    r"""Distance-wise relational loss (RKD-D): SmoothL1 of :math:`d_{ij} = \|e_i - e_j\| / \mu`.

    μ is the mean of the network's positive distances, so the size of an embedding does not
    count. Averaged over all B² pairs. Samples at one place have distance 0 and no gradient.

    Args:
        e_s: student's embeddings, B×….
        e_t: teacher's, B×….

    Returns:
        A scalar, dimensionless.

    Source: Park et al. 2019, "Relational Knowledge Distillation", arXiv 1904.05068.

    >>> import torch
    >>> e_s, e_t = torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([[0.0], [6.0], [8.0]])
    >>> round(distance_relation(e_s, e_t).item(), 4)  # ¾ ¾ 1½ and 1⅛ ⅜ 1½
    0.0312
    """
    return F.smooth_l1_loss(_distances(e_s), _distances(e_t.detach()))


def angle_relation(e_s: Tensor, e_t: Tensor) -> Tensor:
    r"""Angle-wise relational loss (RKD-A): SmoothL1 of :math:`\cos\angle(e_j - e_i, e_k - e_i)`.

    Averaged over all B³ triplets; where two of the three are at one place the cosine
    counts as 0. Takes memory for B³ numbers.

    Args:
        e_s: student's embeddings, B×….
        e_t: teacher's, B×….

    Returns:
        A scalar, dimensionless.

    Source: Park et al. 2019, "Relational Knowledge Distillation", arXiv 1904.05068.

    >>> import torch
    >>> e_s, e_t = torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([[1.0], [0.0], [2.0]])
    >>> round(angle_relation(e_s, e_t).item(), 4)  # 4 of 27 cosines differ, by 2: 1½ each
    0.2222
    """
    return F.smooth_l1_loss(_angles(e_s), _angles(e_t.detach()))


def correlation_congruence(e_s: Tensor, e_t: Tensor, gamma: float = 0.4, order: int = 2) -> Tensor:
    r"""Correlation congruence (CC) :math:`\mathrm{mean}\,(K_s - K_t)^2`.

    :math:`K = e^{-2\gamma}\sum_{p=0}^P \frac{(2\gamma)^p}{p!}(x\cdot y)^p` is the Gaussian
    kernel exp(−γ‖x − y‖²) of embeddings of length 1, its Taylor series cut after P.

    Args:
        e_s: student's embeddings, B×….
        e_t: teacher's, B×….
        gamma: γ > 0, one over a squared distance.
        order: highest power of the inner product, P ≥ 1.

    Returns:
        A scalar, dimensionless.

    Source: Peng et al. 2019, "Correlation Congruence for Knowledge Distillation",
    arXiv 1904.01802.

    >>> import torch
    >>> e_s, e_t = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0], [1.0]])
    >>> round(correlation_congruence(e_s, e_t).item(), 4)
    0.1266
    """
    return F.mse_loss(_kernel(e_s, gamma, order), _kernel(e_t.detach(), gamma, order))


def probabilistic_transfer(e_s: Tensor, e_t: Tensor) -> Tensor:
    r"""Probabilistic knowledge transfer (PKT): mean of :math:`P_t \ln(P_t / P_s)`.

    P is the cosine similarity, brought to 0…1 by (cos + 1)/2, with rows of sum 1: the
    probability that one sample takes another for its neighbour. Averaged over all B²
    pairs. 1e-7 is added before the rows are divided by their sums, so that the loss of
    equals has exactly no gradient.

    Args:
        e_s: student's embeddings, B×….
        e_t: teacher's, B×….

    Returns:
        A scalar, in nats over B. It falls as 1/B², whence weights of about 30000.

    Source: Passalis, Tefas 2018, "Learning Deep Representations with Probabilistic
    Knowledge Transfer", ECCV, arXiv 1803.10837.

    >>> import torch
    >>> e_s, e_t = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0], [1.0]])
    >>> round(probabilistic_transfer(e_s, e_t).item(), 4)  # ½ ln(½ / ⅔) and ½ ln(½ / ⅓)
    0.0294
    """
    p_s, p_t = _neighbours(e_s), _neighbours(e_t.detach())
    return (p_t * (p_t.log() - p_s.log())).mean()


def _rows(e: Tensor) -> Tensor:
    return wide(e).flatten(1)


def _similarities(f: Tensor) -> Tensor:
    rows = _rows(f)
    return unit(products(rows, rows))


def _distances(e: Tensor) -> Tensor:
    """Pairwise distances, their positive ones of mean 1, B×B."""
    rows = _rows(e)
    # by differences: from inner products, near samples would be at a distance of rounding errors
    distance = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")
    mean = distance.sum() / (distance > 0).sum().clamp(min=1)
    return distance / torch.where(mean > 0, mean, 1.0)


def _angles(e: Tensor) -> Tensor:
    """Cosine of the angle at i between j and k, B×B×B.

    From inner products, B³ numbers instead of B²·D; in double precision, since they are
    differences of large numbers where samples are near.
    """
    rows = _rows(e)
    exact = rows.dtype if rows.device.type == "mps" else torch.float64  # mps has no doubles
    gram = products(rows.to(exact), rows.to(exact))
    own = gram.diagonal()
    inner = gram[None] - gram[:, :, None] - gram[:, None, :] + own[:, None, None]
    size = own[:, None] + own[None]
    square = size - 2 * gram
    apart = square > (1e-12 * size).clamp(min=1e-24)  # else at one place, up to rounding
    scale = torch.where(apart, square, 1.0).rsqrt() * apart
    return (inner * scale[:, :, None] * scale[:, None, :]).to(rows.dtype)


def _cosines(e: Tensor) -> Tensor:
    rows = unit(_rows(e))
    return products(rows, rows)


def _kernel(e: Tensor, gamma: float, order: int) -> Tensor:
    cosine = _cosines(e)
    series = torch.zeros_like(cosine)
    for p in reversed(range(order + 1)):  # Horner's scheme
        series = series * cosine + (2 * gamma) ** p / math.factorial(p)
    return math.exp(-2 * gamma) * series


def _neighbours(e: Tensor) -> Tensor:
    closeness = ((_cosines(e) + 1) / 2).clamp(min=0) + 1e-7  # rounded, a cosine may be below −1
    return closeness / closeness.sum(-1, keepdim=True)
