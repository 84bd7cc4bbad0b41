"""Response knowledge: what the teacher answers.

Shapes: B samples, C classes. Logits come student first, then teacher; no gradient
reaches the teacher's side.
"""

import torch.nn.functional as F
from torch import Tensor


def soft_targets(z_s: Tensor, z_t: Tensor, temperature: float | Tensor) -> Tensor:
    r"""Soft-target loss :math:`T^2\,\mathrm{KL}(p(z_t/T)\,\|\,p(z_s/T))`.

    Summed over the classes, averaged over the batch. The factor T² keeps the size of
    the gradient level while T varies, since the gradient of the divergence falls as 1/T².

    Args:
        z_s: student's logits, B×C.
        z_t: teacher's logits, B×C.
        temperature: T > 0, dimensionless.

    Returns:
        A scalar, in nats times T².

    Source: Hinton, Vinyals, Dean 2015, "Distilling the Knowledge in a Neural Network",
    arXiv 1503.02531, §2.

    >>> import torch
    >>> z_s, z_t = torch.tensor([[0.0, 0.0]]), torch.tensor([[2.0, 0.0]])
    >>> round(soft_targets(z_s, z_t, temperature=2.0).item(), 4)
    0.4438
    """
    log_p_s = F.log_softmax(z_s / temperature, dim=-1)
    log_p_t = F.log_softmax(z_t.detach() / temperature, dim=-1)
    divergence = F.kl_div(log_p_s, log_p_t, reduction="none", log_target=True).sum(-1)
    return divergence.mean() * temperature**2  # "batchmean" sums the batch: fp16 overflows
