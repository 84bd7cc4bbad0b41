"""Latency of several networks and files, measured side by side on one thread of the CPU."""

import platform
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn

from kd_lightning.compress.deployed import Deployed
from kd_lightning.compress.formats import Runtime
from kd_lightning.data.types import ImageSpec
from kd_lightning.utils.text import one_line

BATCHES = (1, 64)  # images at once: one as a camera delivers it, and enough for throughput
THREADS = 1  # so that figures of different runtimes can be compared
ROUNDS, FEWEST = 30, 5  # in which a competitor runs, at most and at least
CALLS = 30  # timed in a round, at most
SECONDS = 3.0  # for a competitor, over all rounds and both sizes of batches
WARM_UP = 3  # calls, of which the last ones tell how long one takes
CPUINFO = Path("/proc/cpuinfo")
# Instructions that decide how fast a CPU multiplies, in float32 and int8, on x86 and ARM.
FLAGS = (
    *("avx2", "fma", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "amx_bf16"),
    *("asimd", "asimddp", "i8mm", "sve"),
)

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Competitor:
    """Network or file that takes part in a benchmark.

    Attributes:
        runtime: runs it, on one thread.
        shape: C, H, W of its images.
        batches: sizes of batches that it takes; empty for any.
    """

    runtime: Runtime
    shape: tuple[int, ...]
    batches: tuple[int, ...] = ()


@dataclass(frozen=True)
class Latency:
    """Time of a call, in milliseconds.

    Attributes:
        p50: median.
        p90: 90th percentile.
        calls: number of calls that were timed.
    """

    p50: float
    p90: float
    calls: int


@dataclass(frozen=True)
class Measured:
    """Result of a competitor.

    Attributes:
        latency: by size of the batch.
        failure: why it could not be measured, in one line; empty if it could.
    """

    latency: dict[int, Latency]
    failure: str = ""


@dataclass(frozen=True)
class _Heat:
    """A competitor with a batch of one size.

    Attributes:
        run: runs it once.
        calls: timed in a round.
        rounds: numbers of the rounds that it takes part in.
        times: of the calls, in nanoseconds.
    """

    run: Callable[[], object]
    calls: int
    rounds: frozenset[int]
    times: list[int]


def eager(network: nn.Module, spec: ImageSpec) -> Runtime:
    """Return a runtime of the network itself, as it is shipped but not exported."""
    deployed = Deployed(network, spec).eval()

    @torch.inference_mode()
    def run(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        probabilities, logits = deployed(torch.from_numpy(images))
        return probabilities.numpy(), logits.numpy()

    return run


def measure(competitors: Mapping[Key, Competitor]) -> dict[Key, Measured]:
    """Measure the latency of competitors in rounds.

    In each round every competitor runs a few times, in an order drawn anew, so that whatever
    else the machine does hits all of them. The first call of each turn is not timed: the
    processor's caches still hold what the competitor before needed.

    Args:
        competitors: by any keys. A slow one takes part in fewer rounds, evenly spread.

    Returns:
        The results by the same keys. A competitor that raises an exception fails alone.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    try:
        return _measured(competitors)
    finally:
        torch.set_num_threads(threads)


def _measured(competitors: Mapping[Key, Competitor]) -> dict[Key, Measured]:
    found: dict[Key, Measured] = {}
    heats: dict[tuple[Key, int], _Heat] = {}
    for key, competitor in competitors.items():
        try:
            own = {size: _heat(competitor, size) for size in _sizes(competitor)}
        except Exception as error:  # of any type: it comes from the network or a runtime
            found[key] = Measured({}, one_line(error) or type(error).__name__)
            continue
        found[key] = Measured({})
        heats |= {(key, size): heat for size, heat in own.items()}
    _play([*heats.values()])
    for (key, size), heat in heats.items():
        found[key].latency[size] = _latency(heat.times)
    return found


def _sizes(competitor: Competitor) -> list[int]:
    return [size for size in BATCHES if not competitor.batches or size in competitor.batches]


def _heat(competitor: Competitor, size: int) -> _Heat:
    """Warm a competitor up, and plan its turns by the time that a call takes."""
    shape = (size, *competitor.shape)
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)

    def run() -> object:
        return competitor.runtime(images)

    # The shortest, since the first call may compile or allocate; a coarse clock may say 0.
    call = max(1, min(_timed(run, WARM_UP))) / 1e9
    affordable = SECONDS / len(BATCHES) / call
    # Each turn has one call that is not timed.
    rounds = min(ROUNDS, max(FEWEST, int(affordable / 2)))
    calls = min(CALLS, max(1, int(affordable / rounds) - 1))
    return _Heat(run, calls, frozenset(i * ROUNDS // rounds for i in range(rounds)), [])


def _play(heats: Sequence[_Heat]) -> None:
    order = Random(0)
    for number in range(ROUNDS):
        playing = [heat for heat in heats if number in heat.rounds]
        order.shuffle(playing)
        for heat in playing:
            heat.run()
            heat.times.extend(_timed(heat.run, heat.calls))


def _timed(run: Callable[[], object], calls: int) -> list[int]:
    times = []
    for _ in range(calls):
        start = time.perf_counter_ns()
        run()
        times.append(time.perf_counter_ns() - start)
    return times


def _latency(times: Sequence[int]) -> Latency:
    p50, p90 = np.quantile(times, (0.5, 0.9)) / 1e6
    return Latency(float(p50), float(p90), len(times))


def cpu() -> dict[str, Any]:
    """Return the ``model`` of this machine's CPU and those of :data:`FLAGS` that it has."""
    lines = CPUINFO.read_text(errors="replace").splitlines() if CPUINFO.is_file() else []
    parts = [line.partition(":") for line in lines]
    # All cores are described; the first one comes first. ARM says Features and has no model name.
    told = {name.strip(): value.strip() for name, _, value in reversed(parts)}
    flags = set((told.get("flags") or told.get("Features") or "").split())
    model = told.get("model name") or platform.processor() or platform.machine()
    return {"model": one_line(model), "flags": [flag for flag in FLAGS if flag in flags]}
