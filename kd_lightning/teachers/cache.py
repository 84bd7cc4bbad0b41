"""Frozen teacher outputs, computed once and read by sample index.

A table contains one output (``logits``, or a tapped layer) for every view of every sample of
a split, V×N×…. Each output has its own file on disk, so methods that compare different layers
share the others. The file's name is a hash of the teacher's weights and code, the data, and
their transformation.

Under augmentation, teacher and student see the same view: Beyer et al. 2022 ("function
matching"), arXiv 2106.05237.
"""

import hashlib
import logging
import mmap
import os
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kd_lightning.data.types import Prepared
from kd_lightning.nets.taps import Outputs, tapped
from kd_lightning.teachers.cache_files import Compute, Tables, absent, find_or_compute
from kd_lightning.teachers.compact import compact, largest_error, report_error, restore
from kd_lightning.teachers.together import add_up, gathered, share
from kd_lightning.utils.errors import UserError
from kd_lightning.utils.hashing import sources
from kd_lightning.utils.networks import Inputs, apply, fitting
from kd_lightning.utils.progress import progress

log = logging.getLogger(__name__)

FORMAT = 3  # version of the files, a part of their key: files of other versions are not read
DTYPES = {"float32": torch.float32, "float16": torch.float16}
PRECISIONS = ("float32", "bf16")
# Tables of up to this many bytes are copied to the student's device at the first read. Copying
# the rows of each batch instead would synchronise the GPU in every step.
ON_DEVICE = 2**30
IN_MEMORY = 2**28  # bytes; larger tables are computed in a file


class CachedOutputs:
    """Tables of one split, read one batch at a time.

    Args:
        tables: V×N×… each, and the number of classes, as created by :class:`TeacherCache`.
    """

    def __init__(self, tables: Tables) -> None:
        self.tables = dict(tables)
        self.classes = int(self.tables.pop(":classes"))

    def read(self, index: Tensor, epoch: int) -> Outputs:
        """Return the outputs for the samples at ``index``, B, in the view of an epoch."""
        return restore({k: self._rows(k, epoch, index) for k in self.tables}, self.classes)

    def _rows(self, name: str, epoch: int, index: Tensor) -> Tensor:
        table = self.tables[name]
        if table.device != index.device and table.nbytes <= ON_DEVICE:
            table = self.tables[name] = table.to(index.device)
        return table[epoch % len(table)][index.to(table.device)].to(index.device)


