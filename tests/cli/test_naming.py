"""Tests that the name of a method means what it says, whatever else is set."""

import json
from pathlib import Path

import pytest
from conftest import Command
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig

from kd_lightning.cli.command_line import arranged
from kd_lightning.cli.paths import CONF
from kd_lightning.runs.naming import keep_name
from kd_lightning.utils.errors import UserError

QUICK = ("data=digits", "trainer.max_epochs=1", "data.train_fraction=0.2")


def kept(*typed: str) -> DictConfig:
    """What a single run with these overrides would train."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        words = ["data=digits", "run_dir=here", "hydra.mode=RUN", *typed]
        cfg = compose("train", words, return_hydra_config=True)
        HydraConfig.instance().set_config(cfg)
        try:
            return keep_name(cfg)
        finally:
            HydraConfig.instance().cfg = None  # other tests run without a command


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (["method=ce", "method.alpha=0.9"], "method=ce learns from labels alone; method.alpha=0.9"),
        (["method=ce", "+transfer@method.transfer.sp=sp"], "method.transfer=sp would change that"),
        (["method=label_smoothing", "method.alpha=0.5"], "learns from smoothed labels alone"),
        (["method=permuted", "method.alpha=0"], "wrong classes are permuted; method.alpha=0"),
        (["method=annealed", "method.temperature=3"], "changes its temperature while training"),
        (["method=ctkd", "method.temperature=3"], "changes its temperature while training"),
        (["method=untrained", "teacher_from=store"], "has an untrained teacher; teacher_from="),
        (["method=mutual", "model=student"], "method=mutual needs model=mutual"),
    ],
)
def test_a_setting_that_changes_what_a_method_is_is_refused(typed: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        kept(*typed)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "typed",
    [
        ["method=kd", "method.alpha=0"],  # a point of the curve over alpha
        ["method=permuted", "method.alpha=0.9"],
        ["method=annealed", "method.temperature.start=8"],
        ["model=mutual", "method=ctkd"],
        ["method=ce", "method.temperature=3"],  # without effect
        ["model=teacher", "method=ce", "method.alpha=0.5"],
    ],
)
def test_other_settings_are_taken(typed: list[str]) -> None:
    kept(*typed)


@pytest.mark.slow
def test_a_refusal_is_one_line_before_a_teacher_is_trained(
    command: Command, tmp_path: Path
) -> None:
    words = (*QUICK, "method=ce", "method.alpha=0.9", f"hydra.run.dir={tmp_path / 'run'}")
    done = command(*words, KD_TEACHERS=str(tmp_path / "teachers"))
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: method=ce learns from labels alone")
    assert not (tmp_path / "teachers").exists()


def facts(job: Path) -> dict[str, object]:
    return json.loads((job / "run.json").read_text())


@pytest.mark.slow
def test_in_a_sweep_the_baseline_stays_one_and_is_trained_once(
    command: Command, tmp_path: Path
) -> None:
    sweep = tmp_path / "sweep"
    done = command(
        *("-m", *QUICK, "method=ce,kd", "method.alpha=0.1,0.9", "method.temperature=2,5"),
        f"hydra.sweep.dir={sweep}",
    )
    assert done.returncode == 0, done.stderr
    found = [facts(sweep / str(i)) for i in range(8)]
    assert [f["role"] for f in found] == ["baseline"] * 4 + ["student"] * 4
    assert [f.get("same_as", "") for f in found[:4]] == ["", "0", "0", "0"]
    assert [(sweep / str(i) / "metrics.json").is_file() for i in range(8)] == [
        *(True, False, False, False),
        *(True, True, True, True),
    ]
    assert found[0]["settings"]["method.alpha"] == 0.0  # pyright: ignore[reportIndexIssue]
    table = (sweep / "sweep.csv").read_text()
    assert table.count("as job 0") == 3
    assert "failed" not in table
    pure = command(*QUICK, "method=ce", f"hydra.run.dir={tmp_path / 'pure'}")
    assert pure.returncode == 0, pure.stderr
    ours, alone = (
        json.loads((d / "metrics.json").read_text()) for d in (sweep / "0", tmp_path / "pure")
    )
    assert ours["test/loss"] == alone["test/loss"]  # bitwise the baseline


@pytest.mark.slow
def test_a_sweep_in_a_used_directory_takes_nothing_from_the_one_before(
    command: Command, tmp_path: Path
) -> None:
    sweep = f"hydra.sweep.dir={tmp_path / 'sweep'}"
    done = command("-m", *QUICK, "method=kd,ce", sweep)
    assert done.returncode == 0, done.stderr
    before = [(tmp_path / "sweep" / job / "metrics.json").read_text() for job in "01"]
    done = command("-m", *QUICK, "method=ce,kd", sweep)
    assert done.returncode == 0, done.stderr
    found = [facts(tmp_path / "sweep" / job) for job in "01"]
    assert [(f["role"], f.get("same_as")) for f in found] == [("baseline", None), ("student", None)]
    after = [(tmp_path / "sweep" / job / "metrics.json").read_text() for job in "01"]
    losses = [[json.loads(text)["test/loss"] for text in texts] for texts in (before, after)]
    assert losses[1] == losses[0][::-1]
    failed = command("-m", *QUICK, "method=ce,kd", "data.val_size=99999", sweep)
    assert failed.returncode == 1
    assert "2 of 2 jobs failed" in failed.stderr


@pytest.mark.slow
def test_baselines_that_differ_are_all_trained(command: Command, tmp_path: Path) -> None:
    done = command(
        *("-m", *QUICK, "method=ce", "optimizer._target_=torch.optim.Adam,torch.optim.AdamW"),
        *("optimizer.weight_decay=0.5", "data.seed=0,1", f"hydra.sweep.dir={tmp_path / 'sweep'}"),
    )
    assert done.returncode == 0, done.stderr
    assert [facts(tmp_path / "sweep" / str(i)).get("same_as") for i in range(4)] == [None] * 4


@pytest.mark.parametrize("name", ["r a", "r,b", "r{c}", "r=e", "r(h)", "rü"])
def test_paths_with_signs_of_hydras_grammar_are_resumed(name: str, tmp_path: Path) -> None:
    (tmp_path / name / ".hydra").mkdir(parents=True)
    (tmp_path / name / ".hydra" / "overrides.yaml").write_text("- method=ce\n")
    words = arranged(["train.py", f"resume={tmp_path / name}"])[1:]
    parsed = {o.key_or_group: o.value() for o in OverridesParser.create().parse_overrides(words)}
    assert str(parsed["resume"]).strip("'") == str(tmp_path / name)
    assert str(parsed["hydra.run.dir"]).strip("'") == str(tmp_path / name)


@pytest.mark.parametrize(
    ("typed", "methods"),
    [
        ("experiment=compare method=dkd", "ce,dkd"),
        ("method=dkd,sp experiment=compare", "ce,dkd,sp"),
        ("experiment=compare method=ce,kd", "ce,kd"),
        ("experiment=controls method=dkd", "ce,label_smoothing,permuted,untrained,dkd"),
    ],
)
def test_an_experiment_compares_the_method_that_is_asked_for(typed: str, methods: str) -> None:
    *_, method, mode = arranged(["train.py", *typed.split()])
    assert (method, mode) == (f"method={methods}", "hydra.mode=MULTIRUN")


@pytest.mark.parametrize("typed", ["experiment=cifar100 method=kd", "method=dkd"])
def test_other_words_stay_as_they_are(typed: str) -> None:
    assert arranged(["train.py", *typed.split()]) == ["train.py", *typed.split()]


def test_a_run_without_recorded_overrides_is_not_resumed_as_the_default(tmp_path: Path) -> None:
    (tmp_path / ".hydra").mkdir()
    file = tmp_path / ".hydra" / "overrides.yaml"
    for content in ("", "method: kd\n"):
        file.write_text(content)
        with pytest.raises(UserError, match="does not record the overrides"):
            arranged(["train.py", f"resume={tmp_path}"])
    file.write_text("[]\n")
    assert f"resume='{tmp_path}'" in arranged(["train.py", f"resume={tmp_path}"])
