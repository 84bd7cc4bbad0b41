"""Taps: outputs of layers by path, and the choice of corresponding layers."""

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import resnet18

from kd_lightning.losses import correlation_congruence
from kd_lightning.nets.cnn import StudentCNN, TeacherCNN
from kd_lightning.nets.mlp import MLP
from kd_lightning.nets.resnet import ResNet
from kd_lightning.nets.taps import dry_run, embedding, find, layers, pairs, stages, tapped
from kd_lightning.transfer.pairwise import Pairwise
from kd_lightning.utils.errors import UserError

DIGIT = (1, 28, 28)
X = torch.randn(3, *DIGIT, generator=torch.Generator().manual_seed(0))


class Split(nn.Module):
    """Returns a dictionary of tensors and a number."""

    def forward(self, x: Tensor) -> dict[str, object]:
        return {"out": x + 1, "aux": x - 1, "count": 2}


class Several(nn.Module):
    """Has layers with a tuple, a dictionary, an in-place operation, and no use."""

    def __init__(self) -> None:
        super().__init__()
        self.recurrent = nn.GRU(4, 4, batch_first=True)
        self.rectify = nn.ReLU(inplace=True)
        self.split = Split()
        self.unused = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.recurrent(x)
        return self.split(self.rectify(states))["out"]


def hooks(net: nn.Module) -> int:
    return sum(len(module._forward_hooks) for module in net.modules())


def test_a_tap_is_the_output_of_its_layer() -> None:
    net = TeacherCNN(DIGIT, 10, width=4).eval()
    found = tapped(net, X, ["features.1", "features", "classifier.2"])
    assert found.keys() == {"logits", "features.1", "features", "classifier.2"}
    torch.testing.assert_close(found["logits"], net(X))
    torch.testing.assert_close(found["features.1"], net.features[:2](X))
    torch.testing.assert_close(found["features"], net.features(X))
    torch.testing.assert_close(found["classifier.2"], net.classifier[:3](net.features(X)))


def test_a_tap_before_an_in_place_layer_keeps_its_values() -> None:
    net = resnet18(num_classes=5).eval()
    x = torch.randn(2, 3, 32, 32)
    found = tapped(net, x, ["bn1", "relu", "layer3.1.bn2"])
    before = net.bn1(net.conv1(x))
    assert before.min() < 0
    torch.testing.assert_close(found["bn1"], before)
    torch.testing.assert_close(found["relu"], before.relu())
    torch.testing.assert_close(found["logits"], net(x))


def test_gradient_flows_through_taps_and_logits() -> None:
    net = resnet18(num_classes=5)
    found = tapped(net, torch.randn(2, 3, 32, 32), ["bn1"])
    (found["bn1"].square().mean() + found["logits"].square().mean()).backward()
    assert net.conv1.weight.grad is not None
    assert net.fc.weight.grad is not None
    assert net.conv1.weight.grad.abs().sum() > 0


def test_items_of_tuples_and_dictionaries_have_paths() -> None:
    net, x = Several().eval(), torch.randn(2, 5, 4)
    found = tapped(net, x, ["recurrent:0", "recurrent:1", "split:out", "split:aux"])
    states, last = net.recurrent(x)
    assert states.min() < 0  # otherwise the in-place ReLU would not change them
    torch.testing.assert_close(found["recurrent:0"], states)
    torch.testing.assert_close(found["recurrent:1"], last)
    torch.testing.assert_close(found["split:out"], found["logits"])
    torch.testing.assert_close(found["split:aux"], states.relu() - 1)


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("split", "the layer split returns a dict with split:out, split:aux"),
        ("split:count", "the layer split:count returns a dict with split:out, split:aux"),
        ("recurrent", "the layer recurrent returns a tuple with recurrent:0, recurrent:1"),
        ("rectify:0", "the layer rectify:0 returns a Tensor with rectify"),
        ("unused", "Several did not run its layer unused"),
        ("rectifi", "Several has no layer 'rectifi'; it has rectify, "),
        ("", "Several has no layer ''; it has "),
    ],
)
def test_a_wrong_path_is_rejected_with_existing_ones_and_leaves_no_hook(
    path: str, said: str
) -> None:
    net = Several()
    with pytest.raises(UserError) as error:
        tapped(net, torch.randn(2, 5, 4), ["rectify", path])
    assert str(error.value).startswith(said)
    assert hooks(net) == 0


def test_similar_paths_are_listed_first_and_at_most_24() -> None:
    with pytest.raises(UserError) as error:
        find(resnet18(), "layer3.1.relu1")
    listed = str(error.value).partition("it has ")[2]
    assert listed.startswith("layer3.1.relu, ")
    assert listed.count(",") == 23
    assert listed.endswith("more (see kd-inspect)")


def test_hooks_are_removed() -> None:
    net = StudentCNN(DIGIT, 10)
    tapped(net, X, ["features.1"])
    layers(net, X)
    assert hooks(net) == 0
    with pytest.raises(RuntimeError):
        tapped(net, X[:, :, :5, :5], ["features.1"])  # too small for the network
    assert hooks(net) == 0


