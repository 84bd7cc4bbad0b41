"""The two reference networks: small convolutional classifiers for small images.

Input B×C×H×W, output logits B×K; C, H, W and K come from the data.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from kd_lightning.utils.errors import UserError


def _after_convs(size: int, convs: int) -> int:
    """Side of a map after ``convs`` unpadded 3×3 convolutions and one 2×2 pooling."""
    return (size - 2 * convs) // 2


def _flat_features(input_shape: Sequence[int], channels: int, convs: int) -> int:
    if channels < 1:
        raise UserError("width must be at least 1")
    _, height, width = input_shape
    h, w = _after_convs(height, convs), _after_convs(width, convs)
    if h < 1 or w < 1:
        raise UserError(f"images of {height}×{width} are too small for this network")
    return channels * h * w


class TeacherCNN(nn.Module):
    """Two convolutions and two linear layers: 1,199,882 parameters at 1×28×28, 10 classes.

    Args:
        input_shape: (C, H, W).
        num_classes: K.
        width: channels of the first convolution; the second has twice, the hidden
            linear layer four times as many.
    """

    def __init__(self, input_shape: Sequence[int], num_classes: int, width: int = 32) -> None:
        super().__init__()
        flat = _flat_features(input_shape, 2 * width, convs=2)
        self.features = nn.Sequential(
            nn.Conv2d(input_shape[0], width, 3),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Dropout(0.25),
        )
        self.classifier = nn.Sequential(
            nn.Flatten(),
            nn.Linear(flat, 4 * width),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Linear(4 * width, num_classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x))


class StudentCNN(nn.Module):
    """One convolution and one linear layer: 27,210 parameters at 1×28×28, 10 classes.

    Args:
        input_shape: (C, H, W).
        num_classes: K.
        width: channels of the convolution.
    """

    def __init__(self, input_shape: Sequence[int], num_classes: int, width: int = 16) -> None:
        super().__init__()
        flat = _flat_features(input_shape, width, convs=1)
        self.features = nn.Sequential(
            nn.Conv2d(input_shape[0], width, 3), nn.ReLU(), nn.MaxPool2d(2)
        )
        self.classifier = nn.Sequential(nn.Flatten(), nn.Linear(flat, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x))
