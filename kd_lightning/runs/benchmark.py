"""Benchmarks of finished runs: their networks, and the files that are exported from them."""

import json
import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from torch import nn

from kd_lightning.compress.benchmark import (
    ROUNDS,
    THREADS,
    Competitor,
    Latency,
    cpu,
    eager,
    measure,
)
from kd_lightning.compress.fake_quantize import bits_of, is_quantized, plain_copy
from kd_lightning.compress.formats import FORMATS, Format
from kd_lightning.runs.export import INT8, export, exported_file, file_name
from kd_lightning.runs.load import Run, load_run
from kd_lightning.utils.errors import UserError
from kd_lightning.utils.files import write_text
from kd_lightning.utils.run_directory import (
    BENCHMARK,
    EXPORTED,
    find_runs,
    finite,
    is_run,
    read_run,
)
from kd_lightning.utils.text import one_line

OK, FAILED = "ok", "failed: "  # how a status begins
EAGER = "torch"  # format of the network itself


@dataclass(frozen=True)
class Entry:
    """Row of a benchmark.

    Attributes:
        format: ``torch`` for the network itself, or one of the formats of exported files.
        int8: whether it computes in int8.
        file: name of the file; empty for the network itself.
        status: ``ok``, or ``failed: `` and the reason in one line.
        bytes: size of the file; of the network, memory of parameters and buffers.
        accuracy: on the test images; None if unknown.
        latency: by size of the batch; empty if it failed.
    """

    format: str
    int8: bool = False
    file: str = ""
    status: str = OK
    bytes: int | None = None
    accuracy: float | None = None
    latency: dict[int, Latency] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Network:
    """Trained network with its row for each format.

    Attributes:
        path: its run directory.
        role: ``student``, ``teacher``, ``baseline`` …
        entries: the rows.
        teacher: directory of its teacher, if that is among the measured networks.
        is_recorded: whether its directory gets the record, rather than that of its students.
    """

    path: Path
    role: str
    entries: list[Entry]
    teacher: Path | None = None
    is_recorded: bool = False


def benchmark(
    folders: Sequence[Path], *, trust: bool = False, note: Callable[[str], object] = lambda _: None
) -> list[Network]:
    """Measure finished runs and their teachers, and write ``exported/benchmark.json``.

    Files that are missing are exported first. What cannot be exported or run becomes an entry
    with the reason. Everything is measured in the same rounds; the record of a run contains the
    entries of its teacher.

    Args:
        folders: run directories, sweep directories, or both.
        trust: run the code that the runs name, such as their networks.
        note: called with a sentence before each step that takes time.

    Returns:
        The runs, and then their teachers.

    Raises:
        UserError: if a run is not finished, cannot be loaded, or cannot be written to.
    """
    runs = {path.resolve(): load_run(path, trust=trust) for path in _paths(folders)}
    teachers = {path: teacher for path, run in runs.items() if (teacher := _teacher(run))}
    networks: dict[Path, Network] = {}
    competitors: dict[tuple[Path, int], Competitor] = {}
    for path in dict.fromkeys([*runs, *teachers.values()]):
        run = runs.get(path) or _loaded(path, trust)
        if isinstance(run, Run):
            entries, own = _prepare(run, trust, note)
            role = str(run.facts.get("role") or "run")
            networks[path] = Network(run.path, role, entries, teachers.get(path), path in runs)
            competitors |= {(path, row): competitor for row, competitor in own.items()}
        else:
            networks[path] = Network(path, "teacher", [Entry(EAGER, status=run)])
    note(f"Measuring {len(competitors)} networks and files in {ROUNDS} rounds")
    for (path, row), found in measure(competitors).items():
        entries = networks[path].entries
        status = f"{FAILED}{found.failure}" if found.failure else OK
        entries[row] = replace(entries[row], status=status, latency=found.latency)
    facts = _facts()
    for network in networks.values():
        if network.is_recorded:
            _write(network, networks[network.teacher] if network.teacher else None, facts)
    return [*networks.values()]