def test_the_last_run_of_a_repeated_module_is_tapped() -> None:
    shared = nn.Linear(4, 4)
    net, x = nn.Sequential(shared, nn.ReLU(), shared), torch.randn(2, 4)
    torch.testing.assert_close(tapped(net, x, ["0"])["0"], net(x))


def test_a_dry_run_has_no_side_effects() -> None:
    net = ResNet((3, 8, 8), 10, depth=8).train()
    net.layer1.eval()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    found = dry_run(net, torch.randn(2, 3, 8, 8), ["layer1"])
    assert not found["layer1"].requires_grad
    assert net.training
    assert not net.layer1.training
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())


def test_layers_are_listed_in_order_of_execution() -> None:
    found = layers(StudentCNN(DIGIT, 10), X)
    assert [layer.path for layer in found] == [
        *("features.0", "features.1", "features.2", "features"),
        *("classifier.0", "classifier.1", "classifier"),
    ]
    assert found[0].shape == (16, 26, 26)
    assert (found[0].depth, found[-1].depth) == (0, 1)
    assert isinstance(found[0].module, nn.Conv2d)


def test_stages_and_embedding_of_the_reference_networks() -> None:
    student, teacher = layers(StudentCNN(DIGIT, 10), X), layers(TeacherCNN(DIGIT, 10), X)
    assert [(s.path, s.shape) for s in stages(student)] == [
        ("features.1", (16, 26, 26)),
        ("features", (16, 13, 13)),
    ]
    assert [t.shape for t in stages(teacher)] == [(32, 26, 26), (64, 24, 24), (64, 12, 12)]
    assert embedding(student).shape == (2704,)
    assert embedding(teacher).shape == (128,)
    assert [(s.shape[0], t.shape[0]) for s, t in pairs(student, teacher)] == [(16, 32), (16, 64)]


def test_stages_of_resnets_of_different_depth_are_paired() -> None:
    sample = torch.zeros(2, 3, 32, 32)
    student, teacher = (layers(ResNet((3, 32, 32), 10, depth=d), sample) for d in (20, 56))
    matched = [(s.path, t.path) for s, t in pairs(student, teacher)]
    assert matched == [(f"layer{i}", f"layer{i}") for i in (1, 2, 3)]
    assert (embedding(student).path, embedding(teacher).path) == ("flatten", "flatten")


def test_pairs_do_not_cross_if_one_network_has_fewer_stages() -> None:
    sample = torch.zeros(2, 3, 64, 64)
    teacher = layers(resnet18(num_classes=10), sample)
    student = layers(ResNet((3, 64, 64), 10, depth=8), sample)
    assert len(stages(teacher)) > len(stages(student))
    for one, other in ((student, teacher), (teacher, student)):
        matched = pairs(one, other)
        assert len(matched) == len(stages(student))
        for side in zip(*matched, strict=True):
            assert [layer.depth for layer in side] == sorted(layer.depth for layer in side)


def test_networks_without_maps_have_no_pairs() -> None:
    flat = layers(MLP(DIGIT, 10, hidden=(8,)), X)
    assert stages(flat) == pairs(flat, layers(StudentCNN(DIGIT, 10), X)) == []
    assert embedding(flat).shape == (8,)
    single = layers(nn.Sequential(nn.Linear(28, 3)), X)
    assert embedding(single).path == "0"  # nothing comes before it


class NamedLogits(nn.Module):
    """Has a layer named ``logits`` that is not the network's output."""

    def __init__(self, input_shape: tuple[int, ...], num_classes: int) -> None:
        super().__init__()
        self.logits = nn.Sequential(nn.Flatten(), nn.Linear(784, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        return 20 * self.logits(x)


def test_a_layer_named_logits_is_not_taken_for_the_output() -> None:
    student, teacher = NamedLogits(DIGIT, 10), NamedLogits(DIGIT, 10)
    term = Pairwise(correlation_congruence, role="embedding", student="logits", teacher="logits")
    term.connect(student, teacher, X, torch.arange(3))
    found = tapped(student, X, term.student)
    assert torch.equal(found["logits"], student(X))
    assert torch.equal(found[term.student[0]], student.logits(X))


def test_channels_last_tensors_are_not_stages() -> None:
    class Permuted(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.permute(0, 2, 3, 1)

    net = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), Permuted(), nn.Linear(6, 6), nn.GELU())
    assert [layer.path for layer in stages(layers(net, X))] == ["0"]


def test_every_item_of_an_output_is_listed() -> None:
    found = layers(Several(), torch.zeros(2, 5, 4))
    listed = [layer.path for layer in found]
    assert listed == ["recurrent:0", "recurrent:1", "rectify", "split:out", "split:aux"]


def test_the_embedding_has_the_size_of_the_last_layers_input() -> None:
    net = nn.Sequential(nn.Linear(784, 8), nn.LSTM(8, 8), nn.Identity())

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.last = net, nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            hidden = self.net[0](x.flatten(1))
            self.net[2](hidden.repeat(1, 3))  # runs later, but is not the input
            return self.last(hidden)

    assert embedding(layers(Network(), X)).path == "net.0"
