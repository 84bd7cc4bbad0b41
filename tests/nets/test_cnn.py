"""Reference networks: numbers of parameters, shapes, and images that are too small."""

import pytest
import torch
from torch import nn

from kd_lightning.nets.cnn import StudentCNN, TeacherCNN
from kd_lightning.utils.errors import UserError

MNIST = (1, 28, 28)
SHAPES = [MNIST, (3, 32, 32), (1, 8, 8), (2, 12, 20)]


def parameters(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def test_numbers_of_parameters_of_the_reference() -> None:
    assert parameters(TeacherCNN(MNIST, 10)) == 1_199_882
    assert parameters(StudentCNN(MNIST, 10)) == 27_210


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("width", [4, 32])
def test_parameters_of_the_teacher_follow_its_width(
    shape: tuple[int, int, int], width: int
) -> None:
    c, h, w = shape
    flat = 2 * width * ((h - 4) // 2) * ((w - 4) // 2)
    convolutions = (9 * c + 1) * width + (9 * width + 1) * 2 * width
    expected = convolutions + (flat + 1) * 4 * width + (4 * width + 1) * 7
    assert parameters(TeacherCNN(shape, 7, width=width)) == expected


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("width", [4, 16])
def test_parameters_of_the_student_follow_its_width(
    shape: tuple[int, int, int], width: int
) -> None:
    c, h, w = shape
    flat = width * ((h - 2) // 2) * ((w - 2) // 2)
    assert parameters(StudentCNN(shape, 7, width=width)) == (9 * c + 1) * width + (flat + 1) * 7


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("net", [TeacherCNN, StudentCNN])
def test_output_has_one_logit_per_class(net: type[nn.Module], shape: tuple[int, int, int]) -> None:
    assert net(shape, 7, width=4)(torch.randn(3, *shape)).shape == (3, 7)


@pytest.mark.parametrize(("net", "least"), [(TeacherCNN, 6), (StudentCNN, 4)])
def test_images_that_are_too_small_are_rejected(net: type[nn.Module], least: int) -> None:
    assert net((1, least, least), 10)(torch.randn(2, 1, least, least)).shape == (2, 10)
    for shape in [(1, least - 1, 28), (1, 28, least - 1), (1, 1, 1)]:
        with pytest.raises(UserError, match=f"{shape[1]}×{shape[2]} are too small"):
            net(shape, 10)
    with pytest.raises(UserError, match="width must be at least 1, got 0"):
        net(MNIST, 10, width=0)
