"""Facts of run directories of version 0.1, which have no ``run.json``.

Version 0.1 recorded the configuration only, so the role of a run is inferred from class names.
No other module does this.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra.errors import HydraException

from kd_lightning.runs.record import facts, parse_overrides
from kd_lightning.runs.recorded import read_yaml
from kd_lightning.utils.errors import UserError
from kd_lightning.utils.reading import is_there, read_json
from kd_lightning.utils.run_directory import METRICS, finite
from kd_lightning.utils.text import one_line

OLD_NAME = re.compile(r"(?<!lr_)\bscheduler\b")  # version 0.1's name of lr_scheduler


def facts_of_old_run(path: Path) -> dict[str, Any]:
    """Return the facts of a run directory, inferred from its configuration and figures.

    Raises:
        UserError: if a file is damaged.
    """
    config = _mapping(_renamed(_read(path / ".hydra" / "config.yaml")))
    overrides = _read(path / ".hydra" / "overrides.yaml") or []
    if not isinstance(overrides, list):
        raise UserError(f"{path / '.hydra' / 'overrides.yaml'} does not hold a list")
    choices = _read(path / ".hydra" / "hydra.yaml")
    for name in ("hydra", "runtime", "choices"):
        choices = _mapping(choices).get(name)
    renamed = {OLD_NAME.sub("lr_scheduler", k): v for k, v in _mapping(choices).items()}
    metrics = read_json(path / METRICS) if is_there(path / METRICS) else {}
    try:
        typed = parse_overrides(list(map(str, overrides)))
    except HydraException as error:
        file = path / ".hydra" / "overrides.yaml"
        raise UserError(f"{file} does not hold overrides: {one_line(error)}") from error
    record = facts(
        config,
        {k: v if v is None else str(v) for k, v in renamed.items()},
        {OLD_NAME.sub("lr_scheduler", k): v for k, v in typed.items()},
        role=_role(config),
        task="classification",
        teacher=str(metrics.get("teacher") or ""),
        links=_links(path, config),
    )
    # Version 0.1 wrote seed and commit to metrics.json, and did not record package versions.
    seed, code = metrics.get("seed", config.get("seed")), str(metrics.get("commit", ""))
    return {**record, "seed": seed, "code": code, "versions": {}}


def _renamed(config: Any) -> Any:
    """Rename the keys ``scheduler`` of a configuration to ``lr_scheduler``, at any depth."""
    if not isinstance(config, dict):
        return config
    return {"lr_scheduler" if k == "scheduler" else k: _renamed(v) for k, v in config.items()}


def _role(config: Mapping[str, Any]) -> str:
    if _target(config, "model") == "TeacherModule":
        return "teacher"
    method = _mapping(config.get("method"))
    terms = [_mapping(term) for term in _mapping(method.get("transfer")).values()]
    listens = finite(method.get("alpha")) != 0 or any(t.get("weight") != 0 for t in terms)
    if not listens and not config.get("chain"):
        smooth = finite(method.get("label_smoothing"))
        return "control: label_smoothing" if smooth else "baseline"
    if _target(method, "response") == "permuted_soft_targets":
        return "control: permuted"
    if _target(config, "model") == "with_untrained_teacher":
        return "control: untrained"
    return "student"


def _links(path: Path, config: Mapping[str, Any]) -> list[str]:
    chain = config.get("chain")
    if not chain:
        return []
    if isinstance(chain, dict) and isinstance(chain.get("generations"), int):
        return [f"generation {i}" for i in range(chain["generations"])]
    if isinstance(chain, dict) and isinstance(chain.get("assistants"), dict):
        return [*map(str, chain["assistants"]), "student"]
    raise UserError(f"{path}: its chain has neither generations nor assistants")


def _target(config: Mapping[str, Any], section: str) -> str:
    return str(_mapping(config.get(section)).get("_target_", "")).rpartition(".")[2]


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _read(file: Path) -> Any:
    return read_yaml(file) if is_there(file) else None
