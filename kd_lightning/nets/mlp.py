"""Multi-layer perceptron on the flattened input.

Input B×…, output logits B×K.
"""

from collections.abc import Sequence
from itertools import pairwise
from math import prod

from torch import Tensor, nn


class MLP(nn.Module):
    """Linear layers with ReLU and dropout between them.

    Args:
        input_shape: shape of one sample.
        num_classes: K.
        hidden: sizes of the hidden layers; empty for a linear classifier.
        dropout: probability of dropping a hidden unit, in 0…1.
        input_dropout: probability of dropping an input, in 0…1.

    Raises:
        ValueError: if a hidden layer has no units, or a probability is out of range.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        hidden: Sequence[int] = (128,),
        dropout: float = 0.0,
        input_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if any(size < 1 for size in hidden):
            raise ValueError(f"hidden sizes must be at least 1, got {list(hidden)}")
        layers: list[nn.Module] = [nn.Flatten()]
        # Only if used: an idle layer here would shift the numbers in the paths of all others.
        if input_dropout:
            layers.append(nn.Dropout(input_dropout))
        for inputs, outputs in pairwise([prod(input_shape), *hidden]):
            # Dropout stays with p = 0: a layer's path then does not depend on the setting, and
            # a checkpoint of one rate can be loaded at another.
            layers += [nn.Linear(inputs, outputs), nn.ReLU(), nn.Dropout(dropout)]
        layers.append(nn.Linear(hidden[-1] if hidden else prod(input_shape), num_classes))
        # One Sequential: the path ``layers.i`` names any layer as the end of a transfer term.
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)
