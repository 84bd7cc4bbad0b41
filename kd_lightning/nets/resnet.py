"""ResNets for small images: 6n + 2 layers in three stages of basic blocks.

Input B×C×H×W, output logits B×K. The stages ``layer1`` to ``layer3`` end after a ReLU, with
16w, 32w and 64w channels on H×W, H/2×W/2 and H/4×W/4 (rounded up). The layer ``flatten``
returns the embedding, B×64w.

Source: He, Zhang, Ren, Sun 2015, arXiv 1512.03385, §4.2; the 1×1 projections and the wider
versions are those of the usual benchmark of distillation (Tian, Krishnan, Isola 2020,
arXiv 1910.10699). Parameters have the names of its code, so that its weights can be loaded.
"""

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from kd_lightning.utils.errors import UserError


def conv3x3(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    """Create a padded 3×3 convolution without bias, to be followed by a batch norm."""
    # A bias would be removed again by the batch norm's subtraction of the mean.
    return nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)


def conv1x1(inputs: int, outputs: int, stride: int) -> nn.Conv2d:
    """Create a 1×1 convolution without bias that changes channels and resolution."""
    return nn.Conv2d(inputs, outputs, 1, stride, bias=False)


def blocks_per_stage(depth: int, others: int) -> int:
    """Return the number of two-layer blocks in each of three stages.

    Args:
        depth: layers in all.
        others: layers outside the blocks.

    Raises:
        UserError: if no whole number of blocks gives this depth.

    >>> blocks_per_stage(56, others=2)
    9
    >>> blocks_per_stage(18, others=2)
    Traceback (most recent call last):
    kd_lightning.utils.errors.UserError: depth must be 6n + 2 (8, 14, 20 …), got 18
    """
    if depth < 6 + others or (depth - others) % 6:
        least = f"{6 + others}, {12 + others}, {18 + others} …"
        raise UserError(f"depth must be 6n + {others} ({least}), got {depth}")
    return (depth - others) // 6


def stage(
    block: Callable[[int, int, int], nn.Module], inputs: int, outputs: int, blocks: int, stride: int
) -> nn.Sequential:
    """Create a stage of blocks, the first of which changes the shape.

    Args:
        block: a factory of blocks from (inputs, outputs, stride).
        inputs: channels that enter the stage.
        outputs: channels of all its blocks.
        blocks: number of blocks.
        stride: of the first block.
    """
    more = [block(outputs, outputs, 1) for _ in range(blocks - 1)]
    return nn.Sequential(block(inputs, outputs, stride), *more)


def initialise(net: nn.Module) -> None:
    """Initialise the convolutions by their fan-out (He et al. 2015, arXiv 1502.01852)."""
    # Fan-out keeps the scale of gradients, as in the benchmark's code. The original code of
    # ResNets does the same; PyTorch's default for convolutions is smaller by √6.
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


class BasicBlock(nn.Module):
    """Two convolutions and a shortcut, from B×I×H×W to B×O×H/s×W/s with stride s."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(inputs, outputs, stride)
        self.bn1 = nn.BatchNorm2d(outputs)
        # Two ReLU modules instead of a shared one: of a module that runs twice, taps record the
        # last run only. Neither is in place, so that tapped sums keep their values.
        self.relu1 = nn.ReLU()
        self.conv2 = conv3x3(outputs, outputs)
        self.bn2 = nn.BatchNorm2d(outputs)
        # The paper's CIFAR networks pad the identity with zeros (option A); the benchmark
        # projects (option B), which adds 2,752 parameters at width 1.
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            projection = conv1x1(inputs, outputs, stride)
            self.downsample = nn.Sequential(projection, nn.BatchNorm2d(outputs))
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu1(self.bn1(self.conv1(x)))
        return self.relu2(self.bn2(self.conv2(y)) + self.downsample(x))


class ResNet(nn.Module):
    """ResNet-20: 278,324 parameters at 3×32×32, 100 classes.

    Args:
        input_shape: (C, H, W).
        num_classes: K.
        depth: 6n + 2; n blocks a stage.
        width: w; the stages have 16w, 32w and 64w channels.
        stem: channels before the first stage; 32 in the networks named x4.

    Raises:
        UserError: if the depth is not 6n + 2.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        depth: int = 20,
        width: int = 1,
        stem: int = 16,
    ) -> None:
        super().__init__()
        blocks = blocks_per_stage(depth, others=2)
        self.conv1 = conv3x3(input_shape[0], stem)
        self.bn1 = nn.BatchNorm2d(stem)
        self.relu = nn.ReLU()
        self.layer1 = stage(BasicBlock, stem, 16 * width, blocks, stride=1)
        self.layer2 = stage(BasicBlock, 16 * width, 32 * width, blocks, stride=2)
        self.layer3 = stage(BasicBlock, 32 * width, 64 * width, blocks, stride=2)
        # Adaptive, so that any image size works; the benchmark's 8×8 pooling needs 32×32.
        self.pool = nn.AdaptiveAvgPool2d(1)
        # A module rather than Tensor.flatten, so that the embedding has a path.
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(64 * width, num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(self.flatten(self.pool(x)))
