"""Tests of benchmarks: how competitors take turns, what is recorded, and what is refused."""

import json
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import read_facts, read_metrics
from torch import nn

from kd_lightning.cli.benchmark import benchmark_table, sentences
from kd_lightning.cli.benchmark import main as kd_benchmark
from kd_lightning.compress import benchmark as measuring
from kd_lightning.compress.benchmark import Competitor, Latency, cpu, eager, measure
from kd_lightning.compress.formats import FORMATS, Format, Runtime
from kd_lightning.data.types import ImageSpec
from kd_lightning.nets.cnn import StudentCNN
from kd_lightning.report.exported import read_benchmark
from kd_lightning.runs.benchmark import Entry, Network
from kd_lightning.runs.load import load_run
from kd_lightning.utils.errors import UserError
from kd_lightning.utils.run_directory import read_run

SHAPE = (1, 8, 8)
Answers = tuple[np.ndarray, np.ndarray]


class Clock:
    """A clock that only runtimes advance, and a log of what they were given."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0
        self.log: list[tuple[str, int]] = []
        monkeypatch.setattr(measuring.time, "perf_counter_ns", lambda: self.now)

    def runtime(self, name: str, ms: float) -> Runtime:
        """A runtime that takes so long for each image."""

        def run(images: np.ndarray) -> Answers:
            assert images.dtype == np.uint8
            assert images.shape[1:] == SHAPE
            assert torch.get_num_threads() == 1
            self.log.append((name, len(images)))
            self.now += int(1e6 * ms * len(images))
            return images, images

        return run


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@contextmanager
def formats(**fakes: Format) -> Iterator[None]:
    """Offer these formats instead of the real ones, which have an order."""
    real = dict(FORMATS)
    FORMATS.clear()
    FORMATS.update(fakes)
    try:
        yield
    finally:
        FORMATS.clear()
        FORMATS.update(real)


def fail(images: np.ndarray) -> Answers:
    raise RuntimeError("no such\noperator")


def test_latencies_are_those_of_the_calls(clock: Clock) -> None:
    shape = {"shape": SHAPE}
    found = measure(
        {
            "quick": Competitor(clock.runtime("quick", 0.25), **shape),
            "slow": Competitor(clock.runtime("slow", 400), **shape),
            "single": Competitor(clock.runtime("single", 2), **shape, batches=(1,)),
        }
    )
    medians = {
        (name, size): latency.p50
        for name, measured in found.items()
        for size, latency in measured.latency.items()
    }
    assert medians == {
        **{("quick", 1): 0.25, ("quick", 64): 16},
        **{("slow", 1): 400, ("slow", 64): 25600, ("single", 1): 2},
    }
    assert all(latency.p90 == latency.p50 for latency in found["slow"].latency.values())


def test_the_tail_is_measured(clock: Clock) -> None:
    """Of the calls, one of five takes ten times as long."""
    quick, slow = clock.runtime("", 1), clock.runtime("", 10)

    def run(images: np.ndarray) -> Answers:
        return (quick if len(clock.log) % 5 else slow)(images)

    found = measure({"": Competitor(run, SHAPE, batches=(1,))})[""].latency[1]
    assert (found.p50, found.p90) == (1, 10)


def test_competitors_take_turns_in_an_order_that_changes(clock: Clock) -> None:
    names = ("a", "b", "c")
    found = measure({n: Competitor(clock.runtime(n, 0.01), SHAPE, batches=(1,)) for n in names})
    called = [name for name, _ in clock.log[measuring.WARM_UP * len(names) :]]
    calls = found["a"].latency[1].calls // measuring.ROUNDS
    # The first call of a turn is not timed.
    turns = called[:: calls + 1]
    assert len(called) == len(turns) * (calls + 1)
    rounds = [turns[i : i + len(names)] for i in range(0, len(turns), len(names))]
    assert all(sorted(part) == [*names] for part in rounds)
    assert len(rounds) == measuring.ROUNDS
    assert len({tuple(part) for part in rounds}) > 2


def test_a_slow_competitor_takes_part_from_the_first_round_to_the_last(clock: Clock) -> None:
    competitors = {n: clock.runtime(n, ms) for n, ms in (("quick", 0.01), ("slow", 500))}
    found = measure({n: Competitor(run, SHAPE, batches=(1,)) for n, run in competitors.items()})
    assert found["slow"].latency[1].calls == measuring.FEWEST
    called = [name for name, _ in clock.log]
    first, last = called.index("slow", 10), len(called) - called[::-1].index("slow")
    quick = [name == "quick" for name in called[first:last]]
    assert sum(quick) > called.count("quick") * 0.7


def test_what_fails_fails_alone_and_threads_are_restored(clock: Clock) -> None:
    torch.set_num_threads(2)
    try:
        runtimes = {"good": clock.runtime("good", 1), "bad": fail}
        found = measure({name: Competitor(run, SHAPE) for name, run in runtimes.items()})
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert (found["bad"].latency, found["bad"].failure) == ({}, "no such operator")
    assert (set(found["good"].latency), found["good"].failure) == ({1, 64}, "")


def test_eager_is_the_network_with_its_preprocessing() -> None:
    net = StudentCNN(SHAPE, 10).eval()
    images = np.random.default_rng(0).integers(0, 256, (5, *SHAPE), dtype=np.uint8)
    probabilities, logits = eager(net, ImageSpec(SHAPE, 10, (0.3,), (0.4,)))(images)
    exact = net((torch.from_numpy(images).float() / 255 - 0.3) / 0.4).detach()
    torch.testing.assert_close(torch.from_numpy(logits), exact)
    torch.testing.assert_close(torch.from_numpy(probabilities), exact.softmax(1))


X86 = (
    "processor: 0\nmodel name\t: Some CPU\nflags\t: fpu avx2 amx_int8\n\nprocessor: 1\nflags: fpu\n"
)
ARM = "processor: 0\nFeatures: fp asimd asimddp\n"


@pytest.mark.parametrize(
    ("text", "model", "flags"),
    [
        (X86, "Some CPU", ["avx2", "amx_int8"]),
        (ARM, "a processor", ["asimd", "asimddp"]),
        ("", "a processor", []),
    ],
)
def test_the_cpu_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, model: str, flags: list[str]
) -> None:
    if text:
        (tmp_path / "cpuinfo").write_text(text)
    monkeypatch.setattr(measuring, "CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(measuring.platform, "processor", lambda: "a processor")
    assert cpu() == {"model": model, "flags": flags}


def network(name: str, fp32: float, int8: float) -> Network:
    """A network with a file in fp32 and one in int8, of these latencies."""
    latency = [{1: Latency(ms, ms, 1), 64: Latency(64 * ms, 64 * ms, 1)} for ms in (fp32, int8)]
    entries = [Entry("onnx", i == 1, "f", latency=part) for i, part in enumerate(latency)]
    return Network(Path(name), "student", [*entries, Entry("pt2", status="failed: no extra")])


def test_sentences_say_where_int8_is_slower() -> None:
    networks = [network("a", 0.01, 0.022), network("b", 1, 0.41), network("c", 1, 1.02)]
    slower, same, faster = sentences(networks)
    assert slower == (
        "onnx, student a: int8 is slower than fp32 here: one image takes 2.2 times as long."
    )
    assert same == "onnx, student c: one image takes as long in int8 as in fp32."
    assert faster == "onnx, student b: one image in int8 takes 0.41 of the time of fp32."
    (line,) = sentences([network(str(i), 1, 1.5 + i / 10) for i in range(5)])
    assert line.startswith(
        "onnx, 5 networks: int8 is slower than fp32 here: one image takes 1.5–1.9"
    )
    assert sentences([Network(Path("a"), "student", [Entry("torch", latency={})])]) == []


def test_the_table_keeps_failures_and_tells_runs_of_the_same_name_apart() -> None:
    rows = benchmark_table([network("one/0", 0.01, 0.02), network("two/0", 1, 1)]).rows
    assert [row[0] for row in rows] == 3 * ["student one/0"] + 3 * ["student two/0"]
    assert rows[0][4:] == ["0.01 (0.01)", "100,000", "ok"]
    assert rows[2][1:] == ["pt2 fp32", "", "", "", "", "failed: no extra"]


WRITTEN: dict[Path, Runtime] = {}


def write(
    net: nn.Module, spec: ImageSpec, path: Path, _: Mapping[str, Any], __: torch.Tensor | None
) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"a file")
    runtime: Any = eager(net, spec)
    runtime.int8_share = 1.0  # as it says
    WRITTEN[path] = runtime


def refuse(*_: object) -> None:
    raise UserError("this format needs a package: pip install …")


@pytest.fixture
def run(digits_run: Path, tmp_path: Path) -> Path:
    """A copy of a run, with a copy of its teacher."""
    path = shutil.copytree(digits_run, tmp_path / "run")
    facts = read_facts(path)
    teacher = shutil.copytree(facts["teacher"], tmp_path / "teacher")
    (path / "run.json").write_text(json.dumps({**facts, "teacher": str(teacher)}))
    return path


def call(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    monkeypatch.setattr(sys, "argv", ["kd-benchmark", str(path)])
    monkeypatch.setenv("COLUMNS", "160")
    kd_benchmark()


@pytest.mark.slow
def test_command_measures_a_run_and_its_teacher(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    load = WRITTEN.__getitem__
    single = Format(".single", (), write, load, batches=(1,), takes_int8=False)
    fakes = {"any": Format(".any", (), write, load), "single": single}
    fakes["extra"] = Format(".extra", (), refuse, load)
    monkeypatch.setattr(measuring, "SECONDS", 0.1)
    with formats(**fakes):
        call(monkeypatch, run)
    printed = capsys.readouterr().out
    assert "failed: this format needs a package" in printed
    record = json.loads((run / "exported" / "benchmark.json").read_text())
    accuracy = read_metrics(run)["test/accuracy"]
    for entries in (record["entries"], record["teacher"]["entries"]):
        kinds = [(e["format"], e["int8"], e["status"].partition(":")[0]) for e in entries]
        assert kinds == [
            *(("torch", False, "ok"), ("any", False, "ok"), ("any", True, "ok")),
            *(("single", False, "ok"), ("extra", False, "failed"), ("extra", True, "failed")),
        ]
        assert [[*e["latency"]] for e in entries] == [["1", "64"]] * 3 + [["1"], [], []]
        assert all(x["p90"] >= x["p50"] > 0 for e in entries for x in e["latency"].values())
    assert [e["accuracy"] for e in record["entries"][:3]] == pytest.approx([accuracy] * 3)
    file = run / "exported" / "model.any"
    assert record["entries"][1]["bytes"] == file.stat().st_size
    assert record["machine"]["threads"] == 1
    assert record["machine"]["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert not (tmp_path / "teacher" / "exported" / "benchmark.json").exists()

    read = read_benchmark(read_run(run))
    assert read
    assert [file.kind for file in read.files] == [("any", False), ("any", True), ("single", False)]
    assert len(read.teacher_files) == 3

    # Files that are there are not exported again, and not measured if they have changed.
    file.write_bytes(file.read_bytes() + b"\0")
    shutil.rmtree(tmp_path / "teacher")
    with formats(**fakes):
        call(monkeypatch, run)
    record = json.loads((run / "exported" / "benchmark.json").read_text())
    assert "has changed since it was verified" in record["entries"][1]["status"]
    assert record["entries"][1]["latency"] == {}
    assert record["entries"][2]["status"] == "ok"
    assert record["teacher"] is None


@pytest.mark.slow
def test_a_file_that_did_not_pass_is_not_measured(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other(net: nn.Module, spec: ImageSpec, path: Path, *_: Any) -> None:
        write(StudentCNN(spec.input_shape, spec.num_classes).eval(), spec, path, {}, None)

    fake = Format(".fake", (), other, WRITTEN.__getitem__, takes_int8=False)
    monkeypatch.setattr(measuring, "SECONDS", 0.1)
    # A teacher that cannot be loaded is a row, too.
    (tmp_path / "teacher" / "checkpoints" / "best.ckpt").write_bytes(b"damaged")
    with formats(fake=fake):
        call(monkeypatch, run)
    record = json.loads((run / "exported" / "benchmark.json").read_text())
    assert record["entries"][1]["status"].startswith("failed: it does not answer as its checkpoint")
    assert record["entries"][1]["accuracy"] < record["entries"][0]["accuracy"]
    (entry,) = record["teacher"]["entries"]
    assert entry["status"].startswith("failed: ")
    assert load_run(run).is_finished


@pytest.mark.slow
def test_runs_that_cannot_be_measured_are_refused(
    digits_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run"
    path.mkdir()
    with pytest.raises(SystemExit, match="neither a run directory nor a sweep directory"):
        call(monkeypatch, path)
    shutil.copy(digits_run / "run.json", path)
    with pytest.raises(SystemExit, match="is not finished: resume="):
        call(monkeypatch, path)
    assert not (path / "exported").exists()
    shutil.copy(digits_run / "metrics.json", path)
    (path / "exported").touch()
    with pytest.raises(SystemExit, match="exported cannot be created: File exists"):
        call(monkeypatch, path)
    (path / "exported").unlink()
    monkeypatch.setattr("kd_lightning.runs.benchmark.os.access", lambda *_: False)
    with pytest.raises(SystemExit, match="exported cannot be written to: change its permissions"):
        call(monkeypatch, path)
