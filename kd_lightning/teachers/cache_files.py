"""The files of the teacher cache: one for each output, with a checksum beside it."""

import json
import logging
from collections.abc import Callable
from pathlib import Path

import torch
from filelock import FileLock
from torch import Tensor

from kd_lightning.utils.files import crc32, remove_partial, write_atomically, write_text

log = logging.getLogger(__name__)

Tables = dict[str, Tensor]
Compute = Callable[[list[str]], dict[str, Tables]]  # the tables of each of these outputs


def find_or_compute(root: Path, key: str, wanted: list[str], compute: Compute) -> dict[str, Tables]:
    """Read the tables of each output from a folder; compute and write those it lacks.

    Args:
        root: the folder, shared by all processes.
        key: names everything that determines the outputs.
        wanted: names of the outputs.
        compute: returns the tables of the outputs that are missing or damaged.
    """
    root.mkdir(parents=True, exist_ok=True)
    files = _files(root, key, wanted)
    with FileLock(root / f"{key}.lock"):  # one process computes, the others wait
        remove_partial(root, f"{key}-*")
        if missing := [name for name in wanted if not _is_whole(files[name])]:
            computed = compute(missing)
            for name, tables in computed.items():
                _write(files[name], tables)
    # Mapped, so the processes of a sweep share one copy in the page cache. weights_only, since
    # the folder may be shared, and loading a pickle would run code of whoever wrote it.
    return {n: torch.load(f, mmap=True, weights_only=True) for n, f in files.items()}


def absent(root: Path, key: str, wanted: list[str]) -> list[str]:
    """Return the names of the outputs whose files are missing or damaged."""
    return [name for name, file in _files(root, key, wanted).items() if not _is_whole(file)]


def _files(root: Path, key: str, wanted: list[str]) -> dict[str, Path]:
    return {name: root / f"{key}-{name.replace(':', '-')}.pt" for name in wanted}


def _write(file: Path, tables: Tables) -> None:
    write_atomically(file, lambda stream: torch.save(tables, stream))
    # torch.load does not verify the checksums inside its archive: a flipped byte would silently
    # become a wrong logit.
    write_text(file.with_suffix(".json"), json.dumps(_summary(file)))


def _is_whole(file: Path) -> bool:
    """Return whether a file exists and matches its checksum; warn if it is damaged."""
    if not file.is_file():
        return False
    try:
        whole = json.loads(file.with_suffix(".json").read_text()) == _summary(file)
    except (OSError, ValueError):
        whole = False
    if not whole:
        log.warning("the cache file %s is damaged: its outputs are computed again", file)
    return whole


def _summary(file: Path) -> dict[str, int]:
    return {"crc32": crc32(file), "bytes": file.stat().st_size}
