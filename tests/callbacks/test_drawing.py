"""Tests of the images for TensorBoard, measured in pixels."""

import numpy as np
import pytest

from kd_lightning.callbacks.drawing import (
    BARS,
    GAP,
    STUDENT,
    TABLE,
    TEACHER,
    Array,
    Tile,
    answers,
    confusion,
)


def tile(classes: int, image: Array | None = None) -> Tile:
    """A teacher certain of the first class, a student certain of the last."""
    eye = np.eye(classes, dtype=np.float32)
    return Tile(image, "a title", eye[0], eye[-1])


def columns_of(picture: Array, color: str, at_least: int = BARS - 2) -> list[int]:
    """Return the columns that contain a bar of a colour and at least some height."""
    rgb = np.array(tuple(bytes.fromhex(color[1:])))
    heights = (picture == rgb).all(2).sum(0)
    return np.flatnonzero(heights >= at_least).tolist()


@pytest.mark.parametrize("classes", [2, 10, 100])
def test_certain_prediction_is_one_full_bar(classes: int) -> None:
    picture = answers([tile(classes)], "heading")
    teacher, student = (columns_of(picture, color) for color in (TEACHER, STUDENT))
    assert teacher
    assert student
    assert max(teacher) < min(student)
    for bar in (teacher, student):  # each without a gap, that is, a single bar
        assert bar == list(range(bar[0], bar[-1] + 1))


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 0.9])
def test_bar_height_is_proportional_to_its_probability(share: float) -> None:
    p_t = np.array([share, 0.0], np.float32)
    picture = answers([Tile(None, "", p_t, np.eye(2, dtype=np.float32)[1])], "")
    rgb = np.array(tuple(bytes.fromhex(TEACHER[1:])))
    # below the legend, whose rectangles have the same colour
    heights = (picture[2 * GAP :] == rgb).all(2).sum(0)
    assert heights.max() == round(BARS * share)


@pytest.mark.parametrize("shape", [(8, 8), (8, 8, 3)])
def test_samples_are_drawn_beside_their_bars(shape: tuple[int, ...]) -> None:
    image = np.full(shape, 77, np.uint8)
    with_image, without = (answers([tile(10, i), tile(10, i)], "") for i in (image, None))
    assert (with_image == 77).all(2).sum() == 2 * BARS**2
    assert with_image.shape[1] - without.shape[1] > BARS
    assert with_image.dtype == np.uint8


@pytest.mark.parametrize("classes", [2, 10, 100, 400])
def test_confusion_is_coloured_by_the_share_of_the_true_class(classes: int) -> None:
    counts = np.zeros((classes, classes))
    counts[np.arange(classes), 0] = np.arange(classes)  # class 0 has no samples
    picture = confusion(counts, "heading").astype(int)
    rgb = np.array(tuple(bytes.fromhex(STUDENT[1:])))
    blue = (picture == rgb).all(2)
    pitch = max(TABLE // classes, 2)
    assert blue.sum() > 0.5 * (classes - 1) * pitch**2  # less the numbers written on it
    assert blue.sum() <= (classes - 1) * pitch**2
