"""``kd-report RUNS…``: did distillation help, as far as these runs can tell?

Of one run, or of a sweep that ran each setting once, it prints the table that stood at its
end. Where seeds were repeated, or several directories are given, runs that differ only in
their seed make a group, and each group is compared with its control: labels alone, unless
--control names another.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from kd_lightning.cli.console import console, print_run
from kd_lightning.report.chain import names_of, print_chain
from kd_lightning.report.groups import group_runs
from kd_lightning.report.read import Run, is_run, read_runs
from kd_lightning.report.sweep import sweep_table
from kd_lightning.utils.errors import UserError


def main() -> None:
    """Entry point of ``kd-report``."""
    arguments = _parser().parse_args()
    try:
        _report(arguments.runs, arguments.out, arguments.control)
    except UserError as error:
        sys.exit(f"error: {error}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="kd-report", description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+", help="directories of runs and of sweeps")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="write report.html (one page, whole in itself), report.md, report.csv and "
        "pictures/ there; without it nothing is written",
    )
    parser.add_argument(
        "--control",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="compare with this group, as in method=kd; may be given several times",
    )
    return parser


def _report(folders: Sequence[Path], out: Path | None, control: Sequence[str]) -> None:
    runs = read_runs(folders)
    if len(folders) > 1 or control or group_runs(runs).have_repeated_seeds:
        _print_comparison(runs, control)
    elif is_run(folders[0]) and runs[0].metrics:
        (print_chain if names_of(runs[0]) else print_run)(folders[0])
    elif is_run(folders[0]):
        print(f"unfinished: {folders[0]}")
    else:
        has_ended = (folders[0] / "sweep.csv").is_file()  # which is written last
        sweep_table(folders[0], has_ended).print()
    if out:
        _write(runs, control, out)


def _print_comparison(runs: Sequence[Run], control: Sequence[str]) -> None:
    from kd_lightning.report.answer import headline  # late: what numbers need is slow
    from kd_lightning.report.causes import causes
    from kd_lightning.report.compare import build_report
    from kd_lightning.report.table import main_table, print_table
    from kd_lightning.report.words import METHOD, notes

    report = build_report(runs, control)
    _say(headline(report))
    for line in causes(report):
        _say(line, style="none")
    if report.rows:
        print_table(main_table(report))
    for line in (METHOD, *notes(report)):
        _say(line, style="dim")


def _say(line: str, style: str = "bold") -> None:
    console().print(line, markup=False, highlight=False, style=style)


def _write(runs: Sequence[Run], control: Sequence[str], out: Path) -> None:
    from kd_lightning.report.compare import build_report
    from kd_lightning.report.page import write_report

    write_report(build_report(runs, control), out)
    console().print(f"report: {out / 'report.html'}", soft_wrap=True, highlight=False, markup=False)
