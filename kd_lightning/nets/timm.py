"""Image classifiers of timm by name, untrained or with pretrained weights.

Needs the extra ``timm``. Input B×C×H×W, output logits B×K.
"""

from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

from torch import nn

from kd_lightning.nets.preprocessing import Preprocessing, attach
from kd_lightning.nets.weights import fill, is_file, read_weights
from kd_lightning.utils.errors import UserError, first_line


def timm_net(
    input_shape: Sequence[int],
    num_classes: int,
    name: str = "resnet18",
    weights: str | None = None,
    load_weights: bool = True,
) -> nn.Module:
    """Create a classifier of timm.

    Args:
        input_shape: (C, H, W).
        num_classes: K.
        name: a name of ``timm.list_models()``, with or without the tag of its weights.
        weights: ``DEFAULT``, downloaded once, or the path of a file. The last layer is initialised
            anew where K differs. Images are normalised as those that the weights were trained on.
        load_weights: whether to load them; False for a network that a checkpoint will fill.

    Raises:
        UserError: if timm is missing, the name is unknown, the network does not accept such
            inputs, or the weights do not fit or cannot be downloaded.
    """
    try:
        import timm
    except ImportError as error:
        raise UserError(
            "net=timm needs the package timm: pip install 'kd-lightning[timm]'"
        ) from error
    if name.partition(".")[0] not in timm.list_models():
        near = ", ".join(get_close_matches(name, timm.list_models(), n=5, cutoff=0))
        raise UserError(f"{name} is no model of timm; the nearest are {near}")
    channels, height, width = input_shape
    arguments: dict[str, Any] = {"num_classes": num_classes, "in_chans": channels}
    defaults: Any = timm.get_pretrained_cfg(name)
    if defaults is not None and defaults.fixed_input_size:  # of vision transformers
        arguments["img_size"] = (height, width)
    is_default = weights is not None and not is_file(weights)
    if is_default and weights != "DEFAULT":
        raise UserError(f"weights={weights} of timm: use DEFAULT, the path of a file, or null")
    try:
        net = timm.create_model(name, pretrained=is_default and load_weights, **arguments)
    except Exception as error:  # no network, a wrong size, unknown weights
        raise UserError(
            f"{name} of timm cannot be created with weights={weights} ({first_line(error)}); "
            "weights=PATH reads a file"
        ) from error
    if weights is not None and not is_default and load_weights:
        fill(net, read_weights(weights), f"the weights in {weights}")
    if weights is not None and defaults is not None and len(defaults.mean) == channels:
        attach(net, Preprocessing(defaults.mean, defaults.std), is_asked_for=False)
    return net
