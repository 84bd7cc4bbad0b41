"""Statistics of a few seeds: means, intervals, differences and verdicts.

All functions are pure. Intervals and tests use Student's t distribution at the 95 % level,
because a group has three to ten runs rather than hundreds. Groups that ran the same seeds are
compared in pairs, which removes the variation that the seeds share.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import comb, sqrt
from statistics import fmean, stdev, variance

from scipy.special import stdtr, stdtrit  # scipy.stats takes a second to import

LEVEL = 0.05
MIN_SEEDS = 3  # with two, the 97.5 % quantile of Student's t is 12.7: any interval is useless
FLAT = 1e-6  # relative spread below which scores differ only by the rounding of float32

HELPS, HURTS = "helps", "hurts"
NO_DIFFERENCE, TOO_FEW = "no difference shown", "too few seeds"


@dataclass(frozen=True)
class Summary:
    """Summary of a group's scores.

    Attributes:
        n: number of scores.
        mean: mean of the scores.
        sd: sample standard deviation; None for a single score.
        low: lower end of the mean's 95 % interval; None if the scores do not differ.
        high: upper end of the interval.
    """

    n: int
    mean: float
    sd: float | None = None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Difference:
    """Difference between the mean scores of two groups.

    Attributes:
        n: number of pairs; in an unpaired comparison, of runs in the smaller group.
        mean: the first group's mean minus the second group's.
        paired: whether scores are paired by seed; otherwise Welch's t-test is used.
        low: lower end of the 95 % interval; None if the scores do not vary.
        high: upper end of the interval.
        p: two-sided p-value; None with fewer than three seeds.
    """

    n: int
    mean: float
    paired: bool
    low: float | None = None
    high: float | None = None
    p: float | None = None


def summarize(scores: Sequence[float]) -> Summary:
    """Compute the mean, sample standard deviation and 95 % interval of scores.

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

    The comparison is paired over the shared seeds if there are at least three of them or all
    seeds are shared, and unpaired otherwise. If the scores do not vary, t is undefined and p
    comes from an exact permutation test.
    """
    shared = scores.keys() & other.keys()
    # Fewer than three pairs have no power; a larger number of unpaired runs has more.
    if len(shared) >= MIN_SEEDS or scores.keys() == other.keys():
        return _paired([scores[s] for s in shared], [other[s] for s in shared])
    return _welch(list(scores.values()), list(other.values()))


def _paired(scores: list[float], others: list[float]) -> Difference:
    deltas = [a - b for a, b in zip(scores, others, strict=True)]
    n, mean, flat = len(deltas), fmean(deltas), _flat(scores + others)
    if n < 2:
        return Difference(n, mean, True)
    if stdev(deltas) <= flat:  # p is the probability of n equal signs, two-sided
        return _no_spread(n, mean, True, flat, 0.5 ** (n - 1))
    return _student(n, mean, True, stdev(deltas) / sqrt(n), n - 1)


def _welch(a: list[float], b: list[float]) -> Difference:
    n, mean, flat = min(len(a), len(b)), fmean(a) - fmean(b), _flat(a + b)
    if n < 2:
        return Difference(n, mean, False)
    va, vb = variance(a) / len(a), variance(b) / len(b)
    error = sqrt(va + vb)
    if error <= flat:  # p is the probability of a complete separation, two-sided
        return _no_spread(n, mean, False, flat, 2 / comb(len(a) + len(b), len(a)))
    # Welch–Satterthwaite: the groups may have different variances and numbers of runs.
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
    """Return the spread up to which scores count as equal."""
    return FLAT * max(abs(score) for score in scores)


def holm(values: Sequence[float]) -> list[float]:
    """Adjust p-values for their number, in the given order (Holm 1979).

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    adjusted, worst = [0.0] * len(values), 0.0
    # From the smallest p-value on, so that adjusted values keep the order of the given ones.
    for rank, i in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        worst = max(worst, min(1.0, (len(values) - rank) * values[i]))
        adjusted[i] = worst
    return adjusted


def verdict(difference: Difference, p: float | None) -> str:
    """Return the verdict on a difference, given its adjusted p-value."""
    if p is None or difference.n < MIN_SEEDS:
        return TOO_FEW
    if p > LEVEL:
        return NO_DIFFERENCE
    return HELPS if difference.mean > 0 else HURTS
