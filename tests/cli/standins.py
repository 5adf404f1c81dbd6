"""A stream of tiny tasks, so that the command line is tested without data on disk."""

from __future__ import annotations

import lightning as L
import torch
from torch.utils.data import DataLoader, DistributedSampler

from lightning_evolve.errors import UsageError
from lightning_evolve.learners import LearnerFactory
from lightning_evolve.meta_learners import MetaLearnerFactory
from lightning_evolve.tasks import Batch, DataSpec, Task

FEATURES, WAYS = 4, 3


def batch(seed: int, rows: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(rows) % WAYS
    centres = torch.eye(WAYS, FEATURES) * 3
    noise = torch.randn(rows, FEATURES, generator=generator)
    return Batch({"features": centres[labels] + noise}, labels, torch.arange(rows))


def task(index: int, seed: int) -> Task:
    first = 1_000_003 * seed + 2 * index
    return Task((batch(first, 6),), batch(first + 1, 9), index, "a, b, c")


class _Tasks(torch.utils.data.Dataset):
    def __init__(self, seed: int, offset: int = 0, count: int = 1 << 30) -> None:
        self.seed, self.offset, self.count = seed, offset, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> list[Task]:
        return [task(self.offset + index, self.seed)]


class _Steps(DistributedSampler):
    def __init__(self, stream: TinyTasks) -> None:
        self.stream, self.epoch = stream, 0

    def __len__(self) -> int:
        return self.stream.steps_per_epoch

    def __iter__(self):
        first = self.stream.trainer.global_step if self.stream.trainer else 0
        length = len(self)
        return iter(range(first, first - first % length + length))


class TinyTasks(L.LightningDataModule):
    """Three classes of four features."""

    def __init__(
        self, source: str = "blobs", steps_per_epoch: int = 6, fails: str = "", seed: int = 0
    ) -> None:
        super().__init__()
        self.source, self.steps_per_epoch, self.fails = source, steps_per_epoch, fails
        self.seed = seed
        if fails == "init":
            raise UsageError("fails is init; choose another")

    def setup(self, stage: str) -> None:
        if self.fails == "setup":
            raise UsageError("fails is setup; choose another")
        self.spec = DataSpec(WAYS, shape=(FEATURES,))

    def train_dataloader(self) -> DataLoader:
        return DataLoader(
            _Tasks(self.seed), batch_size=None, sampler=_Steps(self), collate_fn=lambda x: x
        )

    def _held_out(self) -> DataLoader:
        return DataLoader(_Tasks(self.seed, 1 << 20, 3), batch_size=None, collate_fn=lambda x: x)

    val_dataloader = test_dataloader = predict_dataloader = _held_out

    def raw(self, rows: torch.Tensor) -> list[str]:
        return [f"row {row}, with a comma" for row in rows.tolist()]


class NoSeed(TinyTasks):
    """A data module that draws nothing."""

    def __init__(self, source: str = "blobs") -> None:
        super().__init__(source)


class TinyModel(L.LightningModule):
    """Learns by manual optimization, with momentum as state to resume."""

    def __init__(
        self,
        learner: LearnerFactory,
        meta_learner: MetaLearnerFactory | None = None,
        *,
        alpha: float = 0.1,
        interrupt_at: int = -1,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.interrupt_at = interrupt_at
        self.automatic_optimization = False
        if not alpha > 0:
            raise UsageError(f"alpha is {alpha}; give a finite number above 0")
        self.factory, self.alpha, self.seed = learner, alpha, seed
        self.meta_learner_factory = meta_learner

    def configure_model(self) -> None:
        if not hasattr(self, "learner"):
            torch.manual_seed(self.seed)
            self.learner = self.factory(self.trainer.datamodule.spec)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.learner.parameters(), lr=self.alpha, momentum=0.9)

    def _score(self, part: Batch, prefix: str, **kwargs: bool) -> torch.Tensor:
        logits = self.learner(**part.inputs)
        loss = torch.nn.functional.cross_entropy(logits, part.labels)
        accuracy = (logits.argmax(-1) == part.labels).float().mean()
        values = {f"{prefix}/loss": loss.detach(), f"{prefix}/accuracy": accuracy}
        self.log_dict(values, batch_size=len(part.labels), sync_dist=True, **kwargs)
        return loss

    def training_step(self, batch: list[Task], batch_idx: int) -> None:
        if self.trainer.global_step == self.interrupt_at:
            raise KeyboardInterrupt
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(self._score(batch[0].support[0], "train", prog_bar=True))
        optimizer.step()

    def validation_step(self, batch: list[Task], batch_idx: int) -> None:
        self._score(batch[0].query, "val")

    def test_step(self, batch: list[Task], batch_idx: int) -> None:
        self._score(batch[0].query, "test")

    def predict_step(self, batch: list[Task], batch_idx: int) -> list[dict[str, torch.Tensor]]:
        rows = batch[0].query
        probability, predicted = self.learner(**rows.inputs).softmax(-1).max(-1)
        return [{"rows": rows.rows, "predicted": predicted, "probability": probability}]
