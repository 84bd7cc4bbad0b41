"""Teachers made worse on purpose, to see what a gain is due to.

Shapes: B samples, C classes.
"""

import torch
from torch import Tensor

from kd_lightning.losses.response import soft_targets


def permuted_soft_targets(
    z_s: Tensor, z_t: Tensor, target: Tensor, index: Tensor, temperature: float | Tensor
) -> Tensor:
    """:func:`~kd_lightning.losses.soft_targets` of a teacher with its wrong classes shuffled.

    The target keeps its probability, at any temperature; the others' are dealt out anew, to
    each sample in an order of its own that stays the same in all epochs. What is left is how
    sure the teacher is of each sample; what is gone is which classes it likens to which.

    Args:
        z_s: student's logits, B×C.
        z_t: teacher's logits, B×C.
        target: classes, B.
        index: positions of the samples in the training set, B; they decide the orders.
        temperature: T > 0, dimensionless; a number, a scalar or B×1.

    Returns:
        A scalar, in nats times T².

    Source: Furlanello et al. 2018, "Born-Again Neural Networks", arXiv 1805.04770, "dark
    knowledge with permuted predictions"; there the teacher's top class stays, here the label.

    >>> import torch
    >>> z_t, label = torch.tensor([[9.0, 5.0, 1.0]] * 2), torch.tensor([0, 0])
    >>> permuted(z_t, label, index=torch.arange(2))
    tensor([[9., 1., 5.],
            [9., 5., 1.]])
    """
    return soft_targets(z_s, permuted(z_t.detach(), target, index), temperature)


def permuted(z: Tensor, target: Tensor, index: Tensor) -> Tensor:
    """Logits, B×C, shuffled among the classes that are not the target, by sample index."""
    column = torch.arange(z.shape[1] - 1, device=z.device)
    wrong = column + (column >= target[:, None])  # the wrong classes of each sample, B×(C−1)
    order = _hash(index[:, None] * z.shape[1] + wrong).argsort(1)
    return z.scatter(1, wrong, z.gather(1, wrong.gather(1, order)))


def _hash(x: Tensor) -> Tensor:
    """Whole numbers that look random, the same on every device (int64 wraps around)."""
    for factor in (0x1B873593CC9E2D51, 0x2127599BF4325C37):
        x = (x + 1) * factor
        x = x ^ (x >> 29)
    return x
