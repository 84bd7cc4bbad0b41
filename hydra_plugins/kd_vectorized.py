"""Where Hydra looks for launchers: ``hydra/launcher=vectorized``.

Hydra imports this module at every start, so it imports nothing else before it is used.
"""

from collections.abc import Sequence
from typing import Any

from hydra.plugins.launcher import Launcher


class VectorizedLauncher(Launcher):
    """Trains the jobs of a sweep together; see :mod:`kd_lightning.sweeps.launcher`.

    Args:
        mode: ``auto`` times both ways and takes the faster; ``always`` does not.
    """

    def __init__(self, mode: str = "auto") -> None:
        self.mode = mode
        self.sweep: Any = None

    def setup(self, *, hydra_context: Any, task_function: Any, config: Any) -> None:
        """Take over what Hydra knows of the sweep."""
        from kd_lightning.sweeps.launcher import VectorizedSweep

        self.sweep = VectorizedSweep(self.mode, hydra_context, task_function, config)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[Any]:
        """Run the jobs."""
        return self.sweep.launch(job_overrides, initial_job_idx)
