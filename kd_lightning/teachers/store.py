"""The store of trained teachers: each is trained once and found again.

The store is a folder with a run directory for each teacher, named by a key over everything
that determines its weights. A teacher is finished once its directory has figures, since they
are written last.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from shutil import copytree
from typing import Any

from filelock import FileLock, Timeout

from kd_lightning.utils.errors import UserError
from kd_lightning.utils.files import write_text
from kd_lightning.utils.run_directory import BEST, FACTS, METRICS

log = logging.getLogger(__name__)


def teacher_key(name: str, recipe: Mapping[str, Any]) -> str:
    """A readable name with a hash of everything that determines a teacher's weights."""
    text = json.dumps(recipe, sort_keys=True, default=str)
    return f"{name}-{hashlib.blake2b(text.encode(), digest_size=6).hexdigest()}"


class TeacherStore:
    """A folder of trained teachers, shared by runs, sweeps and processes.

    Args:
        root: the folder; it is made where it is missing.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)

    def find_or_train(self, key: str, train: Callable[[Path], Any]) -> Path:
        """The run directory of a teacher, trained if need be.

        Of several processes that ask at once, one trains and the others wait. If it dies, the
        next takes over in the same directory and resumes from the last checkpoint.

        Args:
            key: names the teacher.
            train: trains it in the given directory.

        Raises:
            UserError: if the store is not a folder or cannot be made, or a finished teacher
                has lost its checkpoint.
        """
        home = self.root / key
        if not _finished(home):
            self._make_root()
            with self._lock(key):
                if not _finished(home):
                    log.info("training the teacher %s", key)
                    train(home)
        if not (home / BEST).is_file():
            raise UserError(f"the teacher in {home} has lost its checkpoint: delete it to retrain")
        return home

    def publish(self, key: str, run_dir: Path) -> None:
        """Copy a finished run into the store as the teacher of that key, unless it has one."""
        home = self.root / key
        if home == run_dir or not (run_dir / "checkpoints").is_dir():
            return  # trained in place, or a trial run without checkpoints
        self._make_root()
        with self._lock(key):
            if not _finished(home):
                for folder in (".hydra", "checkpoints"):
                    copytree(run_dir / folder, home / folder, dirs_exist_ok=True)
                # the figures last: they say that the teacher is finished
                for name in (FACTS, METRICS):
                    write_text(home / name, (run_dir / name).read_text(encoding="utf-8"))

    def _make_root(self) -> None:
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"teacher_store={self.root} cannot be used: {error}") from error

    @contextmanager
    def _lock(self, key: str) -> Iterator[None]:
        lock = FileLock(self.root / f".{key}.lock")
        try:
            lock.acquire(timeout=0.1)
        except Timeout:
            log.info("another process is training the teacher %s: waiting", key)
            lock.acquire()
        try:
            yield
        finally:
            lock.release()


def _finished(home: Path) -> bool:
    return (home / METRICS).is_file()
