"""A user's method in a folder of his own, which kills its process once if it is told to."""

from pathlib import Path

CODE = """
import os
import signal
from pathlib import Path

from kd_lightning.losses.response import soft_targets

HERE = Path(__file__).parent


def deadly(z_s, z_t, temperature):
    rank = os.environ.get("LOCAL_RANK", "0")
    (HERE / f"called-{rank}").touch()
    trigger = HERE / "trigger"
    if rank == "0" and len(z_s) > 2 and trigger.exists():  # not in the rehearsal
        trigger.unlink()
        os.kill(os.getpid(), signal.SIGKILL)
    return soft_targets(z_s, z_t, temperature)
"""

METHOD = "defaults:\n  - kd\n  - _self_\nresponse:\n  _target_: deadly_method.deadly\n"


def write(folder: Path) -> Path:
    """Write the method ``deadly`` into a folder for ``--config-dir``, and set the trap."""
    (folder / "method").mkdir(parents=True)
    (folder / "deadly_method.py").write_text(CODE)
    (folder / "method" / "deadly.yaml").write_text(METHOD)
    (folder / "trigger").touch()
    return folder
