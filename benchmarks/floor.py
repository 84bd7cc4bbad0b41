"""The bare training loop: a lower bound for the time of a distilled epoch.

Normalised images and the teacher's logits are in memory. A step consists of indexing, the
student, the loss and Adam, without Lightning, logging or validation.
"""

import time

import torch
import torch.nn.functional as F
from torch import Tensor, nn

T, ALPHA = 5.0, 0.5


class Floor:
    """A student and its optimizer, trained one epoch at a time.

    Args:
        student: the network to train.
        inputs: normalised images, N×C×H×W, float.
        target: class of each sample, N, int64.
        logits: the teacher's logits, N×K.
    """

    def __init__(self, student: nn.Module, inputs: Tensor, target: Tensor, logits: Tensor) -> None:
        self.student, self.inputs, self.target, self.logits = student, inputs, target, logits
        self.optimizer = torch.optim.Adam(student.parameters(), lr=1e-3)

    def epoch(self, batch_size: int) -> float:
        """Train for an epoch and return its seconds."""
        self.student.train()
        start = time.perf_counter()
        # Index tensors, as in our data module: a DataLoader over samples would be the bottleneck.
        for index in torch.randperm(len(self.target)).split(batch_size):
            z_s = self.student(self.inputs[index])
            # written out instead of imported, so that the bound contains none of our code
            hard = F.cross_entropy(z_s, self.target[index])
            log_p_s = F.log_softmax(z_s / T, dim=1)
            log_p_t = F.log_softmax(self.logits[index] / T, dim=1)
            soft = F.kl_div(log_p_s, log_p_t, reduction="batchmean", log_target=True)
            loss = (1 - ALPHA) * hard + ALPHA * T**2 * soft
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
        return time.perf_counter() - start
