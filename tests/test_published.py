"""Default weights and temperatures of every method, compared with the published ones."""

import math
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir

from kd_lightning.cli.paths import CONF
from kd_lightning.objective import Objective
from kd_lightning.runs.build import make
from kd_lightning.transfer.crd import CRD
from kd_lightning.transfer.rkd import RKD

ON_LABELS = {"alpha": 0.0, "hard": 1.0}
# Alpha and the weight of the labels after any warm-up, T, and the weights of transfer terms.
PUBLISHED: dict[str, dict[str, Any]] = {
    "ce": ON_LABELS,
    "kd": {"alpha": 0.5, "hard": 0.5, "T": 5.0},
    "kd_cifar": {"alpha": 0.9, "hard": 0.1, "T": 4.0},
    "logit_mse": {"alpha": 0.5, "hard": 0.5},
    "dkd": {"alpha": 1.0, "hard": 1.0, "T": 4.0},
    "dist": {"alpha": 1.0, "hard": 1.0, "T": 4.0},
    "logit_std": {"alpha": 9.0, "hard": 0.1, "T": 2.0},
    "mutual": {"alpha": 1.0, "hard": 1.0, "T": 1.0},
    "fitnet": {**ON_LABELS, "fitnet": 100},
    "at": {**ON_LABELS, "at": 1000},
    "nst": {**ON_LABELS, "nst": 5},  # 50: see conf/transfer/nst.yaml
    "vid": {**ON_LABELS, "vid": 1},
    "fsp": {**ON_LABELS, "fsp": 50},
    "review": {**ON_LABELS, "review": 1},
    "sp": {**ON_LABELS, "sp": 3000},
    "rkd": {**ON_LABELS, "rkd": 1},  # distances and angles have weights of their own
    "cc": {**ON_LABELS, "cc": 0.02},
    "pkt": {**ON_LABELS, "pkt": 30_000},
    "crd": {**ON_LABELS, "crd": 0.8},
}


def objective(method: str) -> Objective:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", [f"method={method}", "run_dir=here"])
    return make(cfg.method)


@pytest.mark.parametrize("method", PUBLISHED)
def test_weights_and_temperatures_are_the_published_ones(method: str) -> None:
    expected = dict(PUBLISHED[method])
    alpha, hard, temperature = (expected.pop(k, None) for k in ("alpha", "hard", "T"))
    built = objective(method)
    assert built.alpha(math.inf) == alpha
    assert built.hard_weight(math.inf) == pytest.approx(hard)
    if temperature is not None:
        assert built.temperature(0.0) == temperature
    assert {name: weight(math.inf) for name, weight in built.weights.items()} == expected


@pytest.mark.parametrize(("method", "name"), [("dkd", "alpha"), ("review", "review")])
def test_a_weight_warms_up_linearly_over_20_epochs(method: str, name: str) -> None:
    built = objective(method)
    schedule = built.alpha if name == "alpha" else built.weights[name]
    assert [schedule(epoch) for epoch in (0.0, 10.0, 20.0, 30.0)] == [0.0, 0.5, 1.0, 1.0]


def test_settings_of_dkd_rkd_and_crd() -> None:
    generator = torch.Generator().manual_seed(0)
    z_s, z_t = torch.randn(2, 6, 4, generator=generator, dtype=torch.float64)
    target = torch.tensor([0, 1, 2, 3, 0, 1])
    p, q = ((z / 4).softmax(1).gather(1, target[:, None]) for z in (z_t, z_s))
    binary = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
    wrong = torch.ones(6, 4, dtype=torch.bool).scatter(1, target[:, None], False)
    others_t, others_s = ((z[wrong].view(6, 3) / 4).log_softmax(1) for z in (z_t, z_s))
    rest = (others_t.exp() * (others_t - others_s)).sum(1)
    found = objective("dkd").response(z_s=z_s, z_t=z_t, target=target, temperature=4.0)
    torch.testing.assert_close(found, 16 * (binary.mean() + 8 * rest.mean()))

    rkd, crd = (objective(name).terms[name] for name in ("rkd", "crd"))
    assert isinstance(rkd, RKD)
    assert isinstance(crd, CRD)
    assert (rkd.distance, rkd.angle) == (25, 50)
    assert (crd.size, crd.temperature, crd.momentum, crd.other_classes) == (128, 0.07, 0.5, True)
