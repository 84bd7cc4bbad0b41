"""Tests of load_run: the network, facts and figures of a run directory, without running code."""

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any
from zipfile import ZIP_DEFLATED, ZipFile

import pytest
import torch
import yaml
from conftest import same_weights
from torch import nn

from kd_lightning import load_run
from kd_lightning.data.types import ImageSpec
from kd_lightning.nets.mlp import MLP
from kd_lightning.utils.errors import UserError

SPEC = ImageSpec((1, 4, 4), 3, (0.25,), (0.5,))
NET = {"_target_": "kd_lightning.nets.mlp.MLP", "_partial_": True, "hidden": [5]}


def write_run(folder: Path, net: dict[str, Any] = NET, **checkpoint: Any) -> MLP:
    """Write a finished run of a student, and return its network."""
    torch.manual_seed(0)
    student = MLP(SPEC.input_shape, SPEC.num_classes, hidden=(5,))
    state = {f"student.{name}": weight for name, weight in student.state_dict().items()}
    content = {"state_dict": state, "network": "student", "spec": SPEC.plain(), **checkpoint}
    for name in (".hydra", "checkpoints"):
        (folder / name).mkdir(parents=True)
    (folder / ".hydra" / "config.yaml").write_text(yaml.safe_dump({"model": {"student": net}}))
    torch.save(content, folder / "checkpoints" / "best.ckpt")
    (folder / "run.json").write_text(json.dumps({"format": 1, "role": "student", "seed": 3}))
    (folder / "metrics.json").write_text(json.dumps({"test/accuracy": 0.9}))
    return student.eval()


def test_run_has_network_facts_and_figures(tmp_path: Path) -> None:
    student = write_run(tmp_path / "run")
    run = load_run(tmp_path / "run")
    assert same_weights(run.network.state_dict(), student.state_dict())
    assert not run.network.training
    assert (run.path, run.spec) == (tmp_path / "run", SPEC)
    assert run.facts == {"format": 1, "role": "student", "seed": 3}
    assert run.metrics == {"test/accuracy": 0.9}
    assert (run.role, run.seed, run.is_finished) == ("student", "3", True)
    assert run.config.model.student.hidden == [5]
    with pytest.raises(UserError, match=r"run/run\.json has no 'method'"):
        run.facts["method"]


