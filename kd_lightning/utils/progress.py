"""Progress of long computations outside of training."""

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import Progress

log = logging.getLogger(__name__)

PAUSE = 10.0  # seconds between two lines of progress


@contextmanager
def progress(message: str, total: int) -> Iterator[Callable[[int], None]]:
    """Log the start of a computation and show its progress.

    On a terminal the progress is a bar, otherwise a line in ten seconds.

    Args:
        message: what is computed, as in "Decoding 5,000 images".
        total: number of steps.

    Yields:
        A function to be called with the number of steps done since the last call.
    """
    log.info(message)
    if sys.stdout.isatty():
        with Progress(transient=True) as bar:
            task = bar.add_task("", total=total)
            yield lambda steps: bar.advance(task, steps)
    else:
        yield _Lines(total).advance


class _Lines:
    def __init__(self, total: int) -> None:
        self.total, self.done, self.said = total, 0, time.monotonic()

    def advance(self, steps: int) -> None:
        self.done += steps
        if time.monotonic() > self.said + PAUSE:
            log.info("%s of %s", f"{self.done:,}", f"{self.total:,}")
            self.said = time.monotonic()
