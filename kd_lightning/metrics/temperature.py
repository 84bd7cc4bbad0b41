"""Effect of the temperature on teacher outputs and gradients.

It checks §2 of Hinton, Vinyals, Dean 2015 (arXiv 1503.02531): for large T the gradient of the
soft loss approaches that of a squared error between logits.

Shapes: B samples, C classes, K temperatures.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from kd_lightning.metrics.sums import Sums

# 0.1 to 1000 in steps of 10^(1/6): four decades show the limit, and 1, 10 and 100 are among them
TEMPERATURES = tuple(10 ** (i / 6 - 1) for i in range(25))


def temperature_curves(z_s: Tensor, teacher: Callable[[float], Tensor]) -> Tensor:
    r"""Return four numbers per sample and temperature.

    - Entropy of the teacher's probabilities p(z_t/T), in nats: 0 for a one-hot distribution,
      ln C for a uniform one.
    - Norm of the gradient of KL(p(z_t/T) ‖ p(z_s/T)) with respect to z_s,
      :math:`\|p_s - p_t\|/T`; it falls as 1/T².
    - Distance of T² times that gradient from its limit for T → ∞, the gradient of
      :func:`~kd_lightning.losses.logit_mse`: :math:`(\bar z_s - \bar z_t)/C`.
    - Norm of that limit, which is the same for all T.

    Args:
        z_s: the student's logits, B×C.
        teacher: returns the teacher's logits, B×C, at a temperature.

    Returns:
        B×K×4, float64, on the CPU.

    >>> z = torch.zeros(1, 2)
    >>> curves = temperature_curves(z, lambda t: torch.tensor([[2.0, 0.0]]))
    >>> [round(x, 3) for x in curves[0, 6].tolist()]  # T = 1
    [0.365, 0.539, 0.169, 0.707]
    """
    # float64, because at T = 1000 p_s − p_t is a difference of nearly equal numbers that is
    # multiplied by T². On the CPU, because MPS has no float64.
    t = torch.tensor(TEMPERATURES, dtype=torch.float64)[:, None]
    z_s = z_s.detach().cpu().double()[:, None]  # B×1×C
    z_t = torch.stack([teacher(value) for value in TEMPERATURES], dim=1).detach().cpu().double()
    log_p = (z_t / t).log_softmax(-1)
    gradient = ((z_s / t).softmax(-1) - log_p.exp()) / t
    # An ensemble's logits depend on T; those at the largest stand for the limit.
    difference = z_s - z_t[:, -1:]
    limit = (difference - difference.mean(-1, keepdim=True)) / z_s.shape[-1]
    entropy = -(log_p.exp() * log_p).sum(-1)
    norms = (x.norm(dim=-1) for x in (gradient, t**2 * gradient - limit, limit.expand_as(log_p)))
    return torch.stack([entropy, *norms], dim=-1)


class TemperatureMetric(Sums):
    """Mean temperature curves over a split.

    ``temperature_curves``, K×4, has the columns: T; the mean entropy of the teacher's
    probabilities, in nats; the mean norm of the gradient of KL (without T²) with respect to
    the student's logits; and the mean distance of T² times that gradient from its limit,
    divided by the mean norm of the limit.
    """

    curves: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__(curves=(1, len(TEMPERATURES), 4), count=(1,))

    def update(self, logits: Tensor, teacher: Callable[[float], Tensor]) -> None:
        """Add a batch.

        Args:
            logits: the student's, B×C.
            teacher: returns the teacher's logits, B×C, at a temperature.
        """
        row = torch.zeros(len(logits), dtype=torch.long, device=logits.device)
        self.add("curves", temperature_curves(logits, teacher).to(logits), row)
        self.add("count", torch.ones_like(row), row)

    def compute(self) -> dict[str, Tensor]:
        """Return the table by its name."""
        entropy, gradient, distance, limit = self.curves[0].unbind(1)
        # a ratio of means, not a mean of ratios: samples on which both agree would divide by 0
        columns = torch.tensor(TEMPERATURES).to(entropy), entropy / self.count
        columns = (*columns, gradient / self.count, distance / limit)
        return {"temperature_curves": torch.stack(columns, dim=1)}
