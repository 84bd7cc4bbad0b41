"""Linear probes: a linear layer on the frozen embedding of a network."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd_lightning.nets.taps import embedding, layers, tapped
from kd_lightning.utils.errors import UserError

STRENGTHS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)  # of the L2 penalty, from which solve() chooses
ITERATIONS = 100  # of LBFGS, for each strength
HELD_OUT = 5  # every n-th sample chooses the strength


class LinearProbe(nn.Module):
    """A frozen network whose embedding a linear layer maps to the classes of other data.

    Logits are B×K. Only ``head`` is trainable; the network stays in evaluation mode.

    Args:
        backbone: the network.
        input_shape: shape of the data's images, (C, H, W).
        num_classes: number of classes of the data, K.
    """

    def __init__(self, backbone: nn.Module, input_shape: Sequence[int], num_classes: int) -> None:
        super().__init__()
        self.backbone = backbone.requires_grad_(False).eval()
        layer = embedding(layers(backbone, torch.zeros(2, *input_shape)))
        self.path = layer.path
        self.head = nn.Linear(torch.Size(layer.shape).numel(), num_classes)

    def train(self, mode: bool = True) -> "LinearProbe":
        super().train(mode)
        self.backbone.eval()
        return self

    def embed(self, x: Tensor) -> Tensor:
        """Return the embedding of images, B×D."""
        return tapped(self.backbone, x, [self.path])[self.path].flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.embed(x))


def linear_probe(
    input_shape: Sequence[int],
    num_classes: int,
    net: Callable[..., nn.Module],
    head: str = "linear_probe",
) -> nn.Module:
    """Create a network whose head is a linear probe.

    Args:
        input_shape: shape of the data's images, (C, H, W).
        num_classes: number of classes of the data, K.
        net: the network's class or factory, or the network itself.
        head: ``linear_probe``.

    Raises:
        UserError: if another head is asked for.
    """
    if head != "linear_probe":
        raise UserError(f"teacher.head must be linear_probe, or be left out; got {head}")
    backbone = net if isinstance(net, nn.Module) else net(input_shape, num_classes)
    return LinearProbe(backbone, input_shape, num_classes)


def solve(embedded: Tensor, target: Tensor, head: nn.Linear) -> float:
    """Set a linear layer to the multinomial logistic regression of embeddings.

    The embeddings are standardised. The strength of the L2 penalty is chosen by the loss on every
    fifth sample; the layer is then solved on all of them.

    Args:
        embedded: N×D.
        target: class of each, N.
        head: the layer, D→K.

    Returns:
        The strength of the penalty, λ in mean CE + λ/2·‖W‖².
    """
    mean, std = embedded.mean(0), embedded.std(0).clamp_min(1e-6)
    x = (embedded - mean) / std
    is_held_out = torch.arange(len(x), device=x.device) % HELD_OUT == 0
    weight, bias = torch.zeros_like(head.weight), torch.zeros_like(head.bias)
    losses: dict[float, float] = {}
    for strength in STRENGTHS if len(x) > HELD_OUT else STRENGTHS[:1]:
        # Each starts from the solution of the stronger penalty, which is near.
        weight, bias = logistic_regression(
            x[~is_held_out], target[~is_held_out], weight, bias, strength
        )
        z = F.linear(x[is_held_out], weight, bias)
        losses[strength] = F.cross_entropy(z, target[is_held_out]).item()
    best = min(losses, key=lambda strength: losses[strength])
    weight, bias = logistic_regression(x, target, torch.zeros_like(weight), bias * 0, best)
    with torch.no_grad():  # the standardisation becomes a part of the layer
        head.weight.copy_(weight / std)
        head.bias.copy_(bias - (weight / std) @ mean)
    return best


def logistic_regression(
    x: Tensor, target: Tensor, weight: Tensor, bias: Tensor, strength: float
) -> tuple[Tensor, Tensor]:
    """Minimise mean CE + λ/2·‖W‖² by LBFGS.

    Args:
        x: N×D.
        target: N.
        weight: start of W, K×D.
        bias: start of b, K, which is not penalised.
        strength: λ.

    Returns:
        W and b.
    """
    with torch.inference_mode(False), torch.enable_grad():
        x, target = x.clone(), target.clone()
        w = weight.detach().clone().requires_grad_()
        b = bias.detach().clone().requires_grad_()
        optimizer = torch.optim.LBFGS(
            [w, b], max_iter=ITERATIONS, tolerance_grad=1e-6, line_search_fn="strong_wolfe"
        )

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = F.cross_entropy(F.linear(x, w, b), target) + strength / 2 * w.square().sum()
            loss.backward()
            return loss

        optimizer.step(closure)  # pyright: ignore[reportArgumentType]
    return w.detach(), b.detach()
