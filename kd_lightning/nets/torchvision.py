"""torchvision's image classifiers by name, new or with the weights that torchvision offers.

Input B×3×H×W, output logits B×K. The modules keep their own names: a ResNet's stages are
``layer1`` to ``layer4``, its embedding is what ``avgpool`` gives.
"""

import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision import models

from kd_lightning.utils.errors import UserError


def torchvision_net(
    input_shape: Sequence[int],
    num_classes: int,
    name: str = "resnet18",
    weights: str | None = None,
) -> nn.Module:
    """A classifier of torchvision's.

    Args:
        input_shape: (3, H, W).
        num_classes: K.
        name: one of ``torchvision.models.list_models(torchvision.models)``.
        weights: ``DEFAULT`` or another name that torchvision gives them; they are downloaded
            once. The last layer stays a new one where K differs from their 1,000 classes.
            A network that a checkpoint is to fill needs none.

    Raises:
        UserError: if there is no such network, it cannot take such inputs, or the weights
            are unknown or cannot be had.
    """
    shape = "×".join(map(str, input_shape))
    if len(input_shape) != 3 or input_shape[0] != 3:
        raise UserError(
            f"torchvision's networks take colour images, 3×H×W, and these inputs are {shape}: "
            "use a network that takes any number of channels, e.g. resnet20"
        )
    _check_name(name)
    try:
        options = _options(name, input_shape)
        net = models.get_model(name, num_classes=num_classes, **options)
        _try(net, input_shape)
    except (AssertionError, RuntimeError, ValueError) as error:
        raise UserError(f"{name} cannot take images of {shape}: {_first_line(error)}") from error
    if weights is not None:
        _fill(net, _weights(name, weights), f"the weights {weights} of {name}")
    return net


def _check_name(name: str) -> None:
    # mnasnet*: can be loaded only with a version number that our checkpoints do not keep
    known = models.list_models(models, exclude="mnasnet*")
    if name not in known:
        near = ", ".join(get_close_matches(str(name), known, n=5, cutoff=0))
        raise UserError(f"torchvision has no classifier {name} for us; the nearest are {near}")


def _options(name: str, input_shape: Sequence[int]) -> dict[str, Any]:
    """What a network must be told beside the number of classes."""
    if name in ("googlenet", "inception_v3"):
        return {"aux_logits": False, "init_weights": True}  # auxiliary heads answer in tuples
    if name.startswith("vit_"):
        return {"image_size": input_shape[1]}
    if name == "maxvit_t":
        return {"input_size": tuple(input_shape[1:])}
    return {}


def _try(net: nn.Module, input_shape: Sequence[int]) -> None:
    """Show the network one black image: many need a least size, or one that can be divided."""
    with torch.no_grad():
        net.eval()(torch.zeros(1, *input_shape))
    net.train()


def _weights(name: str, weights: str) -> dict[str, Tensor]:
    """Weights that torchvision offers, from its server or where they were kept before."""
    known = models.get_model_weights(name).__members__
    if weights not in known:
        raise UserError(
            f"torchvision has no weights {weights} for {name}, but {', '.join(known)}; "
            "null starts without any"
        )
    chosen: Any = known[weights]
    try:
        state = chosen.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except Exception as error:  # no network, no space, a wrong hash, a damaged file
        raise UserError(
            f"the weights {weights} of {name} could not be downloaded or read "
            f"({_first_line(error)}): put a good copy of {chosen.url} into "
            f"{Path(torch.hub.get_dir(), 'checkpoints')}, or use weights=null"
        ) from error
    # densenets were kept with names that torch does not take any more
    return {re.sub(r"(denselayer\d+\.(?:norm|conv))\.", r"\1", k): v for k, v in state.items()}


def _fill(net: nn.Module, state: Mapping[str, Tensor], what: str) -> None:
    """Take over the weights that fit; only the last layer need not."""
    own = net.state_dict()
    fitting = {k: v for k, v in state.items() if k in own and own[k].shape == v.shape}
    last_layer = list(own)[-1].rpartition(".")[0]
    left = net.load_state_dict(fitting, strict=False).missing_keys
    if others := [k for k in left if k.rpartition(".")[0] != last_layer]:
        raise UserError(f"{what} do not fit images of this size: see {others[0]}")


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
