"""``kd-benchmark RUNS…``: measure networks and their exported files on this machine's CPU.

Each run and its teacher are measured as they are in torch, and as files of each format in fp32
and int8, all on one thread and in the same rounds. Files that are missing are exported first.
The figures are in exported/benchmark.json of each run, where kd-report finds them.
"""

import argparse
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kd_lightning.cli.console import fail, print_line, print_path, print_table
from kd_lightning.cli.quiet import quieten
from kd_lightning.report.table import Column, Table, percents
from kd_lightning.utils.errors import UserError
from kd_lightning.utils.run_directory import BENCHMARK

if TYPE_CHECKING:
    from kd_lightning.runs.benchmark import Entry, Network

COLUMNS = (
    Column("network", kind="name"),
    Column("format", kind="name"),
    Column("size\nMB"),
    Column("test\n%"),
    Column("ms at batch 1\np50 (p90)"),
    Column("images/s\nat batch 64"),
    Column("status", kind="name"),
)
MOST_NAMED = 3  # networks in a sentence; of more it says how many


def main() -> None:
    """Entry point of ``kd-benchmark``."""
    arguments = _parser().parse_args()
    quieten()
    try:
        _benchmark(arguments.runs, arguments.trust)
    except UserError as error:
        fail(error)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="kd-benchmark", description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+", help="run directories and sweep directories")
    parser.add_argument(
        "--trust", action="store_true", help="run the code that the runs name, such as a network"
    )
    return parser


def _benchmark(folders: Sequence[Path], trust: bool) -> None:
    from kd_lightning.compress.benchmark import cpu  # imported late: torch is slow to import
    from kd_lightning.runs.benchmark import benchmark

    networks = benchmark(folders, trust=trust, note=print_line)
    print_table(benchmark_table(networks))
    for line in sentences(networks):
        print_line(line)
    described = cpu()
    flags = f" ({' '.join(described['flags'])})" if described["flags"] else ""
    print_line(f"on one thread of {described['model']}{flags}", style="dim")
    given = [network.path for network in networks if network.is_recorded]
    if len(given) == 1:
        print_path("benchmark", given[0] / BENCHMARK)
    else:
        print_line(f"benchmarks: {BENCHMARK} in each of the {len(given)} runs")


def benchmark_table(networks: "Sequence[Network]") -> Table:
    """Create the table of a benchmark, with a row for each network and file."""
    names = _names(networks)
    rows = [
        [name, f"{entry.format} {_precision(entry)}", *_cells(entry)]
        for network, name in zip(networks, names, strict=True)
        for entry in network.entries
    ]
    return Table([*COLUMNS], rows)


def sentences(networks: "Sequence[Network]") -> list[str]:
    """Compare the latency of int8 and fp32 in each format, of the networks that have both."""
    ratios: dict[str, dict[str, float]] = {}
    for network, name in zip(networks, _names(networks), strict=True):
        at_one = {(e.format, e.int8): e.latency[1].p50 for e in network.entries if 1 in e.latency}
        for (form, int8), taken in at_one.items():
            if int8 and (form, False) in at_one:
                ratios.setdefault(form, {})[name] = taken / at_one[form, False]
    return [line for form, found in ratios.items() for line in _compared(form, found)]


def _compared(form: str, ratios: dict[str, float]) -> Iterator[str]:
    """Say where int8 is slower, where it makes no difference, and where it is faster."""
    # By what is shown: medians of one network differ by one or two percent from run to run.
    same = [name for name, ratio in ratios.items() if f"{ratio:.1f}" == "1.0"]
    slower = {name: r for name, r in ratios.items() if r > 1 and name not in same}
    faster = {name: r for name, r in ratios.items() if r < 1 and name not in same}
    if slower:
        times = _range(f"{ratio:.1f}" for ratio in slower.values())
        yield (
            f"{form}, {_who(slower)}: int8 is slower than fp32 here: one image takes {times} "
            "times as long."
        )
    if same:
        yield f"{form}, {_who(same)}: one image takes as long in int8 as in fp32."
    if faster:
        share = _range(f"{ratio:.2f}" for ratio in faster.values())
        yield f"{form}, {_who(faster)}: one image in int8 takes {share} of the time of fp32."


def _who(names: Collection[str]) -> str:
    return ", ".join(names) if len(names) <= MOST_NAMED else f"{len(names)} networks"


def _range(shown: Iterable[str]) -> str:
    ends = sorted(shown, key=float)
    return ends[0] if ends[0] == ends[-1] else f"{ends[0]}–{ends[-1]}"


def _cells(entry: "Entry") -> list[str]:
    one, many = entry.latency.get(1), entry.latency.get(64)
    return [
        f"{entry.bytes / 1e6:.3g}" if entry.bytes is not None else "",
        percents(entry.accuracy) if entry.accuracy is not None else "",
        f"{one.p50:.3g} ({one.p90:.3g})" if one else "",
        f"{64e3 / many.p50:,.0f}" if many else "",
        entry.status,
    ]


def _precision(entry: "Entry") -> str:
    return "int8" if entry.int8 else "fp32"


def _names(networks: "Sequence[Network]") -> list[str]:
    """Return a name of each network: its role and its folder, or the path if folders repeat."""
    short = [network.path.name for network in networks]
    return [
        f"{network.role} {network.path if short.count(name) > 1 else name}"
        for network, name in zip(networks, short, strict=True)
    ]


if __name__ == "__main__":
    main()
