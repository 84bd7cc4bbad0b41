"""Tests of the statistics, against SciPy, by hand and on simulated scores."""

import numpy as np
import pytest
from scipy import stats

from kd_lightning.report.statistics import (
    HELPS,
    HURTS,
    NO_DIFFERENCE,
    TOO_FEW,
    difference,
    holm,
    summarize,
    verdict,
)

SCORES = {"0": 0.971, "1": 0.968, "2": 0.975, "3": 0.973, "4": 0.966}
OTHER = {"4": 0.961, "3": 0.970, "2": 0.968, "1": 0.965, "0": 0.964}


def by_seed(*scores: float) -> dict[str, float]:
    return {str(seed): score for seed, score in enumerate(scores)}


def judge(ours: dict[str, float], theirs: dict[str, float]) -> str:
    found = difference(ours, theirs)
    return verdict(found, found.p)


def test_a_summary_agrees_with_scipy() -> None:
    scores = list(SCORES.values())
    found = summarize(scores)
    low, high = stats.t.interval(0.95, 4, np.mean(scores), stats.sem(scores))
    expected = (np.mean(scores), np.std(scores, ddof=1), low, high)
    assert (found.mean, found.sd, found.low, found.high) == pytest.approx(expected)
    assert found.n == 5


def test_a_summary_has_no_interval_without_a_spread() -> None:
    one, same = summarize([0.9]), summarize([0.9, 0.9, 0.9])
    assert (one.n, one.mean, one.sd, one.low, one.high) == (1, 0.9, None, None, None)
    assert (same.sd, same.low, same.high) == (0, None, None)


def test_a_paired_difference_agrees_with_scipy_in_any_order() -> None:
    found = difference(SCORES, OTHER)
    pairs = [SCORES[s] for s in SCORES], [OTHER[s] for s in SCORES]
    expected = stats.ttest_rel(*pairs)
    low, high = expected.confidence_interval(0.95)
    assert found.paired
    assert (found.n, found.p) == (5, pytest.approx(expected.pvalue))
    assert (found.low, found.high) == pytest.approx((low, high))
    assert found.mean == pytest.approx(np.mean(pairs[0]) - np.mean(pairs[1]))


def test_other_seeds_are_compared_by_welch() -> None:
    ours = {f"other {seed}": score for seed, score in SCORES.items()}
    ours.pop("other 0")
    found = difference(ours, OTHER)
    expected = stats.ttest_ind(list(ours.values()), list(OTHER.values()), equal_var=False)
    low, high = expected.confidence_interval(0.95)
    assert not found.paired
    assert (found.n, found.p) == (4, pytest.approx(expected.pvalue))
    assert (found.low, found.high) == pytest.approx((low, high))


@pytest.mark.parametrize(("shared", "paired"), [(3, True), (2, False)])
def test_groups_are_paired_from_three_shared_seeds_on(shared: int, paired: bool) -> None:
    ours = {str(seed + 5 - shared): 0.9 + seed / 100 for seed in range(5)}
    found = difference(ours, OTHER)
    assert (found.paired, found.n) == (paired, shared if paired else 5)


@pytest.mark.parametrize(
    ("ours", "theirs", "p"),
    [
        (by_seed(*[0.9] * 5), by_seed(*[0.9] * 5), 1.0),  # two identical groups
        (by_seed(0.91, 0.92, 0.93), by_seed(0.91, 0.92, 0.93), 1.0),
        (by_seed(0.91, 0.92, 0.93), by_seed(0.90, 0.91, 0.92), 0.25),  # three equal signs
        (by_seed(*[0.91] * 6), by_seed(*[0.9] * 6), 2 / 2**6),
        ({"a": 0.9, "b": 0.9, "c": 0.9}, by_seed(0.8, 0.8, 0.8), 0.1),  # 2 of 20 permutations
        ({"a": 0.9, "b": 0.9, "c": 0.9}, by_seed(0.9, 0.9, 0.9), 1.0),
    ],
)
def test_without_a_spread_p_is_that_of_a_permutation_test(
    ours: dict[str, float], theirs: dict[str, float], p: float
) -> None:
    rounded = {seed: float(np.float32(score)) for seed, score in ours.items()}
    for scores in (ours, rounded):  # the rounding of float32 does not count as a spread
        found = difference(scores, theirs)
        assert found.p == pytest.approx(p)
        assert (found.low, found.high) == (None, None)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_verdicts() -> None:
    better = {seed: score + 0.01 + int(seed) / 1e4 for seed, score in OTHER.items()}
    assert judge(better, OTHER) == HELPS
    assert judge(OTHER, better) == HURTS
    assert judge(by_seed(0.90, 0.91, 0.89), by_seed(0.89, 0.92, 0.90)) == NO_DIFFERENCE
    assert judge(by_seed(0.99, 0.98), by_seed(0.1, 0.2)) == TOO_FEW
    assert judge(by_seed(0.99), by_seed(0.1)) == TOO_FEW
    assert judge({"7": 0.99}, OTHER) == TOO_FEW
    assert verdict(difference(better, OTHER), 0.06) == NO_DIFFERENCE  # after Holm


@pytest.mark.parametrize("shared_luck", [0.0, 1.0])
def test_false_positives_are_rare_and_effects_are_found(shared_luck: float) -> None:
    random, spread, times = np.random.default_rng(0), 0.002, 2000
    wrong = right = 0
    for _ in range(times):
        luck = shared_luck * random.normal(size=5)
        ours, theirs = 0.97 + spread * (random.normal(size=(2, 5)) + luck)
        wrong += judge(by_seed(*ours), by_seed(*theirs)) != NO_DIFFERENCE
        right += judge(by_seed(*ours + 2 * spread), by_seed(*theirs)) == HELPS
    assert wrong / times <= 0.065
    assert right / times >= 0.6


def test_false_positives_are_rare_among_four_comparisons() -> None:
    random, wrong, times = np.random.default_rng(1), 0, 1000
    for _ in range(times):
        first, *others = (by_seed(*scores) for scores in random.normal(size=(5, 5)))
        found = [difference(scores, first) for scores in others]
        adjusted = holm([d.p for d in found if d.p is not None])
        found_verdicts = {verdict(d, p) for d, p in zip(found, adjusted, strict=True)}
        wrong += found_verdicts != {NO_DIFFERENCE}
    assert wrong / times <= 0.065
