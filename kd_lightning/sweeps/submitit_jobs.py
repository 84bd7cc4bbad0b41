"""Jobs of a sweep as jobs of submitit, on Slurm or as processes of this machine."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import submitit
from submitit.core.utils import FailedJobError, UncompletedJobError

from kd_lightning.sweeps.lost import composed, lost


@contextmanager
def surviving(
    launcher: Any, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
) -> Iterator[None]:
    """Let the plugin, which asks for the results in turn, go on if a job has none.

    Args:
        launcher: an instance of the plugin's launcher.
        job_overrides: those of each job.
        initial_job_idx: the number of the first job.
    """
    jobs, results = iter(enumerate(job_overrides, initial_job_idx)), submitit.Job.results
    is_inside = False

    def results_or_loss(job: Any) -> list[Any]:
        nonlocal is_inside
        if is_inside:  # one of several tasks of a job, which submitit asks in turn
            return results(job)
        number, overrides = next(jobs)
        is_inside = True
        try:
            return results(job)
        except (UncompletedJobError, FailedJobError):
            reason = f"{job.state}, see {job.paths.stderr}"
            return [lost(composed(launcher, overrides, number), reason)]
        finally:
            is_inside = False

    with patch.object(submitit.Job, "results", results_or_loss):
        yield
