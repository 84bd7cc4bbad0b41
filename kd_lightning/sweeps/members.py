"""The jobs that a launcher trains together, by run directory, for the command to find."""

from collections.abc import Callable
from typing import Any

from kd_lightning.runs.job import Finished

# Takes what is called with each finished run directory, and returns the job's figures; None if
# the job has to run by itself after all.
Member = Callable[[Finished], dict[str, Any] | None]

MEMBERS: dict[str, Member] = {}
