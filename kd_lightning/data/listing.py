"""Listings of image folders: DIR/train/CLASS/*.jpg, or DIR/CLASS/*.jpg."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from kd_lightning.data.decode import SUFFIXES
from kd_lightning.data.types import UNLABELLED
from kd_lightning.utils.errors import UserError
from kd_lightning.utils.text import printable

SPLITS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}
PARTS = (*SPLITS, "unlabelled")


class Listing(NamedTuple):
    """Image files below a folder.

    Attributes:
        root: the folder.
        files: paths relative to it, sorted within each part.
        stats: size in bytes and time of modification in ns of each.
    """

    root: Path
    files: tuple[str, ...]
    stats: tuple[tuple[int, int], ...]


class ImageFolder(NamedTuple):
    """Images and labels of a folder.

    Attributes:
        listing: all image files, of all splits.
        class_names: name of each class, sorted.
        target: class of each file, N; −100 for unlabelled ones.
        split: ``train``, ``val``, ``test`` or ``unlabelled`` of each file.
    """

    listing: Listing
    class_names: tuple[str, ...]
    target: Tensor
    split: list[str]


def list_folder(root: Path, unlabelled: Path | None = None) -> ImageFolder:
    """List the images of a folder by split and class.

    Args:
        root: contains ``train/CLASS``, and optionally ``val/CLASS`` and ``test/CLASS``; or
            ``CLASS`` directly, then all images belong to ``train``. Images may lie in any depth
            below the folder of their class.
        unlabelled: folder with more images, in any depth; with it ``train`` may be missing if
            ``val`` and ``test`` exist.

    Raises:
        UserError: if a folder is missing or cannot be read, a class has no images, there are
            fewer than two classes, or a class occurs in ``val`` or ``test`` only.
    """
    trees = _trees(root, unlabelled is not None)
    found: dict[str, dict[str, list[str]]] = {s: _classes(tree) for s, tree in trees.items()}
    class_names = _class_names(root, found)
    number = {name: i for i, name in enumerate(class_names)}
    files, target, split = [], [], []
    for name, classes in found.items():
        for label, paths in classes.items():
            files += paths
            target += [number[label]] * len(paths)
            split += [name] * len(paths)
    if unlabelled is not None:
        others = sorted(_images(unlabelled))
        if not others:
            raise UserError(f"data.unlabelled: there are no images in {unlabelled}")
        files += others
        target += [UNLABELLED] * len(others)
        split += ["unlabelled"] * len(others)
    return ImageFolder(_listing(root, files), class_names, torch.tensor(target), split)


def _trees(root: Path, has_unlabelled: bool) -> dict[str, Path]:
    """Return the folder of each split that exists."""
    if not root.is_dir():
        raise UserError(f"data.path: there is no folder {root}")
    trees = {
        split: root / name
        for split, names in SPLITS.items()
        for name in names
        if (root / name).is_dir()
    }
    if "train" in trees or (has_unlabelled and {*trees} == {"val", "test"}):
        return trees
    if trees:
        there = " and ".join(f"{tree.name}/" for tree in trees.values())
        raise UserError(f"{root} has {there} but no train/: add it, or point data.path= to it")
    return {"train": root}


def _classes(tree: Path) -> dict[str, list[str]]:
    """Return the images of each class folder in a tree."""
    with _reading(tree):
        names = sorted(e.name for e in os.scandir(tree) if e.is_dir() and e.name[0] != ".")
    if not names:
        raise UserError(f"{tree} has no class folders: it needs {tree.name}/CLASS/*.jpg")
    found = {name: sorted(_images(tree / name)) for name in names}
    if empty := [name for name, files in found.items() if not files]:
        raise UserError(
            f"there are no images in {tree / printable(empty[0])}"
            + (f" and {len(empty) - 1} more class folders" if len(empty) > 1 else "")
            + f": add some ({', '.join(SUFFIXES)}), or delete the folder"
        )
    return found


def _class_names(root: Path, found: dict[str, dict[str, list[str]]]) -> tuple[str, ...]:
    names = sorted(found["train"] if "train" in found else {*found["val"], *found["test"]})
    for name in names:
        if any("\ud800" <= character <= "\udfff" for character in name):  # bytes that are no text
            raise UserError(
                f"the name of the class folder {printable(name)} in {root} is not UTF-8: rename it"
            )
    if len(names) < 2:
        raise UserError(f"{root} has a single class, {printable(names[0])}: it needs at least two")
    for split in ("val", "test"):
        if others := sorted({*found.get(split, ())} - {*names}):
            raise UserError(
                f"the class {printable(others[0])} occurs in {split}/ only: a network has no "
                "output for it; add training images, or delete the folder"
            )
    return tuple(names)


def _images(folder: Path) -> Iterator[str]:
    """Yield the paths of the images below a folder, in any depth."""
    with _reading(folder):
        if not folder.is_dir():
            raise UserError(f"there is no folder {folder}")
        # A link to a folder above would make images of other classes images of this one.
        above = [place.stat() for place in folder.absolute().parents]
        seen = {(place.st_dev, place.st_ino) for place in above}
        for here, folders, files in os.walk(folder, onerror=_raise, followlinks=True):
            place = Path(here).stat()
            if (place.st_dev, place.st_ino) in seen:
                folders.clear()
                continue
            seen.add((place.st_dev, place.st_ino))
            for name in files:
                # Hidden files, such as ._photo.jpg of macOS, are no images.
                if name.lower().endswith(SUFFIXES) and not name.startswith("."):
                    yield f"{here}/{name}"


def _listing(root: Path, files: list[str]) -> Listing:
    stats = []
    with _reading(root):
        for file in files:
            try:
                found = Path(file).stat()
            except FileNotFoundError:  # a link to nothing, which will be an unreadable image
                found = Path(file).lstat()
            stats.append((found.st_size, found.st_mtime_ns))
    relative = tuple(os.path.relpath(file, root) for file in files)
    return Listing(root.resolve(), relative, tuple(stats))


def _raise(error: OSError) -> None:
    raise error


@contextmanager
def _reading(folder: Path) -> Iterator[None]:
    """Convert an error of the file system into a UserError."""
    try:
        yield
    except OSError as error:
        raise UserError(f"the folder {folder} cannot be read: {error}") from error
