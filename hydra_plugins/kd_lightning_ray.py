"""The launcher of ``hydra/launcher=ray``; Hydra takes plugins from this package alone."""

from collections.abc import Sequence

from hydra.core.utils import JobReturn

try:
    from hydra_plugins.hydra_ray_launcher.ray_launcher import RayLauncher as PluginsLauncher
except ModuleNotFoundError:  # the extra ray is not installed
    pass
else:

    class RayLauncher(PluginsLauncher):
        """The plugin's launcher, which goes on when a worker dies; see sweeps/ray_jobs.py."""

        def launch(
            self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
        ) -> Sequence[JobReturn]:
            from kd_lightning.sweeps.ray_jobs import launch  # late: ray takes a second to import

            return launch(self, job_overrides, initial_job_idx)
