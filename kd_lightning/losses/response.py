"""Response knowledge: what the teacher answers.

Shapes: B samples, C classes. Logits come student first, then teacher; no gradient
reaches the teacher's side. A temperature is a number, a scalar tensor or a tensor B×1 with
one for each sample; gradient reaches it, also through the factor T². Half precision is
computed, and returned, in float32.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def soft_targets(z_s: Tensor, z_t: Tensor, temperature: float | Tensor) -> Tensor:
    r"""Soft-target loss :math:`T^2\,\mathrm{KL}(p(z_t/T)\,\|\,p(z_s/T))`.

    Summed over the classes, averaged over the batch. The factor T² keeps the size of
    the gradient level while T varies, since the gradient of the divergence falls as 1/T².

    Args:
        z_s: student's logits, B×C.
        z_t: teacher's logits, B×C.
        temperature: T > 0, dimensionless; a number, a scalar or B×1.

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
    r"""Matching of logits :math:`\frac{1}{2C}\|\bar z_s - \bar z_t\|^2`, each centred.

    Averaged over the batch. It is the limit of :func:`soft_targets` for T → ∞: what a
    row's logits have in common does not count.

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

    TCKD is the divergence of (p(y), 1 − p(y)), how sure the networks are of the class y;
    NCKD that of the other classes among themselves, renormalised. Averaged over the batch.
    Of one sample, KL(p_t ‖ p_s) = TCKD + (1 − p_t(y))·NCKD: soft targets hardly hear of the
    other classes where the teacher is sure, this loss does.

    Args:
        z_s: student's logits, B×C with C ≥ 2.
        z_t: teacher's logits, B×C.
        target: classes y, B.
        temperature: T > 0, dimensionless; a number, a scalar or B×1.
        target_weight: α, dimensionless.
        non_target_weight: β, dimensionless.

    Returns:
        A scalar, in nats times T².

    Raises:
        ValueError: if the temperature is a tensor of another shape.

    Source: Zhao et al. 2022, "Decoupled Knowledge Distillation", arXiv 2203.08679.

    >>> import torch
    >>> z_s, z_t = torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([[1.0, 2.0, 0.0]])
    >>> round(decoupled(z_s, z_t, torch.tensor([0]), temperature=1.0).item(), 4)
    2.8492
    """
    binary_s, others_s = _split(_soften(z_s, temperature), target)
    binary_t, others_t = _split(_soften(z_t.detach(), temperature), target)
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
    r"""Loss of relations (DIST) :math:`T^2[a(1 - \bar r_r) + b(1 - \bar r_c)]`.

    r is Pearson's correlation of the networks' probabilities p(z/T), averaged: of the classes
    within a sample (inter-class, rows) and of the samples within a class (intra-class,
    columns). With a temperature for each sample, the factor is the mean of T².

    Where the probabilities do not vary (all columns of a batch of one) r is not defined:
    1 − r counts as 0 if neither network's vary, as ½ if one network's do.

    Args:
        z_s: student's logits, B×C.
        z_t: teacher's logits, B×C.
        temperature: T > 0, dimensionless; a number, a scalar or B×1.
        inter: a, dimensionless.
        intra: b, dimensionless.

    Returns:
        A scalar, dimensionless, times T².

    Raises:
        ValueError: if the temperature is a tensor of another shape.

    Source: Huang et al. 2022, "Knowledge Distillation from A Stronger Teacher",
    arXiv 2205.10536.

    >>> import torch
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
    r""":func:`soft_targets` of standardised logits :math:`(z - \bar z)/(\sigma + 10^{-7})`.

    Mean and standard deviation are those of a row, σ with C − 1 in the denominator. The
    student is free to choose size and offset of its logits. A row whose σ is below 1e-7
    is centred but not divided: its gradient would be noise, enlarged without limit.

    Args:
        z_s: student's logits, B×C with C ≥ 2.
        z_t: teacher's logits, B×C.
        temperature: T > 0, in standard deviations; a number, a scalar or B×1.

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
    std_s = _standardised(wide(z_s), dim=-1, correction=1, eps=1e-7)
    std_t = _standardised(wide(z_t.detach()), dim=-1, correction=1, eps=1e-7)
    return soft_targets(std_s, std_t, temperature)


def wide(x: Tensor) -> Tensor:
    """``x`` in float32 if it comes in half precision, else as it is."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _soften(z: Tensor, temperature: float | Tensor) -> Tensor:
    shape = temperature.shape if isinstance(temperature, Tensor) else torch.Size()
    if shape.numel() > 1 and shape != (len(z), 1):  # B would be broadcast along the classes
        raise ValueError(
            "a temperature is a number, a scalar tensor or B×1, "
            f"got a tensor of shape {tuple(shape)} for logits of shape {tuple(z.shape)}"
        )
    return wide(z) / temperature


def _times_square(loss: Tensor, temperature: float | Tensor) -> Tensor:
    """Mean of T²·loss over the samples."""
    if isinstance(temperature, Tensor):
        temperature = wide(temperature)
    return (loss * temperature**2).mean()


def _divergence(z_s: Tensor, z_t: Tensor) -> Tensor:
    """KL(p(z_t) ‖ p(z_s)) of each row, B×1."""
    log_p_s, log_p_t = F.log_softmax(z_s, dim=-1), F.log_softmax(z_t, dim=-1)
    return F.kl_div(log_p_s, log_p_t, reduction="none", log_target=True).sum(-1, keepdim=True)


def _split(z: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Logits of the target and of all other classes together, B×2, and of each other, B×(C−1).

    The target is left out, not masked by a large number, and nothing is subtracted from 1:
    both are exact in the logarithm, however sure a network is.
    """
    column = torch.arange(z.shape[-1] - 1, device=z.device)
    others = z.gather(-1, column + (column >= target[:, None]))
    of_target = z.gather(-1, target[:, None])
    return torch.cat([of_target, others.logsumexp(-1, keepdim=True)], dim=-1), others


def _one_minus_pearson(p_s: Tensor, p_t: Tensor, dim: int) -> Tensor:
    """Mean of 1 − r, as half the mean square of the difference of standardised values."""
    std_s = _standardised(p_s, dim, correction=0, eps=0.0)
    std_t = _standardised(p_t, dim, correction=0, eps=0.0)
    return (std_s - std_t).square().mean() / 2


def _standardised(x: Tensor, dim: int, correction: int, eps: float) -> Tensor:
    """Mean 0 and standard deviation 1 along ``dim``; values that hardly vary are left small."""
    std = x.std(dim, correction=correction, keepdim=True)
    return (x - x.mean(dim, keepdim=True)) / torch.where(std > max(eps, 1e-8), std + eps, 1.0)
