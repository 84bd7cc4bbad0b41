"""The training objective of a student: the one place where a loss is put together.

    L = (1 − α)·CE(z_s, y) + α·response(z_s, z_t)

B samples, C classes; z_s and z_t are the student's and the teacher's logits, B×C.
"""

from typing import Protocol

import torch.nn.functional as F
from torch import Tensor, nn

from kd_lightning.errors import UserError
from kd_lightning.losses.response import soft_targets


class ResponseLoss(Protocol):
    """A loss between the student's and the teacher's logits; see ``kd_lightning.losses``."""

    def __call__(self, z_s: Tensor, z_t: Tensor, temperature: float) -> Tensor: ...


class Objective(nn.Module):
    """Weighted sum of the hard loss on the labels and the response loss on the teacher.

    Args:
        alpha: weight of the response loss, in 0…1; the hard loss weighs 1 − alpha.
        temperature: T > 0 of the response loss. Its factor T² is part of that loss.
        response: the response loss, by default :func:`~kd_lightning.losses.soft_targets`.

    Raises:
        UserError: if alpha is outside 0…1 or temperature is not positive.
    """

    def __init__(
        self,
        alpha: float = 0.5,
        temperature: float = 5.0,
        response: ResponseLoss = soft_targets,
    ) -> None:
        super().__init__()
        if not 0 <= alpha <= 1:
            raise UserError(
                f"method.alpha must lie in 0…1 (weight of the teacher's answers), got {alpha}"
            )
        if not 0 < temperature < float("inf"):
            raise UserError(f"method.temperature must be a positive number, got {temperature}")
        self.alpha = alpha
        self.temperature = temperature
        self.response = response

    @property
    def needs_teacher(self) -> bool:
        """Whether any term with a weight looks at the teacher."""
        return self.alpha > 0

    def settings(self) -> dict[str, float]:
        """The numbers that steer the objective now, to be logged beside its terms."""
        return {"alpha": self.alpha, "temperature": self.temperature}

    def forward(self, z_s: Tensor, z_t: Tensor | None, target: Tensor) -> dict[str, Tensor]:
        """The terms by name, unweighted, and their weighted sum under ``loss``.

        Args:
            z_s: student's logits, B×C.
            z_t: teacher's logits, B×C; may be absent where no term needs them.
            target: classes, B.
        """
        hard = F.cross_entropy(z_s, target)
        if not self.needs_teacher:
            return {"loss": hard, "hard": hard}
        assert z_t is not None, "this objective needs the teacher's logits"
        response = self.response(z_s, z_t, temperature=self.temperature)
        loss = (1 - self.alpha) * hard + self.alpha * response
        return {"loss": loss, "hard": hard, "response": response}
