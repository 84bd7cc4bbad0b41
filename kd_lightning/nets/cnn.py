"""Reference teacher and student: small convolutional classifiers for small images.

Input B×C×H×W, output logits B×K; C, H, W and K come from the data.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from kd_lightning.utils.errors import UserError


def _after_convs(size: int, convs: int) -> int:
    """Return the side of a map after ``convs`` unpadded 3×3 convolutions and 2×2 pooling."""
    return (size - 2 * convs) // 2


def _flat_features(input_shape: Sequence[int], channels: int, convs: int) -> int:
    """Return the size of the flattened maps, which fixes the first linear layer."""
    # Computed instead of nn.LazyLinear: a lazy layer has no parameters to count, copy or give
    # to an optimizer before the first batch.
    if channels < 1:
        raise UserError(f"width must be at least 1, got {channels}")
    _, height, width = input_shape
    h, w = _after_convs(height, convs), _after_convs(width, convs)
    if h < 1 or w < 1:
        raise UserError(
            f"images of {height}×{width} are too small for a network of {convs} unpadded 3×3 "
            "convolutions and a 2×2 pooling; use another network, e.g. mlp"
        )
    return channels * h * w


class TeacherCNN(nn.Module):
    """Two convolutions and two linear layers: 1,199,882 parameters at 1×28×28, 10 classes.

    Args:
        input_shape: (C, H, W).
        num_classes: K.
        width: channels of the first convolution; the second has twice as many, the hidden
            linear layer four times as many units.

    Raises:
        UserError: if the images are too small.
    """

    # The well-known MNIST example of PyTorch and Keras; its dropout matters for distillation,
    # since a teacher that overfits gives nearly one-hot soft targets.

    def __init__(self, input_shape: Sequence[int], num_classes: int, width: int = 32) -> None:
        super().__init__()
        flat = _flat_features(input_shape, 2 * width, convs=2)
        # Two containers, so that the path ``features`` names the last map and ``classifier.0``
        # its flattened form. No in-place ReLU, which would overwrite a tapped convolution.
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

    Raises:
        UserError: if the images are too small.
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
