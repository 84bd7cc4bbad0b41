"""A network's own preprocessing of images, such as that of a pretrained network.

The data are normalised once, by their own mean and standard deviation. A network that was trained
on other scales or sizes converts its inputs itself, so teacher and student may differ.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd_lightning.utils.errors import UserError

INTERPOLATIONS = ("bilinear", "bicubic", "nearest")


class Preprocessing:
    """Conversion of images normalised for the data into what a network expects.

    Args:
        mean: mean of each channel in the network's own training, in 0…1; None for the data's.
        std: standard deviation of each channel; None for the data's.
        size: height and width of its images; None for the data's.
        interpolation: ``bilinear``, ``bicubic`` or ``nearest``, with anti-aliasing for the first
            two, as torchvision resizes.

    Raises:
        UserError: if a value is out of range.
    """

    def __init__(
        self,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        size: int | None = None,
        interpolation: str = "bilinear",
    ) -> None:
        if (mean is None) != (std is None):
            raise UserError("a network's mean and std are set together, or not at all")
        if std is not None and not all(value > 0 for value in std):
            raise UserError(f"a network's std must be positive, got {list(std)}")
        if interpolation not in INTERPOLATIONS:
            raise UserError(
                f"interpolation must be one of {', '.join(INTERPOLATIONS)}, got {interpolation}"
            )
        self.mean, self.std, self.size, self.interpolation = mean, std, size, interpolation
        self.is_asked_for = True  # by the user; else it comes with the weights of the network
        self.scale, self.shift = torch.ones(1, 1, 1), torch.zeros(1, 1, 1)  # C×1×1 each

    def __repr__(self) -> str:
        """Return everything that determines the result; keys of cached outputs contain it."""
        own = (self.mean, self.std, self.size, self.interpolation)
        return f"Preprocessing({own}, {self.scale.tolist()}, {self.shift.tolist()})"

    def connect(self, spec: Any) -> None:
        """Take the mean and standard deviation of the data from their specification.

        Raises:
            UserError: if the data do not say how they are normalised, or have other channels.
        """
        is_known = bool(getattr(spec, "mean", ()))
        # The user of a network with weights may normalise its images in a datamodule.
        if self.mean is None or self.std is None or not (is_known or self.is_asked_for):
            return
        counts = len(self.mean), len(self.std), len(getattr(spec, "mean", ()))
        if len(set(counts)) > 1:
            raise UserError(
                "a network's mean and std have {} and {} values, but the data say how {} channels "
                "are normalised".format(*counts)
            )
        there, here = (
            [torch.tensor(values, dtype=torch.float64).view(-1, 1, 1) for values in pair]
            for pair in ((self.mean, self.std), (spec.mean, spec.std))
        )
        # x·σ + μ are the values in 0…1, which the network's own mean and deviation normalise.
        self.scale = (here[1] / there[1]).float()
        self.shift = ((here[0] - there[0]) / there[1]).float()

    def __call__(self, net: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Convert the inputs of a network, B×C×H×W; the signature is that of a forward hook."""
        x, *others = inputs
        if self.size is not None and tuple(x.shape[-2:]) != (self.size, self.size):
            smooth = self.interpolation != "nearest"
            x = F.interpolate(x, (self.size,) * 2, mode=self.interpolation, antialias=smooth)
        return (x * self.scale.to(x) + self.shift.to(x), *others)


def preprocessed(
    input_shape: Sequence[int],
    num_classes: int,
    net: Callable[..., nn.Module],
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    size: int | None = None,
    interpolation: str = "bilinear",
) -> nn.Module:
    """Create a network that preprocesses its own inputs.

    Args:
        input_shape: shape of the data's images, (C, H, W).
        num_classes: K.
        net: the network's class or factory.
        mean: see :class:`Preprocessing`, and so for the following arguments.
        std: as above.
        size: as above; the network is built for C×size×size.
        interpolation: as above.

    Returns:
        The network. Its weights and layers keep their names.

    Raises:
        UserError: if a value is out of range.
    """
    own = Preprocessing(mean, std, size, interpolation)
    made = net((input_shape[0], size, size) if size is not None else input_shape, num_classes)
    return attach(made, own)


def attach(net: nn.Module, own: Preprocessing, is_asked_for: bool = True) -> nn.Module:
    """Let a network preprocess its own inputs.

    Args:
        net: the network. If it has preprocessing that came with its weights, the values that
            ``own`` leaves open are taken from it.
        own: the preprocessing.
        is_asked_for: whether the user has asked for it, so that it must be known how the data are
            normalised.
    """
    before = getattr(net, "preprocessing", None)
    if isinstance(before, Preprocessing):
        if own.mean is not None:
            before.mean, before.std, before.is_asked_for = own.mean, own.std, is_asked_for
        before.size, before.interpolation = own.size, own.interpolation
        return net
    own.is_asked_for = is_asked_for
    # A hook, because a wrapper would rename the weights and layers of the network.
    net.preprocessing = own  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType]
    net.register_forward_pre_hook(own)
    return net


def connect(net: nn.Module, spec: Any) -> nn.Module:
    """Return a network, whose own preprocessing, if it has one, knows the data from now on."""
    own = getattr(net, "preprocessing", None)
    if isinstance(own, Preprocessing):
        own.connect(spec)
    return net
