"""One optimizer for stacked weights, with a learning rate and a weight decay of each student.

An optimizer that treats every number by itself, as Adam and SGD do, trains S students at once
if it is given their stacked weights. The learning rate is the exception, as torch takes one for
all. Where the students differ in it, the optimizer steps with a rate of 1, and that step is
scaled: all of :data:`KNOWN` are linear in the rate.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer

KNOWN = (SGD, Adam, AdamW)  # exactly these: a subclass may do anything


class StackedOptimizer:
    """Trains stacked weights as separate optimizers would.

    Args:
        weights: parameters, S×… each.
        make: creates the optimizer from parameter groups.
        separate: the optimizer that each student would have alone, S. They say the current
            learning rate and weight decay of each, and are not stepped.
    """

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        make: Callable[[Any], Optimizer],
        separate: Sequence[Optimizer],
    ) -> None:
        self.weights, self.separate = list(weights.values()), separate
        self.inner = make([{"params": self.weights}])
        self.is_decoupled = bool(self.group.get("decoupled_weight_decay"))
        self.follow()

    @property
    def group(self) -> dict[str, Any]:
        """The inner optimizer's only parameter group."""
        return self.inner.param_groups[0]

    def follow(self) -> None:
        """Take over the learning rates and weight decays of the separate optimizers."""
        rates = [one.param_groups[0]["lr"] for one in self.separate]
        decays = [one.param_groups[0]["weight_decay"] for one in self.separate]
        self.rates = None if _are_equal(rates) else self._spread(rates)
        self.group["lr"] = rates[0] if self.rates is None else 1.0
        # A decoupled decay is a step of its own, of the size rate × decay.
        is_common = _are_equal(decays) and (self.rates is None or not self.is_decoupled)
        self.decays = None if is_common else self._spread(decays)
        self.group["weight_decay"] = decays[0] if is_common else 0.0
        self.all_rates = self._spread(rates) if self.decays is not None else None

    def _spread(self, values: Sequence[float]) -> list[Tensor]:
        """Return the values of all students in the shape of each weight, S×1×…."""
        return [
            torch.tensor(values, dtype=w.dtype, device=w.device).view(-1, *[1] * (w.dim() - 1))
            for w in self.weights
        ]

    @torch.no_grad()
    def step(self) -> None:
        """Take a step with the gradients of the weights."""
        if self.decays is not None:
            self._decay(self.decays)
        if self.rates is None:
            self.inner.step()
            return
        before = [w.detach().clone() for w in self.weights]
        self.inner.step()
        for weight, start, rate in zip(self.weights, before, self.rates, strict=True):
            weight.sub_(start).mul_(rate).add_(start)

    def _decay(self, decays: list[Tensor]) -> None:
        for i, (weight, decay) in enumerate(zip(self.weights, decays, strict=True)):
            if self.is_decoupled:
                assert self.all_rates is not None
                weight.mul_(1 - self.all_rates[i] * decay)
            elif weight.grad is not None:
                weight.grad.add_(weight * decay)

    def zero_grad(self) -> None:
        """Drop the gradients."""
        self.inner.zero_grad(set_to_none=True)

    def state(self) -> list[dict[str, Tensor]]:
        """Return the state of each weight, S×… each; one for all students is not repeated."""
        kinds = [self.inner.state[w] for w in self.weights]
        return [{k: v for k, v in kind.items() if isinstance(v, Tensor)} for kind in kinds]


def state_of(
    state: Sequence[Mapping[str, Tensor]], student: int, separate: Optimizer
) -> dict[str, Any]:
    """Return the state dict of one student's optimizer.

    Args:
        state: that of all, from :meth:`StackedOptimizer.state`.
        student: position of the student.
        separate: its own optimizer, which has no state yet.
    """
    parameters = [p for group in separate.param_groups for p in group["params"]]
    found = separate.state_dict()
    found["state"] = {
        i: {
            k: (v[student] if v.dim() and v.shape[1:] == p.shape else v).clone()
            for k, v in own.items()
        }
        for i, (own, p) in enumerate(zip(state, parameters, strict=True))
        if own
    }
    return found


def _are_equal(values: Sequence[float]) -> bool:
    return len(set(values)) == 1
