"""Running means of the loss terms between two log entries."""

from collections.abc import Mapping

import torch
from torch import Tensor


class StepTerms:
    """Running means of the loss terms between two log entries.

    Terms stay on the device until they are logged, so steps do not synchronise with it.

    Raises:
        FloatingPointError: by :meth:`flush`, if a term is not finite; the message has the
            first such step and its terms.
    """

    def __init__(self) -> None:
        self.names: list[str] = []
        self.rows: list[list[Tensor]] = []

    def add(self, terms: Mapping[str, Tensor]) -> None:
        """Append the terms of one step, each a scalar."""
        self.names = list(terms)
        self.rows.append([term.detach() for term in terms.values()])

    def flush(self, last_step: int) -> dict[str, float]:
        """Return the mean of each term since the last call.

        Args:
            last_step: number of the most recent step.
        """
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
