"""Image classifiers of torchvision by name, untrained or with torchvision's weights.

Input B×3×H×W, output logits B×K. Modules keep torchvision's names: the stages of a ResNet are
``layer1`` to ``layer4``, and ``avgpool`` returns its embedding.
"""

import re
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision import models

from kd_lightning.nets.preprocessing import Preprocessing, attach
from kd_lightning.nets.weights import fill, is_file, read_weights
from kd_lightning.utils.errors import UserError


def torchvision_net(
    input_shape: Sequence[int],
    num_classes: int,
    name: str = "resnet18",
    weights: str | None = None,
    load_weights: bool = True,
) -> nn.Module:
    """Create a classifier of torchvision.

    Args:
        input_shape: (3, H, W).
        num_classes: K.
        name: one of ``torchvision.models.list_models(torchvision.models)``.
        weights: ``DEFAULT`` or another of torchvision's names, downloaded once, or the path of a
            file. Where K differs from their 1,000 classes, the last layer is initialised anew.
            Images are normalised as those that the weights were trained on.
        load_weights: whether to load them; False for a network that a checkpoint will fill.

    Returns:
        The network, in training mode.

    Raises:
        UserError: if the name or the weights are unknown, the network does not accept such
            inputs, or the weights cannot be downloaded.
    """
    shape = "×".join(map(str, input_shape))
    if len(input_shape) != 3 or input_shape[0] != 3:
        raise UserError(
            f"torchvision's networks take colour images (3×H×W), but the inputs are {shape}; "
            "use a network for any number of channels, e.g. resnet20"
        )
    _check_name(name)
    try:
        options = _options(name, input_shape)
        net = models.get_model(name, num_classes=num_classes, **options)
        # Tried at once: sizes that a network cannot take fail late otherwise, in the first
        # step of training, with an error that does not mention the image size.
        _try(net, input_shape)
    except (AssertionError, RuntimeError, ValueError) as error:
        raise UserError(
            f"{name} cannot take images of {shape} ({_first_line(error)}); use another network "
            "or image size"
        ) from error
    # Filled afterwards instead of get_model(weights=…), which demands 1,000 classes.
    if weights is None:
        return net
    if load_weights:
        state = read_weights(weights) if is_file(weights) else _weights(name, weights)
        fill(net, state, f"the weights {weights} of {name}")
    usual: Any = models.get_model_weights(name).__members__["DEFAULT"]
    transforms = usual.transforms()
    own = Preprocessing(list(transforms.mean), list(transforms.std))
    return attach(net, own, is_asked_for=False)


def _check_name(name: str) -> None:
    # mnasnet* load only with a version in the state dict, which our checkpoints do not keep.
    known = models.list_models(models, exclude="mnasnet*")
    if name not in known:
        near = ", ".join(get_close_matches(str(name), known, n=5, cutoff=0))
        raise UserError(
            f"{name} is not a supported classifier of torchvision; the nearest are {near}"
        )


def _options(name: str, input_shape: Sequence[int]) -> dict[str, Any]:
    """Return a network's arguments besides the number of classes."""
    if name in ("googlenet", "inception_v3"):
        # Auxiliary heads make the output a tuple in training. init_weights is torchvision's
        # default, stated because leaving it out warns.
        return {"aux_logits": False, "init_weights": True}
    if name.startswith("vit_"):
        return {"image_size": input_shape[1]}
    if name == "maxvit_t":
        return {"input_size": tuple(input_shape[1:])}
    return {}


def _try(net: nn.Module, input_shape: Sequence[int]) -> None:
    """Run the network on one black image, to find sizes that it cannot take."""
    # In evaluation mode: batch norm rejects single values per channel in training, and its
    # running statistics must not change.
    with torch.no_grad():
        net.eval()(torch.zeros(1, *input_shape))
    net.train()


def _weights(name: str, weights: str) -> dict[str, Tensor]:
    """Return a state dict of torchvision, from its server or from the local cache."""
    known = models.get_model_weights(name).__members__
    if weights not in known:
        raise UserError(
            f"torchvision has no weights {weights} for {name}; choose one of "
            f"{', '.join(known)}, or null to start untrained"
        )
    chosen: Any = known[weights]
    # check_hash: a download that was cut short stays in the cache. weights_only: a file in place
    # of the weights must not run code.
    try:
        state = chosen.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except Exception as error:  # no network, no space, a wrong hash, a damaged file
        raise UserError(
            f"the weights {weights} of {name} could not be downloaded or read "
            f"({_first_line(error)}); put a copy of {chosen.url} into "
            f"{Path(torch.hub.get_dir(), 'checkpoints')}, or use weights=null"
        ) from error
    # DenseNet's files have names from before modules could not contain dots ("norm.1");
    # torchvision's own loader, not called here, renames them the same way.
    return {re.sub(r"(denselayer\d+\.(?:norm|conv))\.", r"\1", k): v for k, v in state.items()}


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
