"""Configurations of the jobs of a sweep, each composed once and most of them cheaply.

Hydra composes every job twice, at 0.2 s each time: its sweeper checks that the overrides fit,
and its launcher needs the result. Jobs whose overrides have the same keys, and differ only in
values of plain keys, are copies of one composed configuration with other values.
"""

import copy
from collections.abc import Sequence
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl, get_overrides_dirname
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from kd_lightning.sweeps.grouping import VARYING

Key = tuple[str, ...]


class Composer:
    """A config loader that composes jobs which differ in plain values once.

    Args:
        loader: Hydra's own.
    """

    def __init__(self, loader: Any) -> None:
        self.loader = loader
        self._known: dict[Key, DictConfig] = {}
        self._parser = OverridesParser.create()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)

    def load_sweep_config(self, master_config: DictConfig, sweep_overrides: list[str]) -> Any:
        """Return the configuration of a job, for the sweeper, which only checks that there is one.

        It may be that of another job with the same keys.
        """
        return self._base(master_config, sweep_overrides, self._parsed(sweep_overrides))

    def compose(self, master: DictConfig, overrides: Sequence[str]) -> DictConfig:
        """Return the configuration of a job."""
        parsed = self._parsed(overrides)
        base = self._base(master, overrides, parsed)
        own = copy.deepcopy(base)
        if list(base.hydra.overrides.task) == [o.input_line for o in parsed if not _is_hydra(o)]:
            return own
        OmegaConf.set_readonly(own.hydra, False)
        changing = [o for o in parsed if _is_plain(o)]
        with read_write(own):
            ConfigLoaderImpl._apply_overrides_to_config(changing, own)
        with open_dict(own.hydra), read_write(own.hydra):
            task = [o for o in parsed if not _is_hydra(o)]
            own.hydra.overrides.task = [o.input_line for o in task]
            names = own.hydra.job.config.override_dirname
            own.hydra.job.override_dirname = get_overrides_dirname(
                overrides=task,
                kv_sep=names.kv_sep,
                item_sep=names.item_sep,
                exclude_keys=names.exclude_keys,
            )
        return own

    def _parsed(self, overrides: Sequence[str]) -> list[Override]:
        return self._parser.parse_overrides(list(overrides))

    def _base(
        self, master: DictConfig, overrides: Sequence[str], parsed: Sequence[Override]
    ) -> DictConfig:
        key = tuple(f"{o.key_or_group}=" if _is_plain(o) else str(o.input_line) for o in parsed)
        if key not in self._known:
            self._known[key] = self.loader.load_sweep_config(master, list(overrides))
        return self._known[key]


def _is_plain(override: Override) -> bool:
    """Return whether an override sets a number of one of the keys known to be plain."""
    is_change = not (override.is_add() or override.is_delete() or override.is_force_add())
    is_number = isinstance(override.value(), int | float) and not isinstance(override.value(), bool)
    return is_change and is_number and override.key_or_group in VARYING and not override.package


def _is_hydra(override: Override) -> bool:
    return override.is_hydra_override()
