"""Response losses: compare the student's logits with the teacher's.

Shapes: B samples, C classes. The student's logits come first, then the teacher's; the
teacher's receive no gradient. A temperature is a number, a scalar tensor, or a B×1 tensor
with one value per sample; gradient reaches it, also through the factor T². Half-precision
inputs are computed, and the loss is returned, in float32.
"""

import torch
from torch import Tensor

from kd_lightning.utils.divergence import kl_divergence


def soft_targets(z_s: Tensor, z_t: Tensor, temperature: float | Tensor) -> Tensor:
    r"""Soft-target loss :math:`T^2\,\mathrm{KL}(p(z_t/T)\,\|\,p(z_s/T))`.

    Summed over the classes, averaged over the batch. The gradient of the divergence scales
    as 1/T²; the factor T² keeps its magnitude independent of T.

    Args:
        z_s: student's logits, B×C.
        z_t: teacher's logits, B×C.
        temperature: T > 0, dimensionless; a number, a scalar tensor, or B×1.

    Returns:
        A scalar, in nats times T².

    Raises:
        ValueError: if the temperature is a tensor of another shape.

    Source: Hinton, Vinyals, Dean 2015, "Distilling the Knowledge in a Neural Network",
    arXiv 1503.02531, §2.

    >>> import torch
    >>> z_s, z_t = torch.tensor([[0.0, 0.0]]), torch.tensor([[2.0, 0.0]])
    >>> round(soft_targets(z_s, z_t, temperature=2.0).item(), 4)
    0.4438
    """
    soft_s, soft_t = _soften(z_s, temperature), _soften(z_t.detach(), temperature)
    return _times_square(_divergence(soft_s, soft_t), temperature)


def logit_mse(z_s: Tensor, z_t: Tensor) -> Tensor:
    r"""Mean squared error of centred logits :math:`\frac{1}{2C}\|\bar z_s - \bar z_t\|^2`.

    Averaged over the batch. It is the limit of :func:`soft_targets` for T → ∞, and like it
    invariant to a constant added to a row of logits.

    Args:
        z_s: student's logits, B×C.
        z_t: teacher's logits, B×C.

    Returns:
        A scalar, in squared logits.

    Source: Hinton, Vinyals, Dean 2015, arXiv 1503.02531, §2.1.

    >>> import torch
    >>> logit_mse(torch.tensor([[5.0, 5.0]]), torch.tensor([[2.0, 0.0]])).item()
    0.5
    """
    difference = wide(z_s) - wide(z_t.detach())
    # Hinton et al. assume zero-mean logits. Networks do not keep them so; without centring,
    # the loss would penalise an offset that the softmax ignores.
    centred = difference - difference.mean(-1, keepdim=True)
    return centred.square().mean() / 2


def decoupled(
    z_s: Tensor,
    z_t: Tensor,
    target: Tensor,
    temperature: float | Tensor,
    target_weight: float = 1.0,
    non_target_weight: float = 8.0,
) -> Tensor:
    r"""Decoupled distillation (DKD) :math:`T^2(\alpha\,\mathrm{TCKD} + \beta\,\mathrm{NCKD})`.

    TCKD is the divergence of the binary distributions (p(y), 1 − p(y)) of the target class
    y; NCKD that of the remaining classes, renormalised. Averaged over the batch. For one
    sample, KL(p_t ‖ p_s) = TCKD + (1 − p_t(y))·NCKD.

    Args:
        z_s: student's logits, B×C with C ≥ 2.
        z_t: teacher's logits, B×C.
        target: classes y, B.
        temperature: T > 0, dimensionless; a number, a scalar tensor, or B×1.
        target_weight: α, dimensionless.
        non_target_weight: β, dimensionless.

    Returns:
        A scalar, in nats times T².

    Raises:
        ValueError: if the temperature is a tensor of another shape.

    Source: Zhao et al. 2022, "Decoupled Knowledge Distillation", arXiv 2203.08679.

    >>> z_s, z_t = torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([[1.0, 2.0, 0.0]])
    >>> round(decoupled(z_s, z_t, torch.tensor([0]), temperature=1.0).item(), 4)
    2.8492
    """
    binary_s, others_s = _split(_soften(z_s, temperature), target)
    binary_t, others_t = _split(_soften(z_t.detach(), temperature), target)
    # NCKD keeps a weight of its own: inside the KL its weight 1 − p_t(y) vanishes exactly
    # for the samples on which the teacher is confident.
    of_target = target_weight * _divergence(binary_s, binary_t)
    of_others = non_target_weight * _divergence(others_s, others_t)
    return _times_square(of_target + of_others, temperature)


