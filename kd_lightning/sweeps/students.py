"""Students of one architecture, trained in one step: their weights are stacked.

Shapes: S students, B samples in a batch of each, C classes. A network runs once, under
``torch.vmap``, on weights of which each has a leading dimension S.
"""

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from kd_lightning.objective import Objective
from kd_lightning.utils.networks import logits_of

State = dict[str, Tensor]
Terms = dict[str, Tensor]


class Students:
    """Networks that differ in their weights only.

    Args:
        net: one of them; it is copied.
        states: state dict of each.

    Attributes:
        weights: the parameters in training by name, S×… each.
        rest: the other parameters and the buffers by name, S×… each, such as batch statistics.
    """

    def __init__(self, net: nn.Module, states: Sequence[Mapping[str, Tensor]]) -> None:
        self.net = _plain_copy(net)
        trained = {name for name, p in self.net.named_parameters() if p.requires_grad}
        # By the module's own names: a state dict repeats parameters that layers share.
        named = {**dict(self.net.named_parameters()), **dict(self.net.named_buffers())}
        stacked = {
            k: torch.stack([state[k].contiguous() for state in states]).to(v)
            for k, v in named.items()
        }
        self.weights = {k: v.requires_grad_() for k, v in stacked.items() if k in trained}
        self.rest = {k: v for k, v in stacked.items() if k not in trained}

    def __len__(self) -> int:
        return len(next(iter(self.weights.values())))

    @property
    def state(self) -> State:
        """All weights and buffers, S×… each, without gradient; they share memory."""
        return {**{k: v.detach() for k, v in self.weights.items()}, **self.rest}

    def of(self, state: Mapping[str, Tensor], student: int) -> State:
        """Return the state dict of one student, from a stacked state."""
        own = {k: v[student] for k, v in state.items()}
        # Buffers that are not stored are left out; layers may share parameters, which a state
        # dict has under every name.
        known = self.net.state_dict(keep_vars=True)
        names = {id(p): k for k, p in self.net.named_parameters()}
        return {k: own[names.get(id(p), k)].clone() for k, p in known.items()}

    def terms(
        self,
        objective: Objective,
        values: Mapping[str, Tensor],
        inputs: Tensor,
        z_t: Tensor | None,
        target: Tensor,
        index: Tensor,
    ) -> Terms:
        """Compute the terms of a training step; see :meth:`Objective.forward`.

        Args:
            objective: the objective of one student; the others differ in ``values`` only.
            values: ``alpha``, ``temperature`` and ``hard_weight``, S each.
            inputs: S×B×….
            z_t: the teacher's logits, S×B×C or S×B×M×C; None if none are needed.
            target: S×B.
            index: S×B.

        Returns:
            Terms by name, S each.
        """

        def of_one(
            weights: State,
            rest: State,
            own: dict[str, Tensor],
            x: Tensor,
            z: Tensor | None,
            y: Tensor,
            i: Tensor,
        ) -> Terms:
            teacher = {"logits": z} if z is not None else None
            return objective.with_values(**own)(
                {"logits": self._call(weights, rest, x)}, teacher, y, i
            )

        dims = (0, 0, 0, 0, None if z_t is None else 0, 0, 0)
        together = vmap(of_one, in_dims=dims, randomness="error")
        return together(self.weights, self.rest, dict(values), inputs, z_t, target, index)

    @torch.no_grad()
    def logits(self, inputs: Tensor, state: Mapping[str, Tensor] | None = None) -> Tensor:
        """Return logits in evaluation mode, S×B×C, for inputs that all students share, B×…."""
        found = self.state if state is None else dict(state)
        self.net.eval()
        try:
            return vmap(self._call, in_dims=(0, None, None))(found, {}, inputs)
        finally:
            self.net.train()

    def _call(self, weights: State, rest: State, inputs: Tensor) -> Tensor:
        return logits_of(functional_call(self.net, {**weights, **rest}, (inputs,)), self.net)


class _GlobalMean(nn.Module):
    """Mean of each map, as ``nn.AdaptiveAvgPool2d(1)``, which torch.vmap runs in a loop."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((-1, -2), keepdim=True)


def _plain_copy(net: nn.Module) -> nn.Module:
    """Return a copy in training mode, with layers and hooks that suit torch.vmap."""
    found = copy.deepcopy(net).train()
    for name, layer in list(found.named_modules()):
        if isinstance(layer, nn.MaxPool2d):
            layer._forward_hooks.clear()  # those of with_channels_last() only choose a format
        if isinstance(layer, nn.AdaptiveAvgPool2d) and layer.output_size in (1, (1, 1)) and name:
            home, _, last = name.rpartition(".")
            setattr(found.get_submodule(home), last, _GlobalMean())
    return found
