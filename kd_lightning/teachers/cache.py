"""Teacher outputs, computed once and read by sample index.

A table holds one output (``logits``, or a tapped layer) of a frozen teacher for every view of
every sample of a split: V×N×…. On disk each output is a file of its own, so that methods that
look at different layers share what they have in common. Its name is a key over the teacher's
weights and code, the data, and how they are transformed.

Source of the idea for augmented data: Beyer et al. 2022 ("function matching"),
arXiv 2106.05237: teacher and student must see the same view.
"""

import hashlib
import json
import logging
import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from filelock import FileLock
from torch import Tensor, nn

from kd_lightning.data.types import Prepared
from kd_lightning.nets.taps import Outputs, tapped
from kd_lightning.utils.divergence import kl_divergence
from kd_lightning.utils.errors import UserError
from kd_lightning.utils.files import crc32, write_atomically, write_text
from kd_lightning.utils.hashing import sources
from kd_lightning.utils.networks import Inputs, apply, fitting

log = logging.getLogger(__name__)

Tables = dict[str, Tensor]
Compute = Callable[[list[str]], dict[str, Tables]]  # the tables of each of these outputs
FORMAT = 3  # of the files; a new one leaves the old files alone
DTYPES = {"float32": torch.float32, "float16": torch.float16}
# A table of up to this many bytes is copied to the student's device when it is first read: on
# a GPU, a copy of each batch's rows would synchronise every step.
ON_DEVICE = 2**30


class CachedOutputs:
    """The tables of one split, read a batch at a time.

    Args:
        tables: V×N×… each, and the number of classes, as :class:`TeacherCache` makes them.
    """

    def __init__(self, tables: Tables) -> None:
        self.tables = dict(tables)
        self.classes = int(self.tables.pop(":classes"))

    def read(self, index: Tensor, epoch: int) -> Outputs:
        """The outputs for the samples at ``index``, B, in the view shown in an epoch."""
        return restore({k: self._rows(k, epoch, index) for k in self.tables}, self.classes)

    def _rows(self, name: str, epoch: int, index: Tensor) -> Tensor:
        table = self.tables[name]
        if table.device != index.device and table.nbytes <= ON_DEVICE:
            table = self.tables[name] = table.to(index.device)
        return table[epoch % len(table)][index.to(table.device)].to(index.device)


class TeacherCache:
    """Computes a frozen teacher's outputs for a split once and keeps them.

    Args:
        root: the folder on disk that all processes share; None for memory alone.
        max_bytes: the most that one split's tables may take, and the most that is held in
            memory between the jobs of a process; 0 switches the cache off.
        dtype: how numbers are stored, ``float32`` or ``float16``.
        top_k: keep only the k largest logits of each prediction and the total mass of the
            others, which is spread evenly over them again; for many classes.

    Raises:
        UserError: if a setting is out of range.
    """

    def __init__(
        self,
        root: str | None = "cache",
        max_bytes: float = 4e9,
        dtype: str = "float32",
        top_k: int | None = None,
    ) -> None:
        if dtype not in DTYPES:
            raise UserError(f"cache.dtype must be one of {', '.join(DTYPES)}, got {dtype}")
        if top_k is not None and top_k < 1:
            raise UserError(f"cache.top_k must be at least 1, got {top_k}")
        self.root = Path(root) if root is not None else None
        self.max_bytes, self.dtype, self.top_k = max_bytes, DTYPES[dtype], top_k
        self.held: dict[str, Tables] = {}

    def outputs(
        self,
        teacher: nn.Module,
        inputs: Prepared,
        device: torch.device,
        paths: Sequence[str] = (),
    ) -> CachedOutputs | None:
        """The teacher's outputs for a split, computed if need be.

        Args:
            teacher: the network, in evaluation mode; it is moved to ``device``.
            inputs: the split.
            device: where the teacher computes.
            paths: layers to keep beside the logits.

        Returns:
            The outputs, or None where they cannot be kept: there is no end of views, or the
            tables would exceed ``max_bytes``. The teacher is then run in every step.
        """
        if inputs.views == 0 or self.max_bytes == 0:
            return None
        teacher.to(device)
        if (needed := self._bytes(teacher, inputs, device, paths)) > self.max_bytes:
            log.warning(
                "the teacher's outputs would take %.3g GB, more than cache.max_bytes = %.3g GB: "
                "the teacher runs in every step instead",
                needed / 1e9,
                self.max_bytes / 1e9,
            )
            return None
        key = self._key(teacher, inputs)
        wanted = ["logits", *paths]
        found = {name: self.held.pop(f"{key}-{name}", None) for name in wanted}
        if missing := [name for name, tables in found.items() if tables is None]:
            found |= self._find(key, missing, partial(self._compute, teacher, inputs, device))
        kept = {f"{key}-{name}": tables for name, tables in found.items() if tables}
        self._hold(kept)
        return CachedOutputs({k: t for tables in kept.values() for k, t in tables.items()})

    def _hold(self, newest: dict[str, Tables]) -> None:
        """Keep tables for the next job of this process, dropping the oldest for want of room."""
        self.held |= newest
        for name in [name for name in self.held if name not in newest]:
            if sum(_size(tables) for tables in self.held.values()) > self.max_bytes:
                del self.held[name]

    def _find(self, key: str, wanted: list[str], compute: Compute) -> dict[str, Tables]:
        """The tables of each output, computed where they are not on disk."""
        if self.root is None:
            return compute(wanted)
        try:
            return _find_on_disk(self.root, key, wanted, compute)
        except OSError as error:
            log.warning("teacher outputs stay in memory: %s (see cache.root=)", error)
            return compute(wanted)

    def _bytes(
        self, teacher: nn.Module, inputs: Prepared, device: torch.device, paths: Sequence[str]
    ) -> int:
        _, _, batch = next(iter(inputs.batches(device)))
        rows = self._compact(run_teacher(teacher, apply(batch, lambda x: x[:1]), paths)).values()
        return sum(row.nbytes for row in rows) * inputs.size * inputs.views

    def _key(self, teacher: nn.Module, inputs: Prepared) -> str:
        # Networks with equal weights may still compute different things: their printed form
        # shows other layers, their source text other code in forward().
        code = sources(type(part).__module__ for part in teacher.modules())
        about = (FORMAT, repr(teacher), code, inputs.fingerprint, inputs.views)
        stored = (self.dtype, self.top_k)
        digest = hashlib.blake2b(repr((about, stored)).encode(), digest_size=12)
        for name, tensor in teacher.state_dict().items():
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def _compute(
        self, teacher: nn.Module, inputs: Prepared, device: torch.device, wanted: list[str]
    ) -> dict[str, Tables]:
        views = f" in {inputs.views} views" if inputs.views > 1 else ""
        log.info("computing teacher outputs for %d samples%s", inputs.size, views)
        tables: dict[str, Tables] = {name: {} for name in wanted}
        paths = [name for name in wanted if name != "logits"]
        worst, classes = dict.fromkeys(wanted, 0.0), 0
        for view, index, batch in inputs.batches(device):
            exact = run_teacher(teacher, batch, paths)
            stored = self._compact(exact)
            classes = exact["logits"].shape[-1]
            again = restore(stored, classes)
            for name in wanted:
                worst[name] = max(worst[name], _largest_error(name, exact[name], again[name]))
            for name, rows in stored.items():
                output = name if name in paths else "logits"  # which may be several tables
                if output in tables:
                    shape = (inputs.views, inputs.size, *rows.shape[1:])
                    table = tables[output].setdefault(name, torch.empty(shape, dtype=rows.dtype))
                    table[view, index.cpu()] = rows.cpu()
        for name, error in worst.items():
            _report_error(name, error)
        if "logits" in tables:
            tables["logits"][":classes"] = torch.tensor(classes)
        return tables

    def _compact(self, rows: Tables) -> Tables:
        rows = dict(rows)
        if self.top_k is not None and self.top_k < rows["logits"].shape[-1]:
            z = rows["logits"].float()
            rows["logits"], rows[":top"] = z.topk(self.top_k)
            # Their mass is kept as the logit that each of them would have if all were equal, so
            # that the softmax of the restored row is exact for the k classes.
            others = z.scatter(-1, rows[":top"], -torch.inf).logsumexp(-1)
            rows[":other"] = others - math.log(z.shape[-1] - self.top_k)
        return {k: v.to(self.dtype) if v.is_floating_point() else v for k, v in rows.items()}


