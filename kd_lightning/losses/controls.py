"""Controls: response losses whose teacher is degraded on purpose.

Comparing a student with one trained on a control shows which part of the teacher's output
a gain is due to. Shapes: B samples, C classes.
"""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from kd_lightning.losses.response import soft_targets

Loss = TypeVar("Loss", bound=Callable[..., Tensor])


def control(name: str) -> Callable[[Loss], Loss]:
    """Mark a response loss as a control, for the objective and the run's record to read.

    Args:
        name: of the control; becomes the function's attribute ``control``.

    Returns:
        A decorator that returns the same function.

    >>> @control("zero")
    ... def zero_logits(z_s, z_t, temperature):
    ...     return soft_targets(z_s, torch.zeros_like(z_t), temperature)
    >>> zero_logits.control
    'zero'
    """

    def mark(loss: Loss) -> Loss:
        # An attribute of the function rather than a list of names elsewhere: a user's own
        # control is recognised without being registered. Written through __dict__ because
        # type checkers know no attributes of functions.
        loss.__dict__["control"] = name
        return loss

    return mark


@control("permuted")
def permuted_soft_targets(
    z_s: Tensor, z_t: Tensor, target: Tensor, index: Tensor, temperature: float | Tensor
) -> Tensor:
    """Soft-target loss of a teacher whose non-target logits are permuted.

    The target class keeps its probability, at every temperature. The other classes exchange
    theirs by a permutation drawn per sample and fixed across epochs. The student still sees
    the teacher's confidence on each sample, but not which classes are similar. The attribute
    ``control`` is the name of this control.

    Args:
        z_s: student's logits, B×C.
        z_t: teacher's logits, B×C.
        target: classes, B.
        index: positions of the samples in the training set, B; they determine the permutations.
        temperature: T > 0, dimensionless; a number, a scalar tensor, or B×1.

    Returns:
        A scalar, in nats times T².

    Source: Furlanello et al. 2018, "Born-Again Neural Networks", arXiv 1805.04770, "dark
    knowledge with permuted predictions".

    >>> import torch
    >>> z_t, label = torch.tensor([[9.0, 5.0, 1.0]] * 2), torch.tensor([0, 0])
    >>> permuted(z_t, label, index=torch.arange(2))
    tensor([[9., 1., 5.],
            [9., 5., 1.]])
    """
    return soft_targets(z_s, permuted(z_t.detach(), target, index), temperature)


def permuted(z: Tensor, target: Tensor, index: Tensor) -> Tensor:
    """Permute the logits of each sample's non-target classes.

    Args:
        z: logits, B×C.
        target: classes, B; their logits stay in place.
        index: positions of the samples in the training set, B.

    Returns:
        The permuted logits, B×C.
    """
    # Furlanello et al. keep the teacher's top class in place. Where the teacher is wrong,
    # that would leave the label among the permuted classes; here the label stays.
    column = torch.arange(z.shape[1] - 1, device=z.device)
    wrong = column + (column >= target[:, None])  # the non-target classes, B×(C−1)
    # Sorting hashed keys gives every permutation the same probability. A hash instead of a
    # generator: it depends on the sample alone, not on its batch, the epoch or the device,
    # and needs no N×C table of permutations.
    order = _hash(index[:, None] * z.shape[1] + wrong).argsort(1)
    return z.scatter(1, wrong, z.gather(1, wrong.gather(1, order)))


def _hash(x: Tensor) -> Tensor:
    """Map integers to pseudo-random ones, identically on every device."""
    # Two rounds of multiply and xor-shift; int64 multiplication wraps around everywhere.
    # After one round, consecutive indices reach only some of the permutations.
    for factor in (0x1B873593CC9E2D51, 0x2127599BF4325C37):
        x = (x + 1) * factor
        x = x ^ (x >> 29)
    return x
