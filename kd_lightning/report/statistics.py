"""Statistics of a few seeds: means, intervals, differences and verdicts.

Pure functions of numbers. Intervals and tests are Student's t at 95 %, because there are
three to ten runs rather than hundreds. Scores are given by seed: two groups that ran the
same seeds are compared in pairs, which removes the variation that the seeds share.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import comb, sqrt
from statistics import fmean, stdev, variance

from scipy.special import stdtr, stdtrit  # scipy.stats takes a second to import

LEVEL = 0.05
MIN_SEEDS = 3
FLAT = 1e-6  # relative; below it a spread is nothing but the rounding of float32

HELPS, HURTS = "helps", "hurts"
NO_DIFFERENCE, TOO_FEW = "no difference shown", "too few seeds"


@dataclass(frozen=True)
class Summary:
    """Scores of one group.

    Attributes:
        n: the number of scores.
        mean: of the scores.
        sd: sample standard deviation, from two scores on.
        low: lower end of the mean's 95 % interval, where the scores differ.
        high: its upper end.
    """

    n: int
    mean: float
    sd: float | None = None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Difference:
    """A group's mean score less that of the group it is compared with.

    Attributes:
        n: number of pairs; where the groups are not paired, the runs of the smaller one.
        mean: the difference.
        paired: by seed; otherwise the two groups are compared by Welch's t-test.
        low: lower end of the 95 % interval, where the scores vary.
        high: its upper end.
        p: two-sided; None with fewer than three seeds.
    """

    n: int
    mean: float
    paired: bool
    low: float | None = None
    high: float | None = None
    p: float | None = None


def summarize(scores: Sequence[float]) -> Summary:
    """Mean, sample standard deviation and the mean's 95 % interval.

    >>> summary = summarize([1.0, 2.0, 3.0])
    >>> summary.mean, summary.sd, round(summary.low or 0, 3), round(summary.high or 0, 3)
    (2.0, 1.0, -0.484, 4.484)
    """
    n, mean = len(scores), fmean(scores)
    if n < 2:
        return Summary(n, mean)
    sd = stdev(scores)
    if sd <= _flat(scores):
        return Summary(n, mean, sd)
    half = _half_width(sd / sqrt(n), n - 1)
    return Summary(n, mean, sd, mean - half, mean + half)


def difference(scores: Mapping[str, float], other: Mapping[str, float]) -> Difference:
    """Compare two groups of scores by seed.

    Paired over the seeds they share if these are three or more, or all that there are;
    otherwise unpaired. Where nothing varies, t is undefined, and p is that of an exact
    permutation test.
    """
    shared = scores.keys() & other.keys()
    # fewer than three pairs have no power: then more unpaired runs say more
    if len(shared) >= MIN_SEEDS or scores.keys() == other.keys():
        return _paired([scores[s] for s in shared], [other[s] for s in shared])
    return _welch(list(scores.values()), list(other.values()))


def _paired(scores: list[float], others: list[float]) -> Difference:
    deltas = [a - b for a, b in zip(scores, others, strict=True)]
    n, mean, flat = len(deltas), fmean(deltas), _flat(scores + others)
    if n < 2:
        return Difference(n, mean, True)
    if stdev(deltas) <= flat:  # the chance of n equal signs, two-sided
        return _no_spread(n, mean, True, flat, 0.5 ** (n - 1))
    return _student(n, mean, True, stdev(deltas) / sqrt(n), n - 1)


def _welch(a: list[float], b: list[float]) -> Difference:
    n, mean, flat = min(len(a), len(b)), fmean(a) - fmean(b), _flat(a + b)
    if n < 2:
        return Difference(n, mean, False)
    va, vb = variance(a) / len(a), variance(b) / len(b)
    error = sqrt(va + vb)
    if error <= flat:  # the chance of a complete separation, two-sided
        return _no_spread(n, mean, False, flat, 2 / comb(len(a) + len(b), len(a)))
    freedom = (va + vb) ** 2 / (va**2 / (len(a) - 1) + vb**2 / (len(b) - 1))
    return _student(n, mean, False, error, freedom)


def _student(n: int, mean: float, paired: bool, error: float, freedom: float) -> Difference:
    half = _half_width(error, freedom)
    p = float(2 * stdtr(freedom, -abs(mean) / error)) if n >= MIN_SEEDS else None
    return Difference(n, mean, paired, mean - half, mean + half, p)


def _no_spread(n: int, mean: float, paired: bool, flat: float, chance: float) -> Difference:
    p = 1.0 if abs(mean) <= flat else chance
    return Difference(n, mean, paired, p=p if n >= MIN_SEEDS else None)


def _half_width(error: float, freedom: float) -> float:
    return float(stdtrit(freedom, 1 - LEVEL / 2)) * error


def _flat(scores: Sequence[float]) -> float:
    """The spread up to which scores count as equal."""
    return FLAT * max(abs(score) for score in scores)


def holm(values: Sequence[float]) -> list[float]:
    """p-values adjusted for their number, in the given order (Holm 1979).

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    adjusted, worst = [0.0] * len(values), 0.0
    # from the smallest p on; a larger one is never adjusted below a smaller one
    for rank, i in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        worst = max(worst, min(1.0, (len(values) - rank) * values[i]))
        adjusted[i] = worst
    return adjusted


def verdict(difference: Difference, p: float | None) -> str:
    """The verdict on a difference, from its adjusted p-value."""
    if p is None or difference.n < MIN_SEEDS:
        return TOO_FEW
    if p > LEVEL:
        return NO_DIFFERENCE
    return HELPS if difference.mean > 0 else HURTS
