"""The floor: the same mathematics with nothing around it.

Normalised images and the teacher's logits lie in memory; a step is an indexing, the
student, the loss, Adam. No Lightning, no logging, no validation.
"""

import time

import torch
import torch.nn.functional as F
from torch import Tensor, nn

T, ALPHA = 5.0, 0.5


class Floor:
    """A student and an optimizer that see an epoch at a time.

    Args:
        student: the network to train.
        inputs: N×C×H×W, float, normalised.
        target: N.
        logits: the teacher's, N×K.
    """

    def __init__(self, student: nn.Module, inputs: Tensor, target: Tensor, logits: Tensor) -> None:
        self.student, self.inputs, self.target, self.logits = student, inputs, target, logits
        self.optimizer = torch.optim.Adam(student.parameters(), lr=1e-3)

    def epoch(self, batch_size: int) -> float:
        """Train for an epoch; the seconds it took."""
        self.student.train()
        start = time.perf_counter()
        for index in torch.randperm(len(self.target)).split(batch_size):
            z_s = self.student(self.inputs[index])
            hard = F.cross_entropy(z_s, self.target[index])
            log_p_s = F.log_softmax(z_s / T, dim=1)
            log_p_t = F.log_softmax(self.logits[index] / T, dim=1)
            soft = F.kl_div(log_p_s, log_p_t, reduction="batchmean", log_target=True)
            loss = (1 - ALPHA) * hard + ALPHA * T**2 * soft
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
        return time.perf_counter() - start
