"""The Hydra callback that prepares directories, and ends a sweep with its table."""

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, read_write

from kd_lightning.cli.console import fail, print_line, print_next, print_table
from kd_lightning.cli.explain import explain
from kd_lightning.cli.outcome import fail_once, with_advice
from kd_lightning.report.sweep import sweep_table
from kd_lightning.runs.continued import SWEEP, begin_anew, is_resumed, mark_earlier, prepare_job
from kd_lightning.runs.directory import ERROR, LOCK, SWEEP_LOCK, lock
from kd_lightning.runs.legacy import facts_of_old_run
from kd_lightning.runs.ranks import ranks
from kd_lightning.utils.errors import UserError
from kd_lightning.utils.files import write_text

FINISHED: list[JobReturn] = []  # by the last job of a sweep in this process


@contextlib.contextmanager
def _ending_on_a_full_disk() -> Iterator[None]:
    """Exit if the disk is full: Hydra makes warnings of what its callbacks raise, and goes on."""
    try:
        yield
    except OSError as error:
        message = explain(error)
        if message is None:
            raise
        fail(with_advice(message, error))


class Launch(Callback):
    """Hydra callback that checks directories first and prints a sweep's table last."""

    # Checked before Hydra writes there, for an error of one line instead of a traceback.
    @_ending_on_a_full_disk()
    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        _share_run_dir(config)
        if not ranks().is_main:
            return
        _make_folder(config.hydra.run.dir)
        self._lock(config.hydra.run.dir)  # before Hydra writes its record there

    @_ending_on_a_full_disk()
    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        if place := ranks().place:
            fail_once(
                f"{place.starter} has started {place.size} processes, and a sweep starts those of "
                f"its jobs itself: leave out {place.starter}, and set trainer.devices="
            )
        folder = Path(config.hydra.sweep.dir)
        _make_folder(str(folder))
        self._lock(str(folder), SWEEP_LOCK)
        if not is_resumed(config):
            mark_earlier(folder)
        # Not every sweeper writes this record.
        write_text(folder / SWEEP, OmegaConf.to_yaml(config))

    @_ending_on_a_full_disk()
    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        if not ranks().is_main:
            _log_warnings_only()
        elif config.hydra.mode is RunMode.MULTIRUN:
            run_dir = Path(config.hydra.runtime.output_dir)
            self._lock(str(run_dir))
            if is_resumed(config):
                prepare_job(run_dir, config)
            elif not ranks().restarts:
                # Of an earlier sweep: a job that fails must not show its figures.
                begin_anew(run_dir)

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        # A launcher keeps what every job returns until the last one ends, and sweepers need the
        # value only; the two configurations take 0.4 MB. Those of this job are dropped with the
        # next one's end, because other callbacks may still want them.
        for finished in FINISHED:
            finished.cfg = finished.hydra_cfg = None
        FINISHED[:] = [job_return]

    def _lock(self, run_dir: str, name: str = LOCK) -> None:
        try:
            lock(Path(run_dir), name)
        except UserError as error:
            fail(error)

    @_ending_on_a_full_disk()
    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Print and write the table of the sweep; exit with code 1 if a job failed."""
        folder = Path(config.hydra.sweep.dir)
        table = sweep_table(folder, convert=facts_of_old_run)
        print_table(table)
        table.write(folder)
        print_next(folder)
        # Without figures, or with those that the job had before it failed.
        failed = [row[0] for row in table.rows if row[0] in table.failed or _error(folder, row[0])]
        for job in failed:
            reason = _error(folder, job) or "see its train.log"
            print_line(f"job {job} failed: {reason}")
        if failed:
            fail(f"{len(failed)} of {len(table.rows)} jobs failed; see above")


def _share_run_dir(config: DictConfig) -> None:
    """Let all processes of a run use the directory of the first one, which alone writes there."""
    try:
        shared = ranks().agree("run_dir", Path(config.hydra.run.dir).resolve())
    except UserError as error:  # said by each process, as they do not find one another
        fail(error)
    if ranks().are_external:
        with read_write(config.hydra):
            config.hydra.run.dir = shared
            if not ranks().is_main:
                config.hydra.output_subdir = None


def _log_warnings_only() -> None:
    """Leave the log to the first process of a run."""
    root = logging.getLogger()
    root.setLevel(logging.WARNING)
    for handler in [h for h in root.handlers if isinstance(h, logging.FileHandler)]:
        root.removeHandler(handler)
        handler.close()


def _error(folder: Path, job: str) -> str:
    """Why a job of a sweep failed; empty if it did not, or left no message."""
    file = folder / job / ERROR
    return file.read_text(encoding="utf-8").strip() if file.is_file() else ""


def _make_folder(path: str) -> None:
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
        if not os.access(path, os.W_OK):
            raise PermissionError(f"no permission to write in {path}")
    except OSError as error:
        if explain(error) is not None:  # a full disk, for which there is advice
            raise
        fail(f"the run directory cannot be written ({error}); see hydra.run.dir=")
