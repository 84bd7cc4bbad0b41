"""Shards of image files in the format of litdata, to be streamed from a disk or a mounted bucket.

A packed folder contains ``index.json`` and ``chunk-*.bin``, which litdata reads, with the bytes of
the original files and their labels; ``images.json`` with the names of the classes and the number of
images in each split; and ``columns.npz`` with the label and checksum of each image. The images of a
split are stored in random order, so that any part of it is a random sample.
"""

import hashlib
import io
import json
import logging
import re
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, treespec_dumps

from kd_lightning.data.decode import read_image
from kd_lightning.data.decoded import Squares
from kd_lightning.data.listing import PARTS
from kd_lightning.data.photos import Photos
from kd_lightning.data.stored import StoredImages
from kd_lightning.data.types import UNLABELLED
from kd_lightning.utils.errors import UserError
from kd_lightning.utils.text import one_line

FORMAT = 1
ABOUT, COLUMNS, INDEX = "images.json", "columns.npz", "index.json"
# Of litdata's settings in the index: those that decide how a shard is read.
OURS = {
    "compression": None,
    "compression_level": None,
    "ipc_compression": None,
    "encryption": None,
    "data_format": ["bytes", "int"],
    "data_spec": treespec_dumps(tree_flatten({"image": b"", "label": 0})[1]),
    "item_loader": "PyTreeLoader",
}
UNUSED = "100GB"  # limit of litdata's cache of remote shards; it is given to keep litdata silent


def open_shards(path: Path, squares: Squares) -> Photos:
    """Open a packed folder.

    Args:
        path: the folder, written by :mod:`kd_lightning.data.packing`.
        squares: what its images are decoded to when they are read.

    Raises:
        UserError: if the folder is missing, incomplete or damaged.
    """
    if not path.is_dir():
        raise UserError(f"data.path: there is no folder {path}")
    if not (path / ABOUT).is_file():
        raise UserError(f"{path} has no shards: write them with kd-data {path} NEW_FOLDER")
    try:
        names, counts, digest = _read_about(path)
        target, checksums = _read_columns(path, names, counts)
        first = _read_index(path, len(target))
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}; write it again with kd-data") from error
    rows = torch.arange(len(target))
    content = hashlib.blake2b(repr((digest, squares)).encode(), digest_size=16).hexdigest()
    images = StoredImages(
        ShardReader(path, squares, checksums), rows, squares.shape, content, True, first
    )
    return Photos(names, images, target, dict(zip(PARTS, rows.split(counts), strict=True)))


# The files of a packed folder may come from anyone: each is compared with what packing.py writes.


def _read_about(path: Path) -> tuple[tuple[str, ...], list[int], str]:
    """Return the names of the classes, the number of images in each split, and the hash.

    Raises:
        ValueError: if ``images.json`` is not as :mod:`kd_lightning.data.packing` writes it.
    """
    about = _read_json(path / ABOUT)
    if about.get("format") != FORMAT:
        raise ValueError(f"the format in {ABOUT} is {about.get('format')!r:.20}, not {FORMAT}")
    names, counts, digest = (about.get(key) for key in ("class_names", "counts", "digest"))
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        names = []
    if not 2 <= len({*names}) == len(names):
        raise ValueError(f"the class_names in {ABOUT} are not the names of two or more classes")
    if not isinstance(counts, dict) or {*counts} != {*PARTS} or not _are_counts(counts.values()):
        raise ValueError(f"the counts in {ABOUT} are not numbers of images")
    if not isinstance(digest, str):
        raise ValueError(f"{ABOUT} has no digest")
    return tuple(map(str, names)), [counts[name] for name in PARTS], digest