def correlation(
    z_s: Tensor,
    z_t: Tensor,
    temperature: float | Tensor,
    inter: float = 1.0,
    intra: float = 1.0,
) -> Tensor:
    r"""Correlation loss (DIST) :math:`T^2[a(1 - \bar r_r) + b(1 - \bar r_c)]`.

    r is Pearson's correlation between the two networks' probabilities p(z/T), averaged over
    the rows (inter-class) or over the columns (intra-class). With one temperature per
    sample, the factor is the mean of T². Where probabilities are constant (every column of
    a batch of one) r is undefined: 1 − r is then 0 if both networks' are constant, else ½.

    Args:
        z_s: student's logits, B×C.
        z_t: teacher's logits, B×C.
        temperature: T > 0, dimensionless; a number, a scalar tensor, or B×1.
        inter: a, dimensionless.
        intra: b, dimensionless.

    Returns:
        A scalar, dimensionless, times T².

    Raises:
        ValueError: if the temperature is a tensor of another shape.

    Source: Huang et al. 2022, "Knowledge Distillation from A Stronger Teacher",
    arXiv 2205.10536.

    >>> z_s, z_t = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[0.0, 1.0], [0.0, 1.0]])
    >>> round(correlation(z_s, z_t, temperature=1.0).item(), 4)
    1.5
    """
    p_s = _soften(z_s, temperature).softmax(-1)
    p_t = _soften(z_t.detach(), temperature).softmax(-1)
    of_rows = inter * _one_minus_pearson(p_s, p_t, dim=-1)
    of_columns = intra * _one_minus_pearson(p_s, p_t, dim=0)
    return _times_square(of_rows + of_columns, temperature)


def standardized_soft_targets(z_s: Tensor, z_t: Tensor, temperature: float | Tensor) -> Tensor:
    r"""Soft-target loss of standardised logits :math:`(z - \bar z)/(\sigma + 10^{-7})`.

    Mean and standard deviation are taken over a row, σ with C − 1 in the denominator. The
    loss is invariant to the scale and offset of the student's logits. A row with σ below
    1e-7 is centred but not divided, since its gradient would be amplified rounding error.

    Args:
        z_s: student's logits, B×C with C ≥ 2.
        z_t: teacher's logits, B×C.
        temperature: T > 0, in standard deviations; a number, a scalar tensor, or B×1.

    Returns:
        A scalar, in nats times T².

    Raises:
        ValueError: if the temperature is a tensor of another shape.

    Source: Sun et al. 2024, "Logit Standardization in Knowledge Distillation",
    arXiv 2403.01427.

    >>> import torch
    >>> z = torch.tensor([[3.0, 1.0, 0.0]])
    >>> abs(round(standardized_soft_targets(2 * z + 5, z, temperature=2.0).item(), 6))
    0.0
    """
    # The correction C − 1 and the 1e-7 are those of the authors' code.
    std_s = _standardised(wide(z_s), dim=-1, correction=1, eps=1e-7)
    std_t = _standardised(wide(z_t.detach()), dim=-1, correction=1, eps=1e-7)
    return soft_targets(std_s, std_t, temperature)


def wide(x: Tensor) -> Tensor:
    """Return ``x`` in float32 if it has half precision, else unchanged."""
    # Float64 passes through, so that gradients can be checked with finite differences.
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _soften(z: Tensor, temperature: float | Tensor) -> Tensor:
    shape = temperature.shape if isinstance(temperature, Tensor) else torch.Size()
    # A shape of B would broadcast along the classes, silently wherever B = C.
    if shape.numel() > 1 and shape != (len(z), 1):
        raise ValueError(
            f"temperature has shape {tuple(shape)} for logits of shape {tuple(z.shape)}; "
            "pass a number, a scalar tensor, or one value per sample as B×1"
        )
    # Widened before the division: float16 logits over T < 1 could overflow.
    return wide(z) / temperature


def _times_square(loss: Tensor, temperature: float | Tensor) -> Tensor:
    """Return the mean of T²·loss over the samples."""
    # T² stays inside the mean: with one T per sample it is a factor of each row. In half
    # precision the square overflows from T = 256.
    if isinstance(temperature, Tensor):
        temperature = wide(temperature)
    return (loss * temperature**2).mean()


def _divergence(z_s: Tensor, z_t: Tensor) -> Tensor:
    """Return KL(p(z_t) ‖ p(z_s)) of each row, B×1."""
    return kl_divergence(z_t, z_s)[..., None]


def _split(z: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Split logits into target versus rest, B×2, and the non-target classes, B×(C−1)."""
    # The authors' code subtracts 1000 from the target's logit and takes the logarithm of a
    # summed softmax. The first leaks for logits of that size, the second is −∞ for
    # confident networks; leaving the target out and a logsumexp are exact.
    column = torch.arange(z.shape[-1] - 1, device=z.device)
    others = z.gather(-1, column + (column >= target[:, None]))
    of_target = z.gather(-1, target[:, None])
    return torch.cat([of_target, others.logsumexp(-1, keepdim=True)], dim=-1), others


def _one_minus_pearson(p_s: Tensor, p_t: Tensor, dim: int) -> Tensor:
    """Return the mean of 1 − r along ``dim``, a scalar."""
    # For standardised values, half the mean squared difference is 1 − r. Unlike 1 minus a
    # mean product it does not cancel as r → 1: equal inputs give exactly 0, with no gradient.
    std_s = _standardised(p_s, dim, correction=0, eps=0.0)
    std_t = _standardised(p_t, dim, correction=0, eps=0.0)
    return (std_s - std_t).square().mean() / 2


def _standardised(x: Tensor, dim: int, correction: int, eps: float) -> Tensor:
    """Scale ``x`` to mean 0 and standard deviation 1 along ``dim``."""
    std = x.std(dim, correction=correction, keepdim=True)
    # Nearly constant values are centred only: divided by their deviation, rounding errors
    # would become values, and gradients, of order one and more. torch.where passes no
    # gradient through the branch it does not take.
    return (x - x.mean(dim, keepdim=True)) / torch.where(std > max(eps, 1e-8), std + eps, 1.0)
