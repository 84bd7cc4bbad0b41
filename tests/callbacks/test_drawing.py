"""Tests of the painted pictures: what is measured in them, pixel by pixel."""

import numpy as np
import pytest

from kd_lightning.callbacks.drawing import (
    BARS,
    STUDENT,
    TABLE,
    TEACHER,
    Array,
    Tile,
    answers,
    confusion,
)


def tile(classes: int, image: Array | None = None) -> Tile:
    """Teacher and student sure of the first and of the last class."""
    eye = np.eye(classes, dtype=np.float32)
    return Tile(image, "a title", eye[0], eye[-1])


def columns_of(picture: Array, color: str, at_least: int = BARS - 2) -> list[int]:
    """Where a bar of some height stands in a colour."""
    rgb = np.array(tuple(bytes.fromhex(color[1:])))
    heights = (picture == rgb).all(2).sum(0)
    return np.flatnonzero(heights >= at_least).tolist()


@pytest.mark.parametrize("classes", [2, 10, 100])
def test_a_certain_answer_is_one_full_bar(classes: int) -> None:
    picture = answers([tile(classes)], "heading")
    teacher, student = (columns_of(picture, color) for color in (TEACHER, STUDENT))
    assert teacher
    assert student
    assert max(teacher) < min(student)
    for bar in (teacher, student):
        assert bar == list(range(bar[0], bar[-1] + 1))


def test_a_bar_is_as_high_as_its_share() -> None:
    half = np.array([0.5, 0.5], np.float32)
    picture = answers([Tile(None, "", half, np.eye(2, dtype=np.float32)[0])], "")
    assert not columns_of(picture, TEACHER)
    assert columns_of(picture, TEACHER, at_least=BARS // 2 - 1)


@pytest.mark.parametrize("shape", [(8, 8), (8, 8, 3)])
def test_the_sample_is_beside_its_bars(shape: tuple[int, ...]) -> None:
    image = np.full(shape, 77, np.uint8)
    with_image, without = (answers([tile(10, i), tile(10, i)], "") for i in (image, None))
    assert (with_image == 77).all(2).sum() == 2 * BARS**2
    assert with_image.shape[1] - without.shape[1] > BARS
    assert with_image.dtype == np.uint8


@pytest.mark.parametrize("classes", [2, 10, 100, 400])
def test_confusion_is_coloured_by_share_of_the_true_class(classes: int) -> None:
    counts = np.zeros((classes, classes))
    counts[np.arange(classes), 0] = np.arange(classes)  # none of class 0 at all
    picture = confusion(counts, "heading").astype(int)
    rgb = np.array(tuple(bytes.fromhex(STUDENT[1:])))
    blue = (picture == rgb).all(2)
    pitch = max(TABLE // classes, 2)
    assert blue.sum() > 0.5 * (classes - 1) * pitch**2  # less the numbers written on it
    assert blue.sum() <= (classes - 1) * pitch**2
