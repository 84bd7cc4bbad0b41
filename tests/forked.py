"""Runs many commands, each in a forked process of its own, without importing torch for each.

python tests/forked.py COMMANDS.json OUTCOMES.json

The first file maps a name to ``{"arguments": […], "environment": {…}, "cwd": "…"}``, the second
one to ``{"code": …, "stdout": …, "stderr": …}``. Two commands run at a time.
"""

import json
import os
import signal
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import lightning  # noqa: F401 - what every command needs, imported once for all
import torch
import torch.utils.tensorboard
import torchmetrics  # noqa: F401

from kd_lightning.cli import train
from kd_lightning.runs import job  # noqa: F401

LIMIT = 60  # seconds until a command that hangs is killed


def run(command: dict[str, Any]) -> dict[str, Any]:
    """Run one command in a forked process and return its exit code and output."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        child = os.fork()
        if child == 0:
            os.dup2(out.fileno(), 1)
            os.dup2(err.fileno(), 2)
            execute(command)
        _, status = os.waitpid(child, 0)
        out.seek(0)
        err.seek(0)
        code = os.waitstatus_to_exitcode(status)
        return {"code": code, "stdout": out.read(), "stderr": err.read()}


def execute(command: dict[str, Any]) -> None:
    """Be the command; does not return."""
    signal.alarm(LIMIT)
    os.environ.update(command.get("environment", {}))
    os.chdir(command["cwd"])
    sys.argv = ["train.py", *command["arguments"]]
    code: Any = 0
    try:
        train.main()
    except SystemExit as stop:
        code = stop.code
        if isinstance(code, str):
            print(code, file=sys.stderr)
            code = 1
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code or 0)


if __name__ == "__main__":
    torch.set_num_threads(1)
    commands = json.loads(Path(sys.argv[1]).read_text())
    with ThreadPoolExecutor(2) as pool:
        outcomes = dict(zip(commands, pool.map(run, commands.values()), strict=True))
    Path(sys.argv[2]).write_text(json.dumps(outcomes))
