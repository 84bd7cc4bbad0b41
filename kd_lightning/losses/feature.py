"""Feature losses: compare the student's intermediate maps with the teacher's.

Shapes: B samples, C channels, H×W positions; maps are B×C×H×W. The student's maps come
first, then the teacher's; the teacher's receive no gradient. Half-precision inputs are
computed, and the loss is returned, in float32. Where a loss demands equal shapes, an adapter
of :mod:`kd_lightning.transfer` has to provide them.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from kd_lightning.losses.response import wide

# Lower bound of the variance in variational_information, from the authors' code: without it
# the likelihood grows without limit on a channel that the student predicts exactly.
_MIN_VARIANCE = 1e-5


def hint(f_s: Tensor, f_t: Tensor) -> Tensor:
    r"""Hint loss (FitNets) :math:`\mathrm{mean}\,(f_s - f_t)^2`.

    Args:
        f_s: student's map after a regressor, any shape.
        f_t: teacher's map, of the same shape.

    Returns:
        A scalar, in squared activations: its weight has to match their scale.

    Raises:
        ValueError: if the shapes differ.

    Source: Romero et al. 2014, "FitNets: Hints for Thin Deep Nets", arXiv 1412.6550.

    >>> import torch
    >>> hint(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 4.0]])).item()
    2.0
    """
    _check_same_shape(f_s, f_t)
    # The paper sums squared errors and halves them. The mean makes the weight independent of
    # the map's size; the customary weight of 100 refers to it.
    return F.mse_loss(wide(f_s), wide(f_t.detach()))


def attention(f_s: Tensor, f_t: Tensor, power: float = 2) -> Tensor:
    r"""Attention transfer (AT) :math:`\mathrm{mean}\,(Q_s - Q_t)^2`.

    Q is the spatial attention map :math:`\mathrm{mean}_c |f|^p`, flattened and scaled to
    unit length per sample. The larger map is first average-pooled to the size of the
    smaller. A map of zeros has Q = 0.

    Args:
        f_s: student's map, B×C×H×W.
        f_t: teacher's map, B×C'×H'×W'.
        power: p ≥ 1; a higher power emphasises the strongest channels.

    Returns:
        A scalar, dimensionless. It scales as 1/(H·W), hence weights of about 1000.

    Source: Zagoruyko, Komodakis 2017, "Paying More Attention to Attention",
    arXiv 1612.03928.

    >>> import torch
    >>> f_s, f_t = torch.tensor([[[[1.0, 0.0]]]]), torch.tensor([[[[0.0, 3.0]], [[0.0, 4.0]]]])
    >>> attention(f_s, f_t).item()
    1.0
    """
    # The paper takes the unsquared norm of Q_s − Q_t, whose gradient is undefined at 0; the
    # mean of squares is what the authors' code computes and what the weight refers to.
    f_s, f_t = _at_smaller_size(wide(f_s), wide(f_t.detach()), F.adaptive_avg_pool2d)
    return F.mse_loss(_attention_map(f_s, power), _attention_map(f_t, power))


def embedding_match(e_s: Tensor, e_t: Tensor, cosine: float = 1.0) -> Tensor:
    r"""Feature matching :math:`\overline{(e_s-e_t)^2} + w\,(1-\overline{\cos(e_s,e_t)})`.

    Args:
        e_s: student's embedding after a projector, B×D.
        e_t: teacher's embedding, B×D.
        cosine: w, weight of the cosine distance.

    Returns:
        A scalar; the first part has the squared unit of the embeddings.

    Source: Beyer et al. 2022, "Knowledge distillation: A good teacher is patient and consistent",
    arXiv 2106.05237, for matching a teacher's function on its own views.

    >>> import torch
    >>> embedding_match(torch.tensor([[0.0, 2.0]]), torch.tensor([[2.0, 0.0]])).item()
    5.0
    """
    e_s, e_t = wide(e_s), wide(e_t.detach())
    return F.mse_loss(e_s, e_t) + cosine * (1 - (unit(e_s) * unit(e_t)).sum(-1).mean())


def neuron_selectivity(f_s: Tensor, f_t: Tensor) -> Tensor:
    r"""Neuron selectivity transfer (NST) :math:`\bar K_{tt} + \bar K_{ss} - 2\bar K_{st}`.

    The squared maximum mean discrepancy between the two networks' channels under the kernel
    k(x, y) = (x·y)²; a channel is a vector over the positions, scaled to unit length.
    Averaged over pairs of channels and over the batch. The larger map is first average-pooled
    to the size of the smaller.

    Args:
        f_s: student's map, B×C×H×W.
        f_t: teacher's map, B×C'×H'×W'.

    Returns:
        A scalar, dimensionless.

    Source: Huang, Wang 2017, "Like What You Like: Knowledge Distill via Neuron Selectivity
    Transfer", arXiv 1707.01219.

    >>> import torch
    >>> f_s, f_t = torch.tensor([[[[1.0, 0.0]]]]), torch.tensor([[[[0.0, 3.0]], [[4.0, 0.0]]]])
    >>> neuron_selectivity(f_s, f_t).item()
    0.5
    """
    f_s, f_t = _at_smaller_size(wide(f_s), wide(f_t.detach()), F.adaptive_avg_pool2d)
    x_s, x_t = unit(f_s.flatten(2)), unit(f_t.flatten(2))
    # K_tt is a constant of the gradient. It is kept so that the loss is a discrepancy: at
    # least 0, and 0 for equal maps.
    k_tt, k_ss, k_st = (products(x, y).square() for x, y in ((x_t, x_t), (x_s, x_s), (x_s, x_t)))
    return k_tt.mean() + k_ss.mean() - 2 * k_st.mean()


def variational_information(mean_s: Tensor, f_t: Tensor, log_scale: Tensor) -> Tensor:
    r"""Variational information (VID) :math:`\frac12\overline{(\mu-f_t)^2/\sigma^2+\ln\sigma^2}`.

    The negative log-likelihood, without its constant, of the teacher's map under a normal
    distribution with learned mean μ and variance :math:`\sigma^2 = \mathrm{softplus}(s) +
    10^{-5}` per channel. Gradient reaches μ and s. The loss may be negative.

    Args:
        mean_s: μ, predicted from the student's map, B×C×H×W or B×C.
        f_t: teacher's map, of the same shape.
        log_scale: s, C; see :func:`initial_log_scale`.

    Returns:
        A scalar, in nats per element of the map.

    Raises:
        ValueError: if the shapes of μ and the teacher's map differ.

    Source: Ahn et al. 2019, "Variational Information Distillation for Knowledge Transfer",
    arXiv 1904.05835.

    >>> import torch
    >>> log_scale = torch.full((1,), initial_log_scale(variance=1.0))
    >>> round(variational_information(torch.zeros(1, 1), torch.ones(1, 1), log_scale).item(), 4)
    0.5
    """
    _check_same_shape(mean_s, f_t)
    # Softplus, not exp: the variance grows linearly in s, so a large step of the optimizer
    # does not make it overflow.
    variance = F.softplus(wide(log_scale)) + _MIN_VARIANCE
    # One variance per channel, broadcast over the positions, as in the paper: the number of
    # parameters then does not depend on the resolution.
    variance = variance.view(-1, *(1,) * (f_t.dim() - 2))
    squared = (wide(mean_s) - wide(f_t.detach())).square()
    return (squared / variance + variance.log()).mean() / 2


def initial_log_scale(variance: float = 5.0) -> float:
    """Return the s of :func:`variational_information` that gives a variance.

    Args:
        variance: σ² > 1e-5, in squared activations.

    Returns:
        The inverse of σ² = softplus(s) + 1e-5.

    Raises:
        ValueError: if the variance is not above 1e-5.

    >>> round(initial_log_scale(), 4)
    4.9932
    """
    excess = variance - _MIN_VARIANCE
    if not excess > 0:  # written so that NaN fails, too
        raise ValueError(f"variance must be above {_MIN_VARIANCE}, got {variance}")
    return excess + math.log(-math.expm1(-excess))  # ln(eˣ − 1); eˣ overflows for large x


def flow(f_s1: Tensor, f_s2: Tensor, f_t1: Tensor, f_t2: Tensor) -> Tensor:
    r"""Flow of the solution procedure (FSP) :math:`\mathrm{mean}\,(G_s - G_t)^2`.

    G, B×C₁×C₂, is the mean over positions of the product of a channel of an early map and a
    channel of a later map of one network. The larger of the two maps is first max-pooled to
    the size of the smaller.

    Args:
        f_s1: student's early map, B×C₁×H×W.
        f_s2: student's later map, B×C₂×H'×W'.
        f_t1: teacher's early map, with C₁ channels.
        f_t2: teacher's later map, with C₂ channels.

    Returns:
        A scalar, in activations to the fourth power: its weight has to match their scale.

    Raises:
        ValueError: if the numbers of channels differ between the networks.

    Source: Yim et al. 2017, "A Gift from Knowledge Distillation: Fast Optimization, Network
    Minimization and Transfer Learning", CVPR.

    >>> import torch
    >>> one, two = torch.ones(1, 1, 4, 4), torch.full((1, 1, 2, 2), 2.0)
    >>> flow(one, two, one, one).item()
    1.0
    """
    channels_s = f_s1.shape[1], f_s2.shape[1]
    channels_t = f_t1.shape[1], f_t2.shape[1]
    # Checked here, because mse_loss broadcasts a matrix of one channel with a mere warning.
    if channels_s != channels_t:
        raise ValueError(
            f"the student's maps have {channels_s} channels, the teacher's {channels_t}; "
            "flow compares equal numbers of channels: use an adapter (1×1 convolution)"
        )
    return F.mse_loss(_flow_matrix(f_s1, f_s2), _flow_matrix(f_t1.detach(), f_t2.detach()))


def hierarchical_context(f_s: Tensor, f_t: Tensor) -> Tensor:
    r"""Hierarchical context loss (HCL) :math:`\sum_l w_l\,\mathrm{MSE}_l / \sum_l w_l`.

    Level 0 is the full map; the next levels are its average pools of 4×4, 2×2 and 1×1, where
    smaller than the map. The weight halves from each level to the next: 1, ½, ….

    Args:
        f_s: student's fused map, B×C×H×W.
        f_t: teacher's map, of the same shape.

    Returns:
        A scalar, in squared activations: its weight has to match their scale.

    Raises:
        ValueError: if the shapes differ.

    Source: Chen et al. 2021, "Distilling Knowledge via Knowledge Review", arXiv 2104.09044.

    >>> import torch
    >>> f_s, f_t = torch.zeros(1, 1, 2, 2), torch.tensor([[[[2.0, 2.0], [0.0, 0.0]]]])
    >>> round(hierarchical_context(f_s, f_t).item(), 4)  # (2 + ½·1) / 1½
    1.6667
    """
    _check_same_shape(f_s, f_t)
    # Average pooling is linear, so pooling the difference once replaces pooling both maps.
    difference = wide(f_s) - wide(f_t.detach())
    # The authors' code compares the pools with the height alone; for maps wider than high
    # both give the same levels.
    sizes = [size for size in (4, 2, 1) if size < min(difference.shape[2:])]
    levels = [difference, *(F.adaptive_avg_pool2d(difference, size) for size in sizes)]
    weights = [0.5**i for i in range(len(levels))]
    # Divided by the weights in use: small maps, with fewer levels, keep the same scale.
    errors = [w * x.square().mean() for w, x in zip(weights, levels, strict=True)]
    return sum(errors[1:], errors[0]) / sum(weights)


def unit(x: Tensor, shortest: float = 1e-12) -> Tensor:
    """Scale ``x`` to unit length along the last dimension.

    Args:
        x: vectors, …×D.
        shortest: length up to which a vector is returned unchanged.

    Returns:
        Vectors of unit length, …×D.
    """
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    # Not F.normalize, which divides short vectors by its ε = 1e-12: the gradient of a dead
    # map is then 1e12 times that of the loss. Here it passes through unscaled.
    return x / torch.where(length > shortest, length, 1.0)


def products(x: Tensor, y: Tensor) -> Tensor:
    """Return the inner products of all pairs of rows, x·yᵀ."""
    # Autocast would cast the operands of a matmul back to half precision, where products of
    # activations overflow (float16) or lose the small differences compared here (bfloat16).
    with torch.autocast(x.device.type, enabled=False):
        return x @ y.mT


def _check_same_shape(f_s: Tensor, f_t: Tensor) -> None:
    # Broadcasting a map of one channel or one position would compare something else.
    if f_s.shape != f_t.shape:
        raise ValueError(
            f"the student's map has shape {tuple(f_s.shape)}, the teacher's {tuple(f_t.shape)}; "
            "use an adapter that makes them equal"
        )


def _at_smaller_size(
    f_1: Tensor, f_2: Tensor, pool: Callable[[Tensor, tuple[int, int]], Tensor]
) -> tuple[Tensor, Tensor]:
    """Pool both maps to the smaller height and the smaller width of the two."""
    # Height and width separately: each network's map may be the larger one in one of them.
    size = min(f_1.shape[2], f_2.shape[2]), min(f_1.shape[3], f_2.shape[3])
    # Pooled down, never interpolated up, which would invent detail for the loss to match.
    f_1, f_2 = (f if f.shape[2:] == size else pool(f, size) for f in (f_1, f_2))
    return f_1, f_2


def _attention_map(f: Tensor, power: float) -> Tensor:
    # The mean over channels instead of the paper's sum: the scaling to unit length removes
    # the difference, and the mean stays in range for many channels.
    return unit(f.abs().pow(power).mean(1).flatten(1))


def _flow_matrix(f_1: Tensor, f_2: Tensor) -> Tensor:
    f_1, f_2 = _at_smaller_size(wide(f_1), wide(f_2), F.adaptive_max_pool2d)
    # One matmul per sample, C₁×P by P×C₂; RepDistiller's elementwise product of all
    # pairs of channels needs P times the memory.
    return products(f_1.flatten(2), f_2.flatten(2)) / f_1[0, 0].numel()
