"""Relation losses: compare the relations between the samples of a batch.

Shapes: B samples, D dimensions of an embedding. Maps are flattened, and D may differ between
the networks. The student's embeddings come first, then the teacher's; the teacher's receive
no gradient. Half-precision inputs are computed, and the loss is returned, in float32.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from kd_lightning.losses.feature import products, unit
from kd_lightning.losses.response import wide


def similarity(f_s: Tensor, f_t: Tensor) -> Tensor:
    r"""Similarity-preserving loss (SP) :math:`\|G_t - G_s\|_F^2 / B^2`.

    :math:`G = FF^T` holds the inner products of all pairs of samples, with rows scaled to
    unit length.

    Args:
        f_s: student's maps or embeddings, B×….
        f_t: teacher's, B×….

    Returns:
        A scalar, dimensionless. It scales as 1/B, hence weights of about 3000.

    Source: Tung, Mori 2019, "Similarity-Preserving Knowledge Distillation",
    arXiv 1907.09682.

    >>> import torch
    >>> similarity(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[0.0], [5.0]])).item()
    0.25
    """
    # The mean over B×B is the paper's Frobenius norm over B².
    return F.mse_loss(_similarities(f_s), _similarities(f_t.detach()))


def distance_relation(e_s: Tensor, e_t: Tensor) -> Tensor:
    r"""Distance-wise relational loss (RKD-D): SmoothL1 of :math:`d_{ij} = \|e_i - e_j\| / \mu`.

    μ is the mean of a network's positive distances, which makes the loss invariant to the
    scale of its embeddings. Averaged over all B² pairs. Coinciding samples have distance 0
    and no gradient.

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

    Averaged over all B³ triplets. The cosine is 0 where j or k coincides with i. Memory
    grows as B³.

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

    :math:`K = e^{-2\gamma}\sum_{p=0}^P \frac{(2\gamma)^p}{p!}(x\cdot y)^p` is the Taylor
    series, up to order P, of the Gaussian kernel exp(−γ‖x − y‖²) of unit-length embeddings.

    Args:
        e_s: student's embeddings, B×….
        e_t: teacher's, B×….
        gamma: γ > 0, in inverse squared distances.
        order: P ≥ 1, highest power of the inner product.

    Returns:
        A scalar, dimensionless.

    Source: Peng et al. 2019, "Correlation Congruence for Knowledge Distillation",
    arXiv 1904.01802.

    >>> import torch
    >>> e_s, e_t = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0], [1.0]])
    >>> round(correlation_congruence(e_s, e_t).item(), 4)
    0.1266
    """
    # RepDistiller's CC, a widely copied implementation, multiplies the differences f_s − f_t
    # of neighbours in the batch instead; this is the paper's formula.
    return F.mse_loss(_kernel(e_s, gamma, order), _kernel(e_t.detach(), gamma, order))


def probabilistic_transfer(e_s: Tensor, e_t: Tensor) -> Tensor:
    r"""Probabilistic knowledge transfer (PKT): mean of :math:`P_t \ln(P_t / P_s)`.

    P is the matrix of cosine similarities mapped to 0…1 by (cos + 1)/2, with rows scaled to
    sum 1: the conditional probability of sample j given sample i. Averaged over all B² pairs.

    Args:
        e_s: student's embeddings, B×….
        e_t: teacher's, B×….

    Returns:
        A scalar, in nats over B. It scales as 1/B², hence weights of about 30000.

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
    # Rows of the Gram matrix are scaled, not the features: the paper compares whom a sample
    # resembles, relative to its other similarities.
    return unit(products(rows, rows))


def _distances(e: Tensor) -> Tensor:
    """Return pairwise distances over the mean of the positive ones, B×B."""
    rows = _rows(e)
    # From differences. The authors' ‖x‖² + ‖y‖² − 2x·y cancels for close samples, and the
    # square root turns the rounding error into a distance. Also, cdist has gradient 0 at
    # distance 0, where sqrt has an infinite one (the authors clamp at 1e-12).
    distance = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")
    # The mean stays in the graph: with a detached one, gradient would also push on the scale
    # of the embeddings, to which the loss is invariant.
    mean = distance.sum() / (distance > 0).sum().clamp(min=1)
    return distance / torch.where(mean > 0, mean, 1.0)


def _angles(e: Tensor) -> Tensor:
    """Return the cosine of the angle at i between j and k, B×B×B."""
    rows = _rows(e)
    # From the Gram matrix, which needs B³ numbers; normalised differences, as in the authors'
    # code, need B²·D more. Float64, because the differences below cancel for close samples.
    exact = rows.dtype if rows.device.type == "mps" else torch.float64  # mps has no float64
    gram = products(rows.to(exact), rows.to(exact))
    own = gram.diagonal()
    # (e_j − e_i)·(e_k − e_i) = g_jk − g_ij − g_ik + g_ii
    inner = gram[None] - gram[:, :, None] - gram[:, None, :] + own[:, None, None]
    size = own[:, None] + own[None]
    square = size - 2 * gram
    # Coinciding up to rounding, relative to the samples' own length; 1e-24 covers zeros. An
    # angle between such samples would be noise, and its gradient enormous.
    apart = square > (1e-12 * size).clamp(min=1e-24)
    # 1 before the root, then masked: rsqrt(0) = ∞ would make the gradient 0·∞ = NaN.
    scale = torch.where(apart, square, 1.0).rsqrt() * apart
    return (inner * scale[:, :, None] * scale[:, None, :]).to(rows.dtype)


def _cosines(e: Tensor) -> Tensor:
    rows = unit(_rows(e))
    return products(rows, rows)


def _kernel(e: Tensor, gamma: float, order: int) -> Tensor:
    cosine = _cosines(e)
    series = torch.zeros_like(cosine)
    # Horner's scheme: one multiplication per order, and no B×B power to keep for each.
    for p in reversed(range(order + 1)):
        series = series * cosine + (2 * gamma) ** p / math.factorial(p)
    return math.exp(-2 * gamma) * series


def _neighbours(e: Tensor) -> Tensor:
    # Clamped, because a rounded cosine may fall below −1. The authors' code adds 1e-7 inside
    # the logarithm only, where the gradient is not 0 for equal inputs; added before the
    # scaling, the rows sum to 1 and the loss is a divergence.
    closeness = ((_cosines(e) + 1) / 2).clamp(min=0) + 1e-7
    return closeness / closeness.sum(-1, keepdim=True)