class TeacherCache:
    """Cache of a frozen teacher's outputs, on disk and in memory.

    Args:
        root: folder shared by all processes; None to cache in memory only.
        max_bytes: limit on the tables of one split, and on the tables held in memory between
            the jobs of a process, in bytes; 0 disables the cache.
        dtype: type of the stored numbers, ``float32`` or ``float16``.
        top_k: number of logits to store per prediction, the largest ones. The total mass of
            the others is stored, too, and spread evenly over them when read. For tasks with
            many classes; all logits by default.
        precision: in which the teacher computes the outputs: ``float32``, or ``bf16`` (autocast),
            which is faster on many devices. The error is measured on the first batch and logged.

    Raises:
        UserError: if a setting is out of range.
    """

    def __init__(
        self,
        root: str | None = "cache",
        max_bytes: float = 4e9,
        dtype: str = "float32",
        top_k: int | None = None,
        precision: str = "float32",
    ) -> None:
        if precision not in PRECISIONS:
            known = ", ".join(PRECISIONS)
            raise UserError(f"cache.precision must be one of {known}, got {precision}")
        if dtype not in DTYPES:
            raise UserError(f"cache.dtype must be one of {', '.join(DTYPES)}, got {dtype}")
        if not max_bytes >= 0:
            raise UserError(f"cache.max_bytes cannot be negative, got {max_bytes}")
        if top_k is not None and top_k < 1:
            raise UserError(f"cache.top_k must be at least 1, got {top_k}")
        self.root = Path(root) if root is not None else None
        self.max_bytes, self.dtype, self.top_k = max_bytes, DTYPES[dtype], top_k
        self.is_bf16 = precision == "bf16"
        self.held: dict[str, Tables] = {}
        self._has_warned = False  # that the disk is full or read-only

    def outputs(
        self,
        teacher: nn.Module,
        inputs: Prepared,
        device: torch.device,
        paths: Sequence[str] = (),
        together: bool = False,
    ) -> CachedOutputs | None:
        """Return the teacher's outputs for a split, computing those that are missing.

        Args:
            teacher: the network, in evaluation mode; it is moved to ``device``.
            inputs: the split.
            device: device of the teacher.
            paths: layers to cache in addition to the logits.
            together: whether all processes of the run call this at once, so that each computes
                a share.

        Returns:
            The outputs, or None if they cannot be cached: the number of views is unlimited, or
            the tables would exceed ``max_bytes``. The teacher must then run in every step.
        """
        if inputs.views == 0 or self.max_bytes == 0:
            return None
        teacher.to(device)
        key = self._key(teacher, inputs)
        wanted = ["logits", *paths]
        is_held = all(f"{key}-{name}" in self.held for name in wanted)
        if not is_held and not self._has_room(teacher, inputs, device, paths):
            return None
        # Popped here and inserted again by _hold(), so the dictionary is ordered by last use.
        found = {name: self.held.pop(f"{key}-{name}", None) for name in wanted}
        missing = [name for name, tables in found.items() if tables is None]
        compute = partial(self._compute, teacher, inputs, device)
        if together and share()[1] > 1:
            # Not the same ones in each process: the first may hold those of validation data.
            missing = sorted({name for names in gathered(missing) for name in names})
            if missing:
                found |= self._find_together(key, missing, partial(compute, ranks=share()))
        elif missing:
            found |= self._find(key, missing, compute)
        kept = {f"{key}-{name}": tables for name, tables in found.items() if tables}
        self._hold(kept)
        return CachedOutputs({k: t for tables in kept.values() for k, t in tables.items()})

    def _has_room(
        self, teacher: nn.Module, inputs: Prepared, device: torch.device, paths: Sequence[str]
    ) -> bool:
        needed = self._bytes(teacher, inputs, device, paths)
        if needed > self.max_bytes:
            log.warning(
                "the teacher's outputs would take %.3g GB, more than cache.max_bytes = %.3g GB: "
                "the teacher runs in every step instead",
                needed / 1e9,
                self.max_bytes / 1e9,
            )
        return needed <= self.max_bytes

    def _hold(self, newest: dict[str, Tables]) -> None:
        """Keep tables for the next job of this process, and drop the least recently used."""
        self.held |= newest
        for name in [name for name in self.held if name not in newest]:
            if sum(_size(tables) for tables in self.held.values()) > self.max_bytes:
                del self.held[name]

    def _find(self, key: str, wanted: list[str], compute: Compute) -> dict[str, Tables]:
        """Return the tables of each output, computing those that are not on disk."""
        if self.root is None:
            return compute(wanted)
        computed: dict[str, Tables] = {}

        def remembered(missing: list[str]) -> dict[str, Tables]:
            computed.update(compute(missing))
            return computed

        try:
            return find_or_compute(self.root, key, wanted, remembered)
        except OSError as error:  # a full or read-only disk must not end a run
            if not self._has_warned:  # not for each split
                log.warning("teacher outputs stay in memory: %s (see cache.root=)", error)
            self._has_warned = True
            missing = [name for name in wanted if name not in computed]
            return {**computed, **(compute(missing) if missing else {})}

    def _find_together(self, key: str, wanted: list[str], compute: Compute) -> dict[str, Tables]:
        """Return the tables of each output, of which each process computes a share."""
        lacking = wanted if self.root is None else absent(self.root, key, wanted)
        lacking = gathered(lacking)[0]
        computed = compute(lacking) if lacking else {}
        if self.root is None:
            return computed

        def known(missing: list[str]) -> dict[str, Tables]:
            return {name: computed[name] for name in missing}

        rank, _ = share()
        found = self._find(key, wanted, known) if rank == 0 else {}
        gathered(None)  # the first process has written the files
        return found or self._find(key, wanted, known)

    def _bytes(
        self, teacher: nn.Module, inputs: Prepared, device: torch.device, paths: Sequence[str]
    ) -> int:
        # Extrapolated from one sample: stored size depends on layers, dtype and top_k.
        _, _, batch = next(iter(inputs.batches(device)))
        rows = compact(
            run_teacher(teacher, apply(batch, lambda x: x[:1]), paths), self.dtype, self.top_k
        ).values()
        return sum(row.nbytes for row in rows) * inputs.size * inputs.views

    def _key(self, teacher: nn.Module, inputs: Prepared) -> str:
        # Equal weights do not imply equal outputs: repr() distinguishes layers without
        # weights, and the source code distinguishes forward() methods. The weights themselves
        # are hashed instead of a path, because a checkpoint file can be overwritten.
        code = sources(type(part).__module__ for part in teacher.modules())
        plain = [_plain_attributes(part) for part in teacher.modules()]
        # A network's own preprocessing is a hook, which its repr() does not show.
        own = [repr(getattr(part, "preprocessing", None)) for part in teacher.modules()]
        plain += own if any(one != "None" for one in own) else []
        about = (FORMAT, repr(teacher), code, plain, inputs.fingerprint, inputs.views)
        stored = (self.dtype, self.top_k, *(["bf16"] if self.is_bf16 else []))
        digest = hashlib.blake2b(repr((about, stored)).encode(), digest_size=12)
        for name, tensor in teacher.state_dict().items():
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def _compute(
        self,
        teacher: nn.Module,
        inputs: Prepared,
        device: torch.device,
        wanted: list[str],
        ranks: tuple[int, int] = (0, 1),
    ) -> dict[str, Tables]:
        """Compute the tables of each output, with a share of the batches in each of the ranks."""
        rank, size = ranks
        views = f" in {inputs.views} views" if inputs.views > 1 else ""
        what = f"Computing teacher outputs for {inputs.size:,} samples{views}"
        tables: dict[str, Tables] = {name: {} for name in wanted}
        paths = [name for name in wanted if name != "logits"]
        worst, classes = dict.fromkeys(wanted, 0.0), 0
        with progress(what, inputs.size * inputs.views) as advance:
            for i, (view, index, batch) in enumerate(inputs.batches(device)):
                advance(len(index))
                if i % size != rank:
                    continue
                with torch.autocast(device.type, torch.bfloat16, enabled=self.is_bf16):
                    exact = run_teacher(teacher, batch, paths)
                stored = compact(exact, self.dtype, self.top_k)
                classes = exact["logits"].shape[-1]
                again = restore(stored, classes)
                if self.is_bf16 and i == 0:  # only here, or bf16 would save no time
                    exact = run_teacher(teacher, batch, paths)
                for name in wanted:
                    worst[name] = max(worst[name], largest_error(name, exact[name], again[name]))
                for name, rows in stored.items():
                    output = name if name in paths else "logits"  # with top_k: 3 tables
                    if output not in tables:
                        continue
                    if name not in tables[output]:
                        shape = (inputs.views, inputs.size, *rows.shape[1:])
                        tables[output][name] = self._zeros(torch.Size(shape), rows.dtype)
                    tables[output][name][view, index.cpu()] = rows.cpu()
        if size > 1:
            tables = {name: add_up(tables[name], device) for name in wanted}
            others = gathered((worst, classes))
            classes = max(found for _, found in others)
            worst = {name: max(found[name] for found, _ in others) for name in wanted}
        for name, error in worst.items():
            report_error(name, error)
        if "logits" in tables:
            tables["logits"][":classes"] = torch.tensor(classes)
        return tables

    def _zeros(self, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        """Return a table to be filled: in memory, or mapped from a file if it is large."""
        size = shape.numel() * dtype.itemsize
        if self.root is None or size <= IN_MEMORY:
            return torch.zeros(shape, dtype=dtype)
        try:
            with tempfile.TemporaryFile(dir=self.root) as file:
                # Allocated at once: writing to a mapped file on a full disk kills the process.
                os.posix_fallocate(file.fileno(), 0, size)
                return torch.frombuffer(mmap.mmap(file.fileno(), size), dtype=dtype).view(shape)
        except (OSError, AttributeError):  # no room, or a system without posix_fallocate
            return torch.zeros(shape, dtype=dtype)


def _plain_attributes(module: nn.Module) -> dict[str, Any]:
    """Numbers and strings that a module's forward may use, which no state dict holds."""
    kinds = (bool, int, float, str, tuple)
    return {k: v for k, v in vars(module).items() if isinstance(v, kinds) and k != "training"}


@torch.no_grad()
def run_teacher(teacher: nn.Module, inputs: Inputs, paths: Sequence[str] = ()) -> Outputs:
    """Return a teacher's ``logits`` and its layers at the paths, without gradient."""
    return tapped(teacher, fitting(inputs, teacher), paths)


def _size(tables: Tables) -> int:
    return sum(table.nbytes for table in tables.values())
