"""``kd-report DIR``: print the table of a sweep, or of a run, again."""

import argparse
import sys
from pathlib import Path

from kd_lightning.report.run import print_run
from kd_lightning.report.sweep import sweep_table


def main() -> None:
    """Entry point of ``kd-report``."""
    parser = argparse.ArgumentParser(prog="kd-report", description=__doc__)
    parser.add_argument("directory", type=Path, help="a sweep's directory or a run's")
    folder = parser.parse_args().directory
    if (folder / "metrics.json").is_file():
        return print_run(folder)
    table = sweep_table(folder)
    if not table.rows:
        sys.exit(f"error: {folder} is neither a finished run nor a sweep")
    table.print()
