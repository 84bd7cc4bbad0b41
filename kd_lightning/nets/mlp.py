"""A multi-layer perceptron on the flattened input.

Input B×…, output logits B×K.
"""

from collections.abc import Sequence
from itertools import pairwise
from math import prod

from torch import Tensor, nn


class MLP(nn.Module):
    """Linear layers with ReLU and dropout between them.

    Args:
        input_shape: shape of one sample; it is flattened.
        num_classes: K.
        hidden: sizes of the hidden layers.
        dropout: probability of dropping a hidden unit.
        input_dropout: probability of dropping an input.
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
        layers: list[nn.Module] = [nn.Flatten()]
        if input_dropout:
            layers.append(nn.Dropout(input_dropout))
        for inputs, outputs in pairwise([prod(input_shape), *hidden]):
            layers += [nn.Linear(inputs, outputs), nn.ReLU(), nn.Dropout(dropout)]
        layers.append(nn.Linear(hidden[-1] if hidden else prod(input_shape), num_classes))
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)
