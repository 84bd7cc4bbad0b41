"""Tests of derived seeds and of source code for cache keys."""

import importlib
import inspect
import itertools
from pathlib import Path

import pytest
from torchvision.datasets import mnist

from kd_lightning.nets import cnn
from kd_lightning.utils import hashing
from kd_lightning.utils.hashing import mixed, sources


def test_seed_depends_on_every_number_and_their_order() -> None:
    keys = [*itertools.product(range(20), range(20)), (12,), (1, 2, 0), (0, 1, 2), ()]
    assert len({mixed(*key) for key in keys}) == len(keys)


def test_seed_has_32_bits_and_uses_all_of_them() -> None:
    seeds = [mixed(seed, epoch) for seed in range(20) for epoch in range(20)]
    assert all(0 <= seed < 2**32 for seed in seeds)
    for bit in range(32):
        ones = sum(seed >> bit & 1 for seed in seeds)
        assert abs(ones - 200) < 50, bit  # five standard deviations of 400 fair coins


def test_seeds_do_not_change_between_versions() -> None:
    """A changed hash would give resumed runs another order of samples."""
    assert (mixed(0, 0), mixed(0, 1), mixed(42, 7, 1)) == (4207090128, 3299023710, 281847029)


def test_sources_are_the_texts_of_the_modules() -> None:
    found = sources([cnn.__name__, hashing.__name__, cnn.__name__])
    assert found == {
        cnn.__name__: inspect.getsource(cnn),
        hashing.__name__: Path(hashing.__file__).read_text(),
    }
    assert list(found) == sorted(found)  # the same key in any order of layers


def test_modules_of_torch_and_without_a_file_are_left_out() -> None:
    assert sources(["torch", "torch.nn.modules.linear", "sys", "never_imported"]) == {}
    # its name only begins like torch's
    assert list(sources([mnist.__name__])) == ["torchvision.datasets.mnist"]


def test_changed_code_changes_the_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    texts = ["WIDTH = 4\n", "WIDTH = 64  # wider\n"]
    found = []
    for name, text in zip(("before_change", "after_change"), texts, strict=True):
        (tmp_path / f"{name}.py").write_text(text)
        importlib.import_module(name)
        found += sources([name]).values()
    assert found == texts
