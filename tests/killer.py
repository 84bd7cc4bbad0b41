"""Ends a running command by a signal, for tests of what it says and leaves."""

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
        code, stderr = self.send(signal.SIGKILL, *arguments, when=when)
        assert code == -signal.SIGKILL, stderr

    def send(
        self, number: signal.Signals, *arguments: str, when: Callable[[], bool]
    ) -> tuple[int, str]:
        """Send another signal instead, and return the exit code and stderr."""
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "train.py"), *arguments],
            cwd=ROOT,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            # Not ignored, as it is below a shell that runs the tests in the background.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        while process.poll() is None and not when():
            time.sleep(0.01)
        # As a terminal does, to the children, too.
        os.killpg(process.pid, number)
        _, stderr = process.communicate(timeout=120)
        return process.returncode, stderr
