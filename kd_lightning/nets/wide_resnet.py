"""Wide residual networks WRN-d-k: d = 6n + 4 layers in three stages, k times the channels.

Input B×C×H×W, output logits B×K. The stages ``layer1`` to ``layer3`` end with a sum, before
batch norm and ReLU, with 16k, 32k and 64k channels on H×W, H/2×W/2 and H/4×W/4 (rounded up).
The layer ``relu`` activates the last stage; ``flatten`` returns the embedding, B×64k.

Source: Zagoruyko, Komodakis 2016, arXiv 1605.07146, with the pre-activation blocks of He,
Zhang, Ren, Sun 2016, arXiv 1603.05027.
"""

from collections.abc import Sequence
from functools import partial

from torch import Tensor, nn

from kd_lightning.nets.resnet import blocks_per_stage, conv1x1, conv3x3, initialise, stage


class PreActivationBlock(nn.Module):
    """Two convolutions after batch norm and ReLU each, from B×I×H×W to B×O×H/s×W/s.

    Args:
        inputs: I.
        outputs: O.
        stride: s.
        dropout: probability of dropping a value between the convolutions.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.relu1 = nn.ReLU()
        self.conv1 = conv3x3(inputs, outputs, stride)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu2 = nn.ReLU()
        self.dropout = nn.Dropout(dropout)
        self.conv2 = conv3x3(outputs, outputs)
        # None instead of an identity module: the two cases start from different tensors.
        self.shortcut = None
        if stride != 1 or inputs != outputs:
            self.shortcut = conv1x1(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        active = self.relu1(self.bn1(x))
        y = self.dropout(self.relu2(self.bn2(self.conv1(active))))
        # A projection is applied to the activated input, the identity to the input itself, as
        # in the authors' code.
        return self.conv2(y) + (x if self.shortcut is None else self.shortcut(active))


class WideResNet(nn.Module):
    """WRN-16-2: 703,284 parameters at 3×32×32, 100 classes.

    Args:
        input_shape: (C, H, W).
        num_classes: K.
        depth: d = 6n + 4, with n blocks per stage.
        width: k, factor of the channels.
        dropout: probability of dropping a value between a block's convolutions.

    Raises:
        UserError: if the depth is not 6n + 4.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        depth: int = 16,
        width: int = 2,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        blocks = blocks_per_stage(depth, others=4)
        block = partial(PreActivationBlock, dropout=dropout)
        self.conv1 = conv3x3(input_shape[0], 16)
        self.layer1 = stage(block, 16, 16 * width, blocks, stride=1)
        self.layer2 = stage(block, 16 * width, 32 * width, blocks, stride=2)
        self.layer3 = stage(block, 32 * width, 64 * width, blocks, stride=2)
        # Pre-activation blocks leave the last sum without activation; this pair adds it.
        self.bn = nn.BatchNorm2d(64 * width)
        self.relu = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(64 * width, num_classes)
        initialise(self)
        # As in the authors' code; all classes start with the same logit offset.
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer3(self.layer2(self.layer1(self.conv1(x))))
        return self.fc(self.flatten(self.pool(self.relu(self.bn(x)))))
