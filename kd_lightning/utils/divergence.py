"""Kullback-Leibler divergence, shared by losses, metrics and cache."""

import torch.nn.functional as F
from torch import Tensor


def kl_divergence(z_p: Tensor, z_q: Tensor) -> Tensor:
    r"""Return KL(p ‖ q) of each row, :math:`\sum_c p_c (\log p_c - \log q_c)`, in nats.

    Args:
        z_p: logits of p, …×C.
        z_q: logits of q, …×C.

    Returns:
        One value per row, ….

    >>> import torch
    >>> z = torch.tensor([[2.0, 0.0]])
    >>> round(kl_divergence(z, torch.zeros(1, 2)).item(), 4)
    0.3278
    """
    # Both in log space: the logarithm of a softmax is −∞ where the softmax underflows.
    log_p, log_q = F.log_softmax(z_p, dim=-1), F.log_softmax(z_q, dim=-1)
    # Not reduction="mean", which divides by B·C and so scales a loss by 1/C.
    # What F.kl_div computes, which torch.vmap runs student by student for want of a batching rule.
    return (log_p.exp() * (log_p - log_q)).sum(-1)
