"""What is stored of a teacher's outputs: fewer bits, or the largest logits only."""

import logging
import math

import torch
from torch import Tensor

from kd_lightning.nets.taps import Outputs
from kd_lightning.utils.divergence import kl_divergence
from kd_lightning.utils.errors import UserError

log = logging.getLogger(__name__)


def compact(rows: Outputs, dtype: torch.dtype, top_k: int | None) -> dict[str, Tensor]:
    """Convert a teacher's outputs to what is stored.

    Args:
        rows: ``logits`` and layers by path.
        dtype: type of the stored numbers.
        top_k: number of logits to keep, the largest ones; None for all.

    Returns:
        The rows by name; with ``top_k`` also ``:top``, the classes of the kept logits, and
        ``:other``, the logit of each of the others.
    """
    rows = dict(rows)
    if top_k is not None and top_k < rows["logits"].shape[-1]:
        z = rows["logits"].float()
        rows["logits"], rows[":top"] = z.topk(top_k)
        # The mass of the others is stored as the logit that each would have if all were
        # equal, so the softmax of the restored row is exact for the k classes.
        others = z.scatter(-1, rows[":top"], -torch.inf).logsumexp(-1)
        rows[":other"] = others - math.log(z.shape[-1] - top_k)
    return {k: v.to(dtype) if v.is_floating_point() else v for k, v in rows.items()}


def restore(rows: Outputs, classes: int) -> Outputs:
    """Convert stored rows to the teacher's outputs: float32, all classes."""
    rows = {k: v.float() if v.is_floating_point() else v for k, v in rows.items()}
    if ":top" in rows:
        others = rows.pop(":other")[..., None]
        everywhere = others.expand(*others.shape[:-1], classes)
        rows["logits"] = everywhere.scatter(-1, rows.pop(":top"), rows["logits"])
    return rows


def largest_error(name: str, exact: Tensor, stored: Tensor) -> float:
    """Return the largest error that storage causes.

    Returns:
        KL at T = 1 of logits, in nats; of a layer, the difference relative to its maximum.

    Raises:
        UserError: if a value exceeds the range of float16.
    """
    if torch.equal(exact, stored):
        return 0.0
    if not stored.isfinite().all() and exact.isfinite().all():
        raise UserError(
            f"the teacher's {name} reach {exact.abs().max():.3g}, beyond the range of "
            "cache.dtype=float16: use cache.dtype=float32"
        )
    if name != "logits":
        return ((exact - stored).abs().max() / exact.abs().max()).item()
    return kl_divergence(exact, stored).max().item()


def report_error(name: str, error: float) -> None:
    """Log how much storing changes an output, if it does."""
    if error > 0 and name == "logits":
        log.info("stored logits differ from exact ones by at most KL = %.1e nats at T = 1", error)
    elif error > 0:
        log.info("stored %s differs by at most %.1e of its largest value", name, error)
