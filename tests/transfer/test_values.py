"""Values of the terms: the pure losses of each pair of layers, after the adapters."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd_lightning.losses import feature, relation
from kd_lightning.transfer.fitnet import FitNet
from kd_lightning.transfer.fsp import FSP
from kd_lightning.transfer.pairwise import Pairwise
from kd_lightning.transfer.review import Review
from kd_lightning.transfer.rkd import RKD
from kd_lightning.transfer.term import Term
from kd_lightning.transfer.vid import VID

INDEX = torch.arange(6)
LABELS = torch.arange(6)


def maps(seed: int, *shapes: tuple[int, int]) -> list[Tensor]:
    """Draw maps of 6 samples; a shape is a pair of channels and width."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(6, c, w, w, generator=generator) for c, w in shapes]


def built(term: Term, f_s: list[Tensor], f_t: list[Tensor]) -> Term:
    torch.manual_seed(0)
    term.build(f_s, f_t, LABELS)
    return term


def test_fitnet_sums_the_hint_loss_after_regressors() -> None:
    f_s, f_t = maps(0, (3, 8), (4, 4)), maps(1, (5, 6), (4, 4))
    term = built(FitNet(), f_s, f_t)
    assert isinstance(term, FitNet)
    resize, convolve, normalise, rectify = term.regressors[0].children()
    assert [type(x) for x in (convolve, normalise, rectify)] == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU]
    hinted = F.batch_norm(convolve(resize(f_s[0])), None, None, training=True).relu()
    expected = (hinted - f_t[0]).square().mean() + (f_s[1] - f_t[1]).square().mean()
    torch.testing.assert_close(term.compare(f_s, f_t, INDEX), expected)


@pytest.mark.parametrize(
    "loss", [feature.attention, feature.neuron_selectivity, relation.similarity]
)
def test_pairwise_sums_the_loss_over_pairs(loss) -> None:
    f_s, f_t = maps(0, (3, 4), (4, 4)), maps(1, (5, 4), (6, 4))
    found = Pairwise(loss).compare(f_s, f_t, INDEX)
    torch.testing.assert_close(found, loss(f_s[0], f_t[0]) + loss(f_s[1], f_t[1]))


def test_rkd_is_a_weighted_sum_of_distances_and_angles() -> None:
    generator = torch.Generator().manual_seed(0)
    e_s, e_t = (torch.randn(6, d, generator=generator) for d in (3, 5))
    distance, angle = relation.distance_relation(e_s, e_t), relation.angle_relation(e_s, e_t)
    found = RKD(distance=2.0, angle=7.0).compare([e_s], [e_t], INDEX)
    torch.testing.assert_close(found, 2 * distance + 7 * angle)


def test_fsp_sums_the_flow_between_successive_layers() -> None:
    shapes = (3, 8), (4, 4), (5, 4)
    f_s, f_t = maps(0, *shapes), maps(1, *shapes)
    flows = [feature.flow(f_s[i], f_s[i + 1], f_t[i], f_t[i + 1]) for i in range(2)]
    torch.testing.assert_close(built(FSP(), f_s, f_t).compare(f_s, f_t, INDEX), sum(flows))


def test_vid_sums_the_likelihood_over_pairs() -> None:
    f_s, f_t = maps(0, (3, 4), (4, 4)), maps(1, (5, 4), (6, 4))
    term = built(VID(), f_s, f_t)
    assert isinstance(term, VID)
    each = [
        feature.variational_information(mean(s), t, scale)
        for mean, scale, s, t in zip(term.means, term.log_scales, f_s, f_t, strict=True)
    ]
    torch.testing.assert_close(term.compare(f_s, f_t, INDEX), sum(each))


def test_review_fuses_each_stage_with_the_later_ones() -> None:
    f_s, f_t = maps(0, (3, 8), (4, 4)), maps(1, (5, 8), (6, 4))
    term = built(Review(), f_s, f_t)
    assert isinstance(term, Review)
    early, late = term.fusions

    def entered(fusion: nn.Module, x: Tensor) -> Tensor:
        convolve, _ = fusion.enter.children()
        return F.batch_norm(convolve(x), None, None, training=True)

    def left(fusion: nn.Module, x: Tensor) -> Tensor:
        convolve, _ = fusion.leave.children()
        return F.batch_norm(convolve(x), None, None, training=True)

    last, first = entered(late, f_s[1]), entered(early, f_s[0])
    enlarged = F.interpolate(last, size=(8, 8), mode="nearest")
    shares = early.weigh(torch.cat([first, enlarged], 1)).sigmoid()
    fused = first * shares[:, :1] + enlarged * shares[:, 1:]
    expected = feature.hierarchical_context(left(late, last), f_t[1])
    expected = expected + feature.hierarchical_context(left(early, fused), f_t[0])
    found = term.compare(f_s, f_t, INDEX)
    torch.testing.assert_close(found, expected)
    weight = late.enter[0].weight
    ours, theirs = (torch.autograd.grad(x, weight, retain_graph=True)[0] for x in (found, expected))
    torch.testing.assert_close(ours, theirs)  # also through the fusion of the early stage
