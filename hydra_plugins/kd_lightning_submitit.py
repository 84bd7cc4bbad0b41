"""Launchers of ``hydra/launcher=submitit_…``; Hydra takes plugins from this package alone."""

from collections.abc import Sequence

from hydra.core.utils import JobReturn

try:
    from hydra_plugins.hydra_submitit_launcher import submitit_launcher as plugin
except ModuleNotFoundError:  # the extra submitit is not installed
    pass
else:

    class SlurmLauncher(plugin.SlurmLauncher):
        """The plugin's launcher, which goes on when a job dies; see sweeps/submitit_jobs.py."""

        def launch(
            self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
        ) -> Sequence[JobReturn]:
            from kd_lightning.sweeps.submitit_jobs import surviving

            with surviving(self, job_overrides, initial_job_idx):
                return super().launch(job_overrides, initial_job_idx)

    class LocalLauncher(SlurmLauncher):
        """As processes of this machine."""

        _EXECUTOR = "local"
