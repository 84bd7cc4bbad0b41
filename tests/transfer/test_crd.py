"""CRD: drawing of negatives, updates of the memory banks, and what checkpoints keep."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd_lightning.losses.contrastive import partition_estimate
from kd_lightning.transfer import crd
from kd_lightning.transfer.crd import CRD
from kd_lightning.utils.errors import UserError

LABELS = torch.arange(50) % 5
INDEX = torch.tensor([3, 8, 20])


class Spy:
    """Stand-in for the loss that records the arguments of every call."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[tuple[Any, ...]] = []
        monkeypatch.setattr(crd, "contrastive", self)

    def __call__(self, *arguments: Any) -> Tensor:
        self.calls.append(tuple(a.clone() if isinstance(a, Tensor) else a for a in arguments))
        return arguments[0].sum()

    @property
    def rows(self) -> Tensor:
        return self.calls[-1][4]


def built(labels: Tensor = LABELS, **settings: Any) -> CRD:
    torch.manual_seed(0)
    term = CRD(size=8, **settings)
    term.build([torch.zeros(2, 6)], [torch.zeros(2, 4, 3, 3)], labels)
    return term


def features(seed: int) -> tuple[list[Tensor], list[Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    f_s, f_t = torch.randn(3, 6, generator=generator), torch.randn(3, 36, generator=generator)
    return [f_s], [f_t.view(3, 4, 3, 3)]


@pytest.mark.parametrize("other_classes", [True, False])
def test_negatives_are_drawn_uniformly_from_other_samples(
    monkeypatch: pytest.MonkeyPatch, other_classes: bool
) -> None:
    spy = Spy(monkeypatch)
    term = built(negatives=40, other_classes=other_classes)
    drawn = []
    for seed in range(200):
        term.compare(*features(seed), INDEX)
        assert torch.equal(spy.rows[:, 0], INDEX)  # the first row is the sample itself
        drawn.append(spy.rows[:, 1:])
    for own, rows in zip(INDEX, torch.cat(drawn, 1), strict=True):
        allowed = LABELS[own] != LABELS if other_classes else torch.arange(50) != own
        counts = torch.bincount(rows, minlength=50)
        assert counts[~allowed].sum() == 0
        expected = 200 * 40 / allowed.sum()
        chi2 = ((counts[allowed] - expected) ** 2 / expected).sum()
        # χ² with k = 39 or 48 degrees of freedom has mean k and variance 2k.
        degrees = allowed.sum() - 1
        assert abs(chi2 - degrees) < 4 * (2 * degrees) ** 0.5


def test_a_majority_class_draws_from_the_few_other_samples(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spy = Spy(monkeypatch)
    labels = torch.where(torch.arange(50) % 25 == 3, 7, 2)  # only 3 and 28 are of class 7
    built(labels).compare(*features(0), torch.tensor([0, 3, 8]))
    assert set(spy.rows[[0, 2], 1:].unique().tolist()) == {3, 28}
    assert not {3, 28} & set(spy.rows[1, 1:].tolist())
    with pytest.raises(UserError, match="all training samples are of one class"):
        built(torch.zeros(50))


def test_normalizers_that_overflow_half_precision_are_kept_as_logarithms() -> None:
    term = built(torch.arange(50_000) % 10, negatives=64).half()
    f_s, f_t = (f[0].half() for f in features(0))
    loss = term.compare([f_s], [f_t], INDEX)
    assert term.log_normalizers.exp().max() == torch.inf  # Z itself is above 65504
    assert loss.isfinite()


def test_the_loss_receives_banks_normalizers_and_temperature(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spy = Spy(monkeypatch)
    term = built(temperature=0.3)
    term.compare(*features(0), INDEX)
    e_s, e_t, bank_s, bank_t, rows, size, z_s, z_t, temperature = spy.calls[0]
    assert torch.equal(bank_s, term.bank_s)
    assert torch.equal(bank_t, term.bank_t)
    assert (size, temperature) == (50, 0.3)
    torch.testing.assert_close(z_s, partition_estimate(e_s, bank_t, rows, 0.3))
    torch.testing.assert_close(z_t, partition_estimate(e_t, bank_s, rows, 0.3))


def test_the_number_of_negatives_is_limited_by_the_number_of_samples(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spy = Spy(monkeypatch)
    for negatives, drawn in ((7, 7), (16384, 50)):
        built(negatives=negatives).compare(*features(0), INDEX)
        assert spy.rows.shape == (3, 1 + drawn)


def test_the_banks_are_updated_after_the_backward_pass() -> None:
    term = built(negatives=10, momentum=0.3)
    f_s, f_t = features(0)
    old_s, old_t = term.bank_s.clone(), term.bank_t.clone()
    term.compare(f_s, f_t, INDEX).backward()
    assert torch.equal(term.bank_s, old_s)
    kept = term.state_dict()  # a checkpoint includes the update of the last batch
    for bank, old, layer, f in (
        (kept["bank_s"], old_s, term.embed_s, f_s),
        (kept["bank_t"], old_t, term.embed_t, f_t),
    ):
        e = F.normalize(layer(f[0].flatten(1)), dim=1)
        expected = old.clone()
        expected[INDEX] = F.normalize(0.3 * old[INDEX] + 0.7 * e, dim=1)
        torch.testing.assert_close(bank, expected.detach())


def test_the_next_batch_uses_the_banks_that_a_checkpoint_holds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spy = Spy(monkeypatch)
    term, other = built(), built()
    term.compare(*features(0), INDEX)
    other.load_state_dict(term.state_dict())
    for either in (term, other):
        either.compare(*features(1), INDEX)
    for i in (2, 3):  # the banks of the student and of the teacher
        first, second, third = (call[i] for call in spy.calls)
        assert torch.equal(second, third)
        assert not torch.equal(first, second)


def test_normalizers_are_estimated_from_the_first_batch_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spy = Spy(monkeypatch)
    term = built()
    for seed in range(2):
        term.compare(*features(seed), INDEX)
    first = spy.calls[0][6:8]
    assert all(z.isfinite() for z in first)  # NaN would make the comparisons below fail, too
    assert spy.calls[1][6:8] == first
    resumed = built()
    resumed.load_state_dict(term.state_dict())
    resumed.compare(*features(7), INDEX)
    assert spy.calls[-1][6:8] == first


def test_evaluation_leaves_the_banks_unchanged() -> None:
    term = built().eval()
    before = term.bank_s.clone()
    term.compare(*features(0), INDEX)
    assert torch.equal(term.state_dict()["bank_s"], before)


def test_embeddings_are_parameters_and_banks_are_buffers() -> None:
    term = built()
    assert isinstance(term.embed_s, nn.Linear)
    assert {name.partition(".")[0] for name, _ in term.named_parameters()} == {"embed_s", "embed_t"}
    assert {name for name, _ in term.named_buffers()} == {"bank_s", "bank_t", "log_normalizers"}
    assert term.bank_s.shape == term.bank_t.shape == (50, 8)


def test_crd_declares_its_need_of_index_and_labels() -> None:
    assert CRD.needs_index
    assert CRD.needs_labels
