"""Processes that compute a teacher's outputs together, each a share of the batches.

All functions are collective: every process of the run calls them, with the same names.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

AT_ONCE = 2**26  # bytes of a table that are exchanged at a time


def share() -> tuple[int, int]:
    """Return the rank of this process and the number of processes."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def gathered(value: Any) -> list[Any]:
    """Return the values of all processes, by rank."""
    found: list[Any] = [None] * share()[1]
    dist.all_gather_object(found, value)
    return found


def add_up(tables: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Return the sum of all processes' tables, which are zero where another one has computed.

    Args:
        tables: V×N×… each, on the CPU; a process without a batch has none.
        device: device of the training, whose backend exchanges them.
    """
    # Exact: 0 is added to each number, and only to a negative zero makes that a difference.
    described = {k: (v.shape, v.dtype) for k, v in tables.items()}
    for other in gathered(described):
        for name, (shape, dtype) in other.items():
            if name not in tables:
                tables[name] = torch.zeros(shape, dtype=dtype)
    for name in sorted(tables):
        flat = tables[name].view(-1)
        for part in flat.split(max(1, AT_ONCE // flat.element_size())):
            moved = part.to(device)
            dist.all_reduce(moved)
            part.copy_(moved)
    return tables
