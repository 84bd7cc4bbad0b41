"""Images for TensorBoard: predicted probabilities by sample, and confusion matrices.

They are drawn with Pillow at the width of TensorBoard's cards. All images of a run take 0.1 s;
the same plots take 1 s with matplotlib.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from kd_lightning.utils.text import printable

Array = np.ndarray[Any, Any]

INK, PALE, STRIPE = "#2b2f36", "#8a9099", "#f3f4f6"
TEACHER, STUDENT = "#a067d4", "#3f86d8"
# Pixels: height of a title and of the bars, width of the bars of a sample, margin, and width
# of the confusion matrix. TensorBoard shows images of this width unscaled.
TITLE, BARS, PLOT, GAP, TABLE = 18, 46, 230, 18, 280
LONGEST_NAME = 16  # characters of a class's name
MOST_NUMBERS = 20  # classes; with more, a cell has no room for its count


class Tile(NamedTuple):
    """One sample of an image.

    Attributes:
        image: H×W or H×W×3, uint8; None if the inputs are not images.
        title: line of text above the sample.
        teacher: the teacher's probabilities, C.
        student: the student's probabilities, C.
    """

    image: Array | None
    title: str
    teacher: Array
    student: Array


def answers(tiles: Sequence[Tile], heading: str) -> Array:
    """Draw the probabilities of teacher and student, one row per sample.

    Args:
        tiles: the samples, at least one.
        heading: text above all rows.

    Returns:
        H×W×3, uint8.
    """
    classes, height = len(tiles[0].teacher), TITLE + BARS + GAP // 2
    left = GAP if tiles[0].image is None else 2 * GAP + BARS
    pitch = max(PLOT // classes, 3)  # room for two bars of a pixel each and a gap
    bottom = 2 * GAP + len(tiles) * height
    longest = max(_font().getlength(tile.title) for tile in tiles)  # with names of classes
    right = max(left + pitch * classes, GAP + round(longest))
    canvas, pen = _blank(right + GAP, bottom + int(1.5 * GAP))
    _legend(pen, heading, right)
    for i, tile in enumerate(tiles):
        y = 2 * GAP + i * height
        pen.text((GAP, y), tile.title, INK, _font())
        if tile.image is not None:
            # nearest neighbour, so that the pixels that the network receives stay visible
            picture = Image.fromarray(tile.image).resize((BARS, BARS), Image.Resampling.NEAREST)
            canvas.paste(picture.convert("RGB"), (GAP, y + TITLE))
        _bars(pen, left, y + TITLE + BARS, tile, pitch)
    for c in range(0, classes, -(-classes // 10)):
        pen.text((left + (c + 0.5) * pitch, bottom), str(c), PALE, _font(), anchor="ma")
    return np.asarray(canvas)


def confusion(counts: Array, heading: str, names: Sequence[str] = ()) -> Array:
    """Draw a confusion matrix, coloured by share of the true class.

    Args:
        counts: number of samples by true class and predicted class, C×C.
        heading: text above the matrix.
        names: name of each class; its number by default.

    Returns:
        H×W×3, uint8; the counts are written into the cells if there are few classes.
    """
    classes = len(counts)
    pitch = max(TABLE // classes, 2)
    labels = [f"{shortened(name)}  {c}" for c, name in enumerate(names)]
    labels = labels or [str(c) for c in range(classes)]
    widest = max(_font().getlength(label) for label in labels)
    size, left, top = pitch * classes, max(2 * GAP, round(widest) + GAP), 2 * GAP
    canvas, pen = _blank(left + size + GAP, top + size + 3 * GAP)
    # Shares of the row, because with raw counts a rare class would be invisible. A class with
    # no samples stays white instead of dividing by zero.
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    shade = 255 - shares[..., None] * (255 - np.array(_rgb(STUDENT)))
    cells = Image.fromarray(shade.round().astype(np.uint8))
    canvas.paste(cells.resize((size, size), Image.Resampling.NEAREST), (left, top))
    pen.rectangle((left - 1, top - 1, left + size, top + size), outline=PALE)
    middle = [(c + 0.5) * pitch for c in range(classes)]
    for row, column in np.argwhere(counts) if classes <= MOST_NUMBERS else ():
        place = (left + middle[column], top + middle[row])
        pen.text(place, f"{counts[row, column]:.0f}", INK, _font(), anchor="mm")
    for c in range(0, classes, 1 if classes <= MOST_NUMBERS else -(-classes // 10)):
        pen.text((left - 6, top + middle[c]), labels[c], PALE, _font(), anchor="rm")
        pen.text((left + middle[c], top + size + 4), str(c), PALE, _font(), anchor="ma")
    pen.text((GAP, GAP // 2), heading, INK, _font())
    pen.text((left, top + size + 1.5 * GAP), "rows: true, columns: predicted", PALE, _font())
    return np.asarray(canvas)


def shortened(name: str) -> str:
    """Return a class's name as it fits into a picture."""
    name = printable(name)
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"


@cache
def _font() -> Any:
    return ImageFont.load_default(12)


def _blank(width: int, height: int) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    canvas = Image.new("RGB", (width, height), "white")
    return canvas, ImageDraw.Draw(canvas)


def _rgb(color: str) -> tuple[int, ...]:
    return tuple(bytes.fromhex(color[1:]))


def _legend(pen: ImageDraw.ImageDraw, heading: str, right: int) -> None:
    pen.text((GAP, GAP // 2), heading, INK, _font())
    for name, color, x in (("teacher", TEACHER, right - 118), ("student", STUDENT, right - 54)):
        pen.rectangle((x, GAP // 2 + 3, x + 8, GAP // 2 + 11), color)
        pen.text((x + 12, GAP // 2), name, INK, _font())


def _bars(pen: ImageDraw.ImageDraw, x: int, y: int, tile: Tile, pitch: int) -> None:
    """Draw one pair of bars per class, with its lower left corner at (x, y).

    If there are few classes, every second one has a grey background.
    """
    thick, striped = max(pitch * 2 // 5, 1), len(tile.teacher) <= MOST_NUMBERS
    for c, pair in enumerate(zip(tile.teacher, tile.student, strict=True)):
        left = x + c * pitch
        if c % 2 and striped:
            pen.rectangle((left, y - BARS, left + pitch - 1, y), STRIPE)
        for side, share, color in zip((-thick, 0), pair, (TEACHER, STUDENT), strict=True):
            start = left + pitch // 2 + side
            pen.rectangle((start, y - round(BARS * float(share)), start + thick - 1, y), color)
    pen.line((x, y, x + len(tile.teacher) * pitch - 1, y), PALE)
