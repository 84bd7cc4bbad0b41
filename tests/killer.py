"""Kills a running command, for tests of what is left afterwards."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable

from conftest import ROOT


class Killer:
    """Starts the command and kills it and its children as soon as ``when()`` is true."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.environment = {**environment, "PYTHONPATH": str(ROOT / "tests")}

    def __call__(self, *arguments: str, when: Callable[[], bool]) -> None:
        command = [sys.executable, str(ROOT / "train.py"), *arguments]
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        while process.poll() is None and not when():
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)
        _, stderr = process.communicate()
        assert process.returncode == -signal.SIGKILL, stderr