def test_predict_normalises_images(tmp_path: Path) -> None:
    student = write_run(tmp_path / "run").double()
    images = torch.randint(256, (6, 1, 4, 4), dtype=torch.uint8)
    expected = student((images.double() / 255 - 0.25) / 0.5).softmax(1)
    run = load_run(tmp_path / "run")
    for given in (images, images[:, 0]):
        torch.testing.assert_close(run.predict(given).double(), expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(TypeError, match=r"predict takes uint8 images, got torch\.float32"):
        run.predict(images.float())


def test_predict_is_refused_where_the_normalisation_is_unknown(tmp_path: Path) -> None:
    write_run(tmp_path / "run", spec=SPEC._replace(mean=(), std=()).plain())
    run = load_run(tmp_path / "run")
    with pytest.raises(UserError, match=r"did not say how they are normalised: call run\.network"):
        run.predict(torch.zeros(1, 1, 4, 4, dtype=torch.uint8))
    assert run.network(torch.zeros(2, 1, 4, 4)).shape == (2, 3)


def test_directory_of_version_0_1_has_no_facts(tmp_path: Path) -> None:
    student = write_run(tmp_path / "run")
    (tmp_path / "run" / "run.json").unlink()
    run = load_run(tmp_path / "run")
    assert same_weights(run.network.state_dict(), student.state_dict())
    assert run.facts == {}


def test_last_link_of_a_chain_is_loaded(tmp_path: Path) -> None:
    write_run(tmp_path)
    torch.save({}, tmp_path / "checkpoints" / "best.ckpt")  # a chain has none of its own
    (tmp_path / "links" / "11 (copy)").mkdir(parents=True)
    for link in (2, 10):  # by number, not by text
        write_run(tmp_path / "links" / str(link), epoch=link)
    last = torch.load(tmp_path / "links" / "10" / "checkpoints" / "best.ckpt")
    last["state_dict"]["student.layers.1.bias"] += 1
    torch.save(last, tmp_path / "links" / "10" / "checkpoints" / "best.ckpt")
    found = load_run(tmp_path).network.state_dict()
    assert torch.equal(found["layers.1.bias"], last["state_dict"]["student.layers.1.bias"])


TARGETS = ("os.system", "kd_lightning.nets.mlp.call", "kd_lightning.nets.mlp.nn.Linear", "none.Net")


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("place", ["network", "argument", "list"])
def test_class_that_is_no_known_network_is_refused(tmp_path: Path, target: str, place: str) -> None:
    stranger = {"_target_": target, "command": f"touch {tmp_path}/trace"}
    nets = {
        "network": stranger,
        "argument": {**NET, "hidden": stranger},
        "list": {**NET, "hidden": [stranger]},
    }
    write_run(tmp_path / "run", nets[place])
    with pytest.raises(UserError, match=rf"the run names {target}, which is no network known here"):
        load_run(tmp_path / "run")
    assert not (tmp_path / "trace").exists()


def test_class_of_the_caller_is_trusted_once_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Mine(MLP):
        pass

    module = ModuleType("my_networks")
    Mine.__module__, module.Mine = "my_networks", Mine
    student = write_run(tmp_path / "run", {**NET, "_target_": "my_networks.Mine"})
    with pytest.raises(
        UserError, match=r"my_networks\.Mine, which is no network known here.*import its class"
    ):
        load_run(tmp_path / "run")
    monkeypatch.setitem(sys.modules, "my_networks", module)
    network = load_run(tmp_path / "run").network
    assert type(network) is Mine
    assert isinstance(network, nn.Module)
    assert same_weights(network.state_dict(), student.state_dict())


@pytest.mark.parametrize(
    ("remove", "message"),
    [
        (".hydra/config.yaml", r"run is not a run directory: no \.hydra/config\.yaml"),
        ("checkpoints/best.ckpt", r"there is no checkpoint file .*run/checkpoints/best\.ckpt"),
    ],
)
def test_incomplete_directory_is_refused(tmp_path: Path, remove: str, message: str) -> None:
    write_run(tmp_path / "run")
    (tmp_path / "run" / remove).unlink()
    with pytest.raises(UserError, match=message):
        load_run(tmp_path / "run")


def test_checkpoint_must_name_network_and_data(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    torch.save({"state_dict": {}}, tmp_path / "run" / "checkpoints" / "best.ckpt")
    with pytest.raises(UserError, match="does not say which network it holds for what data"):
        load_run(tmp_path / "run")


def test_other_checkpoint_may_be_named(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    folder = tmp_path / "run" / "checkpoints"
    (folder / "best.ckpt").rename(folder / "last.ckpt")
    assert load_run(tmp_path / "run", "last").spec == SPEC


@pytest.mark.parametrize(
    "net",
    [
        *(7, None, [], {"width": 1}, {"_target_": 7}, {**NET, "hidden": "${oc.env:HOME}x${"}),
        *({**NET, "hidden": ["\\${student}"]}, {**NET, "hidden": None}, {**NET, "more": 1}),
        # A network of any size is not built before its weights are known to fit.
        *({**NET, "hidden": [10**12]}, {**NET, "hidden": [10**5, 10**8]}, {**NET, "hidden": [-5]}),
        *({"_target_": "torch.nn.Linear", "_args_": [4 * 10**8, 4 * 10**8]}, {"_target_": ""}),
    ],
)
def test_description_of_no_network_is_refused_in_one_line(tmp_path: Path, net: Any) -> None:
    write_run(tmp_path / "run", net)
    with pytest.raises(UserError) as caught:
        load_run(tmp_path / "run")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "content",
    [
        *({"spec": None}, {"spec": {"a": 1}}, {"spec": {**SPEC.plain(), "num_classes": "3"}}),
        *({"spec": {**SPEC.plain(), "mean": None}}, {"network": None}, {"network": "model.x["}),
        *({"network": ["a"]}, {"network": "student\x1b"}, {"state_dict": {"student.x": 1}}),
        # One number that claims to be a quadrillion.
        {"state_dict": {"student.x": torch.zeros(1).expand(10**15)}},
    ],
)
def test_checkpoint_of_no_network_is_refused_in_one_line(
    tmp_path: Path, content: dict[str, Any]
) -> None:
    write_run(tmp_path / "run", **content)
    with pytest.raises(UserError) as caught:
        load_run(tmp_path / "run")
    assert str(caught.value).isprintable()


def test_checkpoint_that_would_unfold_in_memory_is_refused(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    file = tmp_path / "run" / "checkpoints" / "best.ckpt"
    with ZipFile(file) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with ZipFile(file, "w", ZIP_DEFLATED) as archive:
        for name, record in {**records, "archive/data/bomb": b"\0" * 10**6}.items():
            archive.writestr(name, record)
    with pytest.raises(UserError, match=r"best\.ckpt is damaged or cut short"):
        load_run(tmp_path / "run")
