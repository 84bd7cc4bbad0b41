"""``kd-report RUNS…``: test whether distillation helped in the given runs.

For a single run, or a sweep with one run per setting, the command prints the table that was
printed at the end of training. With repeated seeds or several directories, runs that differ
only in their seed form a group, and each group is compared with its baseline: students
trained on labels alone, unless --baseline names another group.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kd_lightning.cli.console import (
    fail,
    print_chain,
    print_line,
    print_path,
    print_run,
    print_table,
)
from kd_lightning.report.groups import group_runs
from kd_lightning.report.read import read_runs
from kd_lightning.report.sweep import sweep_table
from kd_lightning.utils.errors import UserError
from kd_lightning.utils.run_directory import RunDirectory, is_run


def main() -> None:
    """Entry point of ``kd-report``."""
    arguments = _parser().parse_args()
    try:
        _report(arguments.runs, arguments.out, arguments.baseline)
    except UserError as error:
        fail(error)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="kd-report", description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+", help="run directories and sweep directories")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="write report.html (a self-contained page), report.md, report.csv and plots/ to "
        "this directory; nothing is written by default",
    )
    parser.add_argument(
        "--baseline",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="compare with this group, such as method=kd; repeat to narrow the choice",
    )
    return parser


def _report(folders: Sequence[Path], out: Path | None, baseline: Sequence[str]) -> None:
    runs = read_runs(folders, _facts_of_old_run)
    if len(folders) > 1 or baseline or group_runs(runs).have_repeated_seeds:
        _print_comparison(runs, baseline)
    elif not is_run(folders[0]):
        has_ended = (folders[0] / "sweep.csv").is_file()  # written at the end of a sweep
        print_table(sweep_table(folders[0], has_ended, _facts_of_old_run))
    elif runs[0].is_finished:
        print_one = print_chain if runs[0].facts["links"] else print_run
        print_one(folders[0], _facts_of_old_run)
    else:
        print_path("unfinished", folders[0])
    if out:
        _write(runs, baseline, out)


def _facts_of_old_run(path: Path) -> dict[str, Any]:
    from kd_lightning.runs.legacy import facts_of_old_run  # imported late: it needs Hydra

    return facts_of_old_run(path)


def _print_comparison(runs: Sequence[RunDirectory], baseline: Sequence[str]) -> None:
    from kd_lightning.report.compare import build_report  # imported late: SciPy is slow to import
    from kd_lightning.report.tables import main_table
    from kd_lightning.report.verdicts import METHOD, controls, headline, notes

    report = build_report(runs, baseline)
    print_line(headline(report), style="bold")
    for line in controls(report):
        print_line(line)
    if report.rows:
        print_table(main_table(report))
    for line in (METHOD, *notes(report)):
        print_line(line, style="dim")


def _write(runs: Sequence[RunDirectory], baseline: Sequence[str], out: Path) -> None:
    from kd_lightning.report.compare import build_report
    from kd_lightning.report.page import write_report  # imported late: Matplotlib is slow, too

    write_report(build_report(runs, baseline), out)
    print_path("report", out / "report.html")


if __name__ == "__main__":
    main()