def _paths(folders: Sequence[Path]) -> list[Path]:
    """Return the directories of runs that are finished and can be written to."""
    found = []
    for path in find_runs(folders):
        run = read_run(path, convert=lambda _: {})
        if run.same_as:  # another job of the sweep has the network
            continue
        if not run.is_finished:
            raise UserError(f"{path} is not finished: resume={path} goes on with it")
        # Checked first, since the measuring takes time.
        try:
            (path / EXPORTED).mkdir(exist_ok=True)
        except OSError as error:
            raise UserError(f"{path / EXPORTED} cannot be created: {error.strerror}") from error
        if not os.access(path / EXPORTED, os.W_OK):
            raise UserError(f"{path / EXPORTED} cannot be written to: change its permissions")
        found.append(path)
    return found


def _teacher(run: Run) -> Path | None:
    """Return the directory of a run's teacher if it still exists."""
    named = run.facts.get("teacher")
    try:
        path = Path(named).resolve() if isinstance(named, str) and named else None
        return path if path and path.is_dir() and is_run(path) else None
    except (OSError, ValueError):  # not a path, such as several with commas between them
        return None


def _loaded(path: Path, trust: bool) -> Run | str:
    """Load a teacher, or return its status: without it, its students can still be measured."""
    try:
        return load_run(path, trust=trust)
    except UserError as error:
        return f"{FAILED}{one_line(error)}"


def _prepare(
    run: Run, trust: bool, note: Callable[[str], object]
) -> tuple[list[Entry], dict[int, Competitor]]:
    """Return the entries of a run, not measured yet, and what to measure by their numbers."""
    shape = run.spec.input_shape
    # Of a quantised run without the rounding of activations, which simulates integers at some
    # cost; its accuracy is that of the same network in another format.
    network = plain_copy(run.network)[0]
    accuracy = run.number("test/accuracy") if not is_quantized(run.network) else None
    entries = [Entry(EAGER, bytes=_memory(network), accuracy=accuracy)]
    competitors = {0: Competitor(eager(network, run.spec), shape)}
    for form, described in FORMATS.items():
        for int8 in _variants(run, described):
            name = file_name(form, int8)
            entry = Entry(form, int8, name)
            try:
                # Also where a file might be a stranger's that runs code when it is loaded.
                if not (run.path / EXPORTED / name).is_file() or not (described.is_plain or trust):
                    note(f"Exporting {run.path / EXPORTED / name}")
                    export(run, form, int8=int8, trust=trust)
                file, record = exported_file(run.path, name)
                size, accuracy = file.stat().st_size, finite(record.get("accuracy"))
                entry = replace(entry, bytes=size, accuracy=accuracy)
                if not int8 and entries[0].accuracy is None:
                    exact = finite(record.get("checkpoint_accuracy"))
                    entries[0] = replace(entries[0], accuracy=exact)
                if record.get("passed") is not True:
                    raise UserError(f"it does not answer as its checkpoint does: see {EXPORTED}/")
                runtime = described.load(file)
            except Exception as error:  # of any type: it comes from the network or a runtime
                entry = replace(entry, status=f"{FAILED}{one_line(error) or type(error).__name__}")
            else:
                competitors[len(entries)] = Competitor(runtime, shape, described.batches)
            entries.append(entry)
    return entries, competitors


def _variants(run: Run, form: Format) -> list[bool]:
    """Return whether a format has int8 files of a run, beside those in floating point."""
    is_simulated = is_quantized(run.network) and bits_of(run.network) != INT8
    return [False, True] if form.takes_int8 and not is_simulated else [False]


def _memory(network: nn.Module) -> int:
    return sum(value.numel() * value.element_size() for value in network.state_dict().values())


def _facts() -> dict[str, Any]:
    """Return what a latency depends on beside the network."""
    packages = dict.fromkeys(("torch", "numpy", *(p for f in FORMATS.values() for p in f.packages)))
    versions = {"python": platform.python_version()}
    for name in packages:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:  # of a format whose extra is not installed
            continue
    return {
        "machine": {"cpu": cpu(), "threads": THREADS, "versions": versions},
        "rounds": ROUNDS,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _write(network: Network, teacher: Network | None, facts: dict[str, Any]) -> None:
    described = None
    if teacher:
        described = {"path": str(teacher.path), "entries": [*map(asdict, teacher.entries)]}
    content = {**facts, "entries": [*map(asdict, network.entries)], "teacher": described}
    try:
        write_text(network.path / BENCHMARK, json.dumps(content, indent=2) + "\n")
    except OSError as error:
        raise UserError(f"the benchmark cannot be written: {error}") from error