@torch.no_grad()
def run_teacher(teacher: nn.Module, inputs: Inputs, paths: Sequence[str] = ()) -> Outputs:
    """A teacher's ``logits`` and its layers at the paths, without gradient."""
    return tapped(teacher, fitting(inputs, teacher), paths)


def restore(rows: Tables, classes: int) -> Outputs:
    """Stored rows as the teacher computed them: float32, all classes."""
    rows = {k: v.float() if v.is_floating_point() else v for k, v in rows.items()}
    if ":top" in rows:
        others = rows.pop(":other")[..., None]
        everywhere = others.expand(*others.shape[:-1], classes)
        rows["logits"] = everywhere.scatter(-1, rows.pop(":top"), rows["logits"])
    return rows


def _largest_error(name: str, exact: Tensor, stored: Tensor) -> float:
    """Largest KL at T = 1 of logits; largest difference over the maximum of a layer."""
    if torch.equal(exact, stored):
        return 0.0
    if not stored.isfinite().all() and exact.isfinite().all():
        raise UserError(
            f"the teacher's {name} reach {exact.abs().max():.3g}, which cache.dtype=float16 cannot "
            "hold: use cache.dtype=float32"
        )
    if name != "logits":
        return ((exact - stored).abs().max() / exact.abs().max()).item()
    return kl_divergence(exact, stored).max().item()


def _report_error(name: str, error: float) -> None:
    if error > 0 and name == "logits":
        log.info("stored logits differ from exact ones by at most KL = %.1e nats at T = 1", error)
    elif error > 0:
        log.info("stored %s differs by at most %.1e of its largest value", name, error)


def _size(tables: Tables) -> int:
    return sum(table.nbytes for table in tables.values())


def _find_on_disk(root: Path, key: str, wanted: list[str], compute: Compute) -> dict[str, Tables]:
    root.mkdir(parents=True, exist_ok=True)
    files = {name: root / f"{key}-{name.replace(':', '-')}.pt" for name in wanted}
    with FileLock(root / f"{key}.lock"):  # one process computes, the others wait
        if missing := [name for name in wanted if not _is_whole(files[name])]:
            computed = compute(missing)
            for name, tables in computed.items():
                _write(files[name], tables)
    return {n: torch.load(f, mmap=True, weights_only=True) for n, f in files.items()}


def _write(file: Path, tables: Tables) -> None:
    write_atomically(file, lambda stream: torch.save(tables, stream))
    write_text(file.with_suffix(".json"), json.dumps(_summary(file)))


def _is_whole(file: Path) -> bool:
    """Whether a file is there and is what was written; warns where it is not."""
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
