"""A second task: a class for each token, with padding, dictionary inputs and foreign outputs.

It shows what the interface asks for. Run as a script it trains on two processes.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from kd_lightning import DistillationModule, Objective, TeacherCache
from kd_lightning.data.types import Batch, Prepared
from kd_lightning.losses import decoupled, similarity
from kd_lightning.tasks import Task
from kd_lightning.transfer.pairwise import Pairwise

NOTHING = -100  # the target where nothing is asked
VOCABULARY, LENGTH, CLASSES, PAD = 23, 12, 5, 0


class TokenSpec(NamedTuple):
    """What networks on tokens are built from."""

    vocabulary: int = VOCABULARY
    num_classes: int = CLASSES

    @property
    def network_arguments(self) -> tuple[Any, ...]:
        return self.vocabulary, self.num_classes

    def example(self) -> Batch:
        ids = torch.ones(2, LENGTH, dtype=torch.long)
        return Batch({"ids": ids, "mask": ids.bool()}, torch.zeros_like(ids))

    def plain(self) -> dict[str, Any]:
        return self._asdict()


class TokenClassification(Task):
    """A class for each token: logits are B×L×C, and rows are tokens with a target."""

    name = "token classification"

    def rows(self, values: Tensor, target: Tensor) -> Tensor:
        is_per_token = values.shape[: target.dim()] == target.shape
        return values[target != NOTHING] if is_per_token else values

    def row_index(self, batch: Batch) -> Tensor | None:
        if batch.index is None:
            return None
        place = torch.arange(batch.target.shape[1], device=batch.index.device)
        return self.rows(batch.index[:, None] * LENGTH + place, batch.target)


class Tagger(nn.Module):
    """Embedding, two-sided context, linear; returns an object, as transformers do."""

    def __init__(self, vocabulary: int, classes: int, width: int = 8) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width, padding_idx=PAD)
        self.mix = nn.Conv1d(width, width, 3, padding=1)
        self.hidden = nn.Linear(width, width)
        self.head = nn.Linear(width, classes)

    def forward(self, ids: Tensor, mask: Tensor) -> Any:
        x = self.embed(ids) * mask[..., None]
        x = self.hidden(self.mix(x.mT).mT.relu()).relu()  # B×L×D
        return SimpleNamespace(logits=self.head(x))


class DictTagger(Tagger):
    """The same, returning a dictionary."""

    def forward(self, ids: Tensor, mask: Tensor) -> Any:
        return {"loss": None, "logits": super().forward(ids, mask).logits}


class Batches(Dataset[Any]):
    """Batches that are made already."""

    def __init__(self, batches: list[dict[str, Any]]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return self.batches[i]


class TokenData(L.LightningDataModule):
    """Ragged sentences whose tokens belong to a class that depends on the token before.

    Args:
        batch_size: sentences of one optimizer step, over all processes and accumulated batches.
        accumulated: batches of one process that share an optimizer step.
    """

    def __init__(self, batch_size: int = 16, accumulated: int = 1) -> None:
        super().__init__()
        self.batch_size, self.accumulated = batch_size, accumulated
        random = torch.Generator().manual_seed(0)
        self.splits = {name: self._make(n, random) for name, n in (("train", 96), ("val", 37))}
        self.splits["test"] = self._make(41, random)
        self.spec = TokenSpec()

    def _make(self, size: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
        ids = torch.randint(1, VOCABULARY, (size, LENGTH), generator=random)
        lengths = torch.randint(2, LENGTH + 1, (size, 1), generator=random)
        ids[torch.arange(LENGTH) >= lengths] = PAD
        target = (ids + 3 * ids.roll(1, 1)) % CLASSES
        target[:, 0] = NOTHING  # nothing stands before it
        target[ids == PAD] = NOTHING
        return ids, target

    @property
    def labels(self) -> Tensor:
        return self.splits["train"][1]

    def prepared(self, split: str) -> Prepared:
        ids, _ = self.splits[split]

        def batches(device: torch.device) -> Iterator[tuple[int, Tensor, dict[str, Tensor]]]:
            for index in torch.arange(len(ids)).split(10):
                x = ids[index].to(device)
                yield 0, index, {"ids": x, "mask": x != PAD}

        return Prepared(len(ids), 1, lambda: f"tokens-{split}", batches)

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(Batches(self.train_batches()), batch_size=None)

    def train_batches(self) -> list[dict[str, Any]]:
        # Sentences of one step, split into equal numbers for each process and accumulated batch.
        parts = self._ranks[1] * self.accumulated
        found = []
        for step in torch.arange(len(self.labels)).split(self.batch_size):
            rows = [int((self.labels[i] != NOTHING).sum()) for i in step.chunk(parts)]
            for k, index in enumerate(step.chunk(parts)):
                share = rows[k] * parts / sum(rows)
                if k % self._ranks[1] == self._ranks[0]:
                    found.append(self._batch("train", index) | {"share": share})
        return found

    def val_dataloader(self) -> DataLoader[Any]:
        return self._all("val")

    def test_dataloader(self) -> DataLoader[Any]:
        return self._all("test")

    def _all(self, split: str) -> DataLoader[Any]:
        rank, ranks = self._ranks
        count = len(self.splits[split][0])
        parts = torch.arange(count).tensor_split(ranks * 4)[rank::ranks]
        return DataLoader(Batches([self._batch(split, i) for i in parts]), batch_size=None)

    def _batch(self, split: str, index: Tensor) -> dict[str, Any]:
        ids, target = (values[index] for values in self.splits[split])
        return {"ids": ids, "mask": ids != PAD, "labels": target, "index": index}

    @property
    def _ranks(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)


METHODS = {
    "kd": lambda: Objective(alpha=0.7, temperature=3.0),
    "dkd": lambda: Objective(alpha=0.5, temperature=2.0, response=decoupled),
    "sp": lambda: Objective(
        alpha=0.0, transfer={"sp": Pairwise(similarity, role="embedding", weight=2.0)}
    ),
}


def module_of(method: str, cache: TeacherCache | None = None) -> DistillationModule:
    torch.manual_seed(0)
    teacher = Tagger(VOCABULARY, CLASSES, width=16)
    task = TokenClassification(TokenSpec())
    return DistillationModule(
        DictTagger,
        teacher,
        METHODS[method](),
        task=task,
        cache=cache,
        optimizer=lambda groups: torch.optim.SGD(groups, lr=0.5),
    )


def trainer_of(**settings: Any) -> L.Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    usual = {"accelerator": "cpu", "max_epochs": 2, "num_sanity_val_steps": 0}
    usual |= {"enable_checkpointing": False, "use_distributed_sampler": False, **quiet}
    return L.Trainer(**{**usual, **settings})


def main(folder: Path) -> None:
    """Train and test on two processes; leave figures and weights in a folder."""
    module, data = module_of("kd", TeacherCache(str(folder / "cache"))), TokenData()
    trainer = trainer_of(devices=2, strategy="ddp", precision="64-true")
    trainer.fit(module, data)
    (figures,) = trainer.test(module, data, verbose=False)
    if trainer.is_global_zero:
        torch.save(module.state_dict(), folder / "weights.pt")
        (folder / "figures.json").write_text(json.dumps(figures))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
