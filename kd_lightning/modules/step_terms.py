"""The terms of the training loss, from step to log entry without waiting for the device."""

from collections.abc import Mapping

import torch
from torch import Tensor


class StepTerms:
    """Means of the terms of the training loss between two log entries.

    The terms stay on the device until then, so that no step waits for it.

    Raises:
        FloatingPointError: from :meth:`flush`, where a term is not finite; it names the
            first such step and its terms.
    """

    def __init__(self) -> None:
        self.names: list[str] = []
        self.rows: list[list[Tensor]] = []

    def add(self, terms: Mapping[str, Tensor]) -> None:
        """Keep one step's terms, each a scalar."""
        self.names = list(terms)
        self.rows.append([term.detach() for term in terms.values()])

    def flush(self, last_step: int) -> dict[str, float]:
        """Mean of each term since the last call; ``last_step`` numbers the newest row."""
        if not self.rows:
            return {}
        kept = [term.float() for row in self.rows for term in row]
        table = torch.stack(kept).cpu().view(len(self.rows), -1)
        self.rows.clear()
        bad = (~table.isfinite().all(1)).nonzero()
        if len(bad):
            row = int(bad[0])
            pairs = zip(self.names, table[row].tolist(), strict=True)
            values = ", ".join(f"{name}={value:g}" for name, value in pairs)
            raise FloatingPointError(f"step {last_step - len(table) + 1 + row}: {values}")
        return dict(zip(self.names, table.mean(0).tolist(), strict=True))
