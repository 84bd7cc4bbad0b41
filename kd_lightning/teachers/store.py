"""Teachers: found in a store, trained there once.

The store is a folder with one run directory a teacher, named by a key over everything
that determines the weights. A directory counts as finished once it has its metrics.
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

log = logging.getLogger(__name__)


def teacher_key(name: str, recipe: Mapping[str, Any]) -> str:
    """A readable name and a hash of everything that determines a teacher's weights."""
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
        """The run directory of a teacher; ``train`` fills it where it is not finished.

        Of several processes that ask at once, one trains and the others wait. If that
        one dies, the next takes over in the same directory, where it finds what is left.

        Raises:
            UserError: if the store is no folder, or cannot be made.
        """
        home = self.root / key
        if not _finished(home):
            self._make_root()
            with self._lock(key):
                if not _finished(home):
                    log.info("training the teacher %s", key)
                    train(home)
        return home

    def publish(self, key: str, run_dir: Path) -> None:
        """Offer a finished run as the teacher of that key, unless there is one."""
        home = self.root / key
        if home == run_dir or not (run_dir / "checkpoints").is_dir():
            return  # trained right here, or a trial run that kept nothing
        self._make_root()
        with self._lock(key):
            if not _finished(home):
                copytree(run_dir / ".hydra", home / ".hydra", dirs_exist_ok=True)
                copytree(run_dir / "checkpoints", home / "checkpoints", dirs_exist_ok=True)
                partial = home / ".metrics.json"
                partial.write_bytes((run_dir / "metrics.json").read_bytes())
                partial.replace(home / "metrics.json")

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
            log.info("another process trains the teacher %s: waiting for it", key)
            lock.acquire()
        try:
            yield
        finally:
            lock.release()


def _finished(home: Path) -> bool:
    return (home / "metrics.json").is_file()
