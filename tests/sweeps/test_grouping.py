"""Tests of which jobs are trained together."""

from collections.abc import Iterator
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from kd_lightning.cli.paths import CONF
from kd_lightning.sweeps.grouping import signature, why_alone


@pytest.fixture(scope="module", autouse=True)
def _configs() -> Iterator[None]:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield


def resolved(*overrides: str) -> dict[str, Any]:
    config = compose("train", ["data=digits", "run_dir=/runs/3", *overrides])
    found = OmegaConf.to_container(config, resolve=True)
    assert isinstance(found, dict)
    return {str(k): v for k, v in found.items()}


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("method=annealed",),
        ("method=ce",),
        ("method=dkd", "net@student=resnet8", "optimizer=sgd", "lr_scheduler=cosine"),
        ("augment=crop_flip", "trainer.precision=64-true"),
    ],
)
def test_known_jobs_are_trained_together(overrides: tuple[str, ...]) -> None:
    assert why_alone(resolved(*overrides)) == ""


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("method=fitnet", "the transfer term fitnet"),
        ("method=ctkd", "a learned method.temperature"),
        ("method=mutual", "model=MutualModule"),
        ("model=teacher", "model=TeacherModule"),
        ("method=untrained", "teacher_from=Untrained"),
        ("quantize=qat", "quantize="),
        ("chain={links:[]}", "chain="),
        ("profile=true", "profile=True"),
        ("callbacks=[default,max_norm]", "callbacks.max_norm"),
        ("callbacks=[default,mid_epoch]", "callbacks.mid_epoch"),
        ("+callbacks.best.save_top_k=3", "callbacks.best"),
        ("~callbacks.last", "callbacks without best or last"),
        ("+trainer.gradient_clip_val=1", "trainer.gradient_clip_val=1"),
        ("+trainer.accumulate_grad_batches=2", "trainer.accumulate_grad_batches=2"),
        ("trainer.precision=bf16-true", "trainer.precision=bf16-true"),
        ("trainer.max_steps=5", "trainer.max_steps=5"),
        ("trainer.fast_dev_run=true", "trainer.fast_dev_run=True"),
        ("trainer.max_epochs=-1", "trainer.max_epochs=-1"),
        ("data.labelled_fraction=0.5", "data.labelled_fraction=0.5"),
        ("optimizer._target_=torch.optim.RMSprop", "optimizer=RMSprop"),
        ("monitor=val/ece", "monitor=val/ece"),
    ],
)
def test_the_reason_to_run_alone_is_named(override: str, reason: str) -> None:
    assert why_alone(resolved(override)).startswith(reason)


def test_jobs_may_differ_in_what_each_student_has_of_its_own() -> None:
    own = ("seed=1", "method.temperature=2", "method.alpha=0.9", "optimizer.lr=0.1", "run_dir=/x")
    assert signature(resolved(*own)) == signature(resolved())


@pytest.mark.parametrize(
    "override",
    [
        "student.width=4",
        "data.batch_size=8",
        "trainer.max_epochs=2",
        "method=dkd",
        "method=ce",
        "augment.seed=1",
    ],
)
def test_other_differences_make_other_groups(override: str) -> None:
    assert signature(resolved(override)) != signature(resolved())
