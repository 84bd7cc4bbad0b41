"""What a temperature does, sample by sample: Hinton, Vinyals, Dean 2015, arXiv 1503.02531, §2.

B samples, C classes, K temperatures.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from kd_lightning.metrics.sums import Sums

TEMPERATURES = tuple(10 ** (i / 6 - 1) for i in range(25))  # from 0.1 to 1000


def temperature_curves(z_s: Tensor, teacher: Callable[[float], Tensor]) -> Tensor:
    r"""Three numbers of each sample at each temperature, and what the last tends to; B×K×4.

    - the entropy of the teacher's answer p(z_t/T), in nats: 0 for a hard label, ln C for no
      opinion;
    - the norm of the gradient of KL(p(z_t/T) ‖ p(z_s/T)) at z_s, :math:`\|p_s - p_t\|/T`:
      it falls as 1/T²;
    - how far T² times that gradient is from the gradient of
      :func:`~kd_lightning.losses.logit_mse`, :math:`(\bar z_s - \bar z_t)/C`;
    - the norm of that gradient itself, the same for all T.

    Args:
        z_s: student's logits, B×C.
        teacher: the teacher's logits, B×C, at a temperature.

    >>> z = torch.zeros(1, 2)
    >>> curves = temperature_curves(z, lambda t: torch.tensor([[2.0, 0.0]]))
    >>> [round(x, 3) for x in curves[0, 6].tolist()]  # T = 1
    [0.365, 0.539, 0.169, 0.707]
    """
    t = torch.tensor(TEMPERATURES, dtype=torch.float64)[:, None]
    z_s = z_s.detach().cpu().double()[:, None]  # B×1×C
    z_t = torch.stack([teacher(value) for value in TEMPERATURES], dim=1).detach().cpu().double()
    log_p = (z_t / t).log_softmax(-1)
    gradient = ((z_s / t).softmax(-1) - log_p.exp()) / t
    difference = z_s - z_t[:, -1:]  # at the last T, which is as good as without end
    limit = (difference - difference.mean(-1, keepdim=True)) / z_s.shape[-1]
    entropy = -(log_p.exp() * log_p).sum(-1)
    norms = (x.norm(dim=-1) for x in (gradient, t**2 * gradient - limit, limit.expand_as(log_p)))
    return torch.stack([entropy, *norms], dim=-1)


class Theory(Sums):
    """What the temperature does to the teacher's answers and to the student's gradient.

    ``temperature_curves``, K×4: T, and means over the samples of the entropy of the
    teacher's answer, of the norm of the gradient of KL (without T²) at the student's logits,
    and of the distance of T² times that gradient from its limit, over the limit's own norm.
    """

    curves: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__(curves=(1, len(TEMPERATURES), 4), count=(1,))

    def update(self, logits: Tensor, teacher: Callable[[float], Tensor]) -> None:
        """Add a batch: the student's logits B×C, and the teacher."""
        row = torch.zeros(len(logits), dtype=torch.long, device=logits.device)
        self.add("curves", temperature_curves(logits, teacher).to(logits), row)
        self.add("count", torch.ones_like(row), row)

    def compute(self) -> dict[str, Tensor]:
        """The table by its name."""
        entropy, gradient, distance, limit = self.curves[0].unbind(1)
        columns = torch.tensor(TEMPERATURES).to(entropy), entropy / self.count
        columns = (*columns, gradient / self.count, distance / limit)
        return {"temperature_curves": torch.stack(columns, dim=1)}
