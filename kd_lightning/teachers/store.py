"""Store of trained teachers, so that each teacher is trained once.

The store is a folder with one run directory per teacher, named by a hash of everything that
determines its weights. A teacher is finished if its directory has ``metrics.json``, which is
written last.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from shutil import copyfileobj
from typing import Any

from filelock import FileLock, Timeout

from kd_lightning.utils.errors import UserError
from kd_lightning.utils.files import write_atomically, write_text
from kd_lightning.utils.run_directory import BEST, FACTS, METRICS, remove_leftovers

log = logging.getLogger(__name__)


def teacher_key(name: str, recipe: Mapping[str, Any]) -> str:
    """Return a readable name with a hash of everything that determines a teacher's weights."""
    # Sorted, so the order of a configuration's entries does not change the key.
    text = json.dumps(recipe, sort_keys=True, default=str)
    return f"{name}-{hashlib.blake2b(text.encode(), digest_size=6).hexdigest()}"


class TeacherStore:
    """Folder of trained teachers, shared by runs, sweeps and processes.

    Args:
        root: the folder; created if missing.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)

    def find_or_train(self, key: str, train: Callable[[Path], Any]) -> Path:
        """Return the run directory of a teacher, training it if it is missing.

        If several processes need the same teacher at once, one trains it and the others wait.
        If that process dies, the next one resumes from the last checkpoint.

        Args:
            key: key of the teacher.
            train: trains the teacher in the given directory.

        Raises:
            UserError: if the store cannot be created, or a finished teacher has lost its
                checkpoint.
        """
        home = self.root / key
        if not _finished(home):
            self._make_root()
            with self._lock(key):
                if not _finished(home):  # another process may have finished it meanwhile
                    log.info("Training the teacher in %s", home)
                    train(home)
        if not (home / BEST).is_file():
            raise UserError(
                f"the teacher in {home} has lost its checkpoint: delete the folder to retrain it"
            )
        return home

    def home(self, key: str) -> Path | None:
        """Return the folder of a finished teacher; None if there is none yet."""
        return self.root / key if _finished(self.root / key) else None

    def publish(self, key: str, run_dir: Path) -> None:
        """Copy a finished run into the store under a key, unless the key exists."""
        home = self.root / key
        if home == run_dir or not (run_dir / BEST).is_file():
            return  # trained in the store itself, or a trial run without checkpoints
        self._make_root()
        with self._lock(key):
            if not _finished(home):
                # Not last.ckpt: a job that finds it without metrics.json, as this process was
                # killed, would resume a training that has no epochs left.
                for file in (*(run_dir / ".hydra").glob("[!.]*"), run_dir / BEST):
                    with file.open("rb") as source:
                        target = home / file.relative_to(run_dir)
                        write_atomically(target, partial(copyfileobj, source))
                # metrics.json last: its presence marks the teacher as finished
                for name in (FACTS, METRICS):
                    write_text(home / name, (run_dir / name).read_text(encoding="utf-8"))

    def _make_root(self) -> None:
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"teacher_store={self.root} cannot be used: {error}") from error

    @contextmanager
    def _lock(self, key: str) -> Iterator[None]:
        # A file lock, which the system releases when its process dies, so no stale lock can
        # block the store. One per key: different teachers train at the same time.
        lock = FileLock(self.root / f".{key}.lock")
        try:
            lock.acquire(timeout=0.1)
        except Timeout:
            log.info("Waiting for another process that trains the teacher in %s", self.root / key)
            lock.acquire()
        try:
            remove_leftovers(self.root / key)
            yield
        finally:
            lock.release()


def _finished(home: Path) -> bool:
    return (home / METRICS).is_file()