def _read_columns(
    path: Path, names: Sequence[str], counts: Sequence[int]
) -> tuple[Tensor, np.ndarray]:
    """Return the label and the checksum of each image.

    Raises:
        ValueError: if ``columns.npz`` is not as :mod:`kd_lightning.data.packing` writes it.
    """
    try:
        with np.load(path / COLUMNS, allow_pickle=False) as columns:
            target, checksums = columns["target"], columns["crc32"]
    except Exception as error:  # of many types, from zipfile and numpy
        raise ValueError(f"{COLUMNS} cannot be read") from error
    whole = (sum(counts),)
    if (target.dtype, checksums.dtype) != (np.int64, np.uint32) or not (
        target.shape == checksums.shape == whole
    ):
        raise ValueError(f"{COLUMNS} does not have one label and checksum per image")
    labelled, others = np.split(target, [whole[0] - counts[-1]])
    if ((labelled < 0) | (labelled >= len(names))).any() or (others != UNLABELLED).any():
        raise ValueError(f"{COLUMNS} has labels of no class")
    return torch.from_numpy(target), checksums


def _read_index(path: Path, count: int) -> Tensor:
    """Return the position of the first image of each shard.

    Raises:
        ValueError: if ``index.json`` is not as :mod:`kd_lightning.data.packing` writes it, or a
            shard is missing.
    """
    index = _read_json(path / INDEX)
    config, chunks = index.get("config"), index.get("chunks")
    # litdata unpickles samples, and calls other code, if the index says so.
    if not isinstance(config, dict) or {k: config.get(k) for k in OURS} != OURS:
        raise ValueError(f"{INDEX} describes other shards than those of kd-data")
    if not isinstance(chunks, list) or not all(isinstance(chunk, dict) for chunk in chunks):
        raise ValueError(f"{INDEX} does not list the shards")
    for chunk in chunks:
        name = chunk.get("filename")
        if not isinstance(name, str) or not re.fullmatch(r"chunk-\d+-\d+\.bin", name):
            raise ValueError(f"{INDEX} names a file that is no shard")
        if not _are_counts([chunk.get("chunk_size"), chunk.get("chunk_bytes")]):
            raise ValueError(f"{INDEX} does not say how large {name} is")
        if not (path / name).is_file():
            raise ValueError(f"{name} is missing")
        if (path / name).stat().st_size < chunk["chunk_bytes"]:
            raise ValueError(f"{name} is too short")
    sizes = torch.tensor([chunk["chunk_size"] for chunk in chunks])
    if int(sizes.sum()) != count:
        raise ValueError(f"its shards have {int(sizes.sum())} images instead of {count}")
    return sizes.cumsum(0) - sizes


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{file.name} cannot be read") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file.name} is no description of shards")
    return content


def _are_counts(values: Iterable[Any]) -> bool:
    return all(type(value) is int and 0 <= value < 2**40 for value in values)


class ShardReader:
    """Read and decode images at positions of a packed folder.

    Args:
        path: the folder.
        squares: what the images are decoded to.
        checksums: CRC-32 of each image.
    """

    def __init__(self, path: Path, squares: Squares, checksums: np.ndarray) -> None:
        self.path, self.squares, self.checksums = path, squares, checksums
        # batch_decode=0: an image alone, not its neighbours too, which are not read in turn.
        self.dataset = litdata().StreamingDataset(str(path), batch_decode=0, max_cache_size=UNUSED)

    def __call__(self, rows: Tensor) -> Tensor:
        """Return the images at positions, B, as B×C×S×S uint8."""
        images = torch.empty(len(rows), *self.squares.shape, dtype=torch.uint8)
        # In the order of the shards, because litdata keeps a single one open.
        for k in rows.argsort().tolist():
            images[k] = self._read(int(rows[k]))
        return images

    def _read(self, row: int) -> Tensor:
        try:
            content: Any = self.dataset[row]["image"]
        except Exception as error:  # of many types, for a damaged header or table of a shard
            raise UserError(
                f"image {row} of {self.path} cannot be read from its shard: {one_line(error)}; "
                "write the folder again with kd-data"
            ) from error
        if zlib.crc32(content) != self.checksums[row]:
            raise UserError(f"image {row} of {self.path} is damaged: write it again with kd-data")
        return read_image(io.BytesIO(content), *self.squares)


def litdata() -> ModuleType:
    """Import litdata.

    Raises:
        UserError: if it is not installed.
    """
    try:
        import litdata as found
    except ImportError as error:
        raise UserError(
            "data=stream and kd-data need litdata: pip install 'kd-lightning[stream]'"
        ) from error
    logging.getLogger("litdata").setLevel(logging.WARNING)
    return found
