"""Classifier: plain fine-tuning with any torch optimizer, the baseline one would take instead."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import lightning as L
import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor
from torch.nn import functional

from lightning_evolve.compilation import compile_learner
from lightning_evolve.errors import UsageError
from lightning_evolve.inner_loop import logits
from lightning_evolve.learners.base import LearnerFactory
from lightning_evolve.modules.building import adapting, attached_spec, build
from lightning_evolve.modules.checkpoints import (
    check_same_data,
    check_same_tensors,
    restored_spec,
    saved_entry,
)
from lightning_evolve.modules.metrics import LOGGED, PooledMetrics
from lightning_evolve.tasks import Batch, DataSpec, Task, Tensors


class Classifier(L.LightningModule):
    """Fine-tunes a learner on ordinary data by an optimizer of torch.

    It takes the same data modules as :class:`EvolvingClassifier`: the support and the query of a
    mini-batch pair are one mini-batch to it, so both have seen the same rows after each step.

    Args:
        learner: builds the base classifier from the data's :class:`DataSpec`.
        optimizer: an optimizer of torch such as ``{class_path: torch.optim.AdamW, init_args:
            {lr: 1e-3}}``; AdamW at 1e-3 if not given.
        lr_scheduler: a scheduler of torch, stepped after every batch.
        adapt: which parameters are trained: ``all``, ``head``, or patterns of names.
        compile: compile the learner by :func:`compile_learner`, which says where that helps.
        seed: of the initial weights.

    Raises:
        UsageError: if the data are few-shot tasks, whose classes mean something else each time.
    """

    METRICS = LOGGED

    def __init__(
        self,
        learner: LearnerFactory,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: LRSchedulerCallable | None = None,
        *,
        adapt: list[str] | None = None,
        compile: bool = False,  # noqa: A002  # torch's own name for it
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.learner_factory, self.optimizer, self.lr_scheduler = learner, optimizer, lr_scheduler
        self.adapt, self.compiled, self.seed = adapt, compile, seed
        self.spec: DataSpec | None = None

    def configure_model(self) -> None:
        """Builds the learner once the data is known (Lightning calls it before training)."""
        spec = attached_spec(self)
        if spec is not None and self.spec is not None:
            check_same_data(spec, self.spec, self._source())
        elif spec is not None:
            self.build(spec)

    def _source(self) -> str | None:
        return getattr(getattr(self._trainer, "datamodule", None), "source", None)

    def build(self, spec: DataSpec) -> None:
        """Builds the learner; needed by hand only where no Trainer does it.

        Args:
            spec: what the data looks like.

        Raises:
            UsageError: if the data has no classes of its own, as few-shot tasks have none.
        """
        if not spec.class_names:
            raise UsageError(
                "Classifier learns fixed classes and the data are few-shot tasks; "
                "use BatchStream, or the model EvolvingClassifier"
            )
        self.spec = spec
        self.learner = build(self.learner_factory, spec, self.seed).requires_grad_(False)
        if self.compiled:
            compile_learner(self.learner)
        for p in self.theta().values():
            p.requires_grad_(True)
        self.val_metrics = PooledMetrics(spec.num_classes, "val/")
        self.test_metrics = PooledMetrics(spec.num_classes, "test/")

    def theta(self) -> Tensors:
        """Returns the parameters that are trained, by name."""
        return adapting(self.learner, ["all"] if self.adapt is None else self.adapt)

    @property
    def alpha(self) -> float:
        """The optimizer's learning rate, under the name that it has in EvolvingClassifier."""
        return float(self._make([torch.nn.Parameter(torch.zeros(1))]).param_groups[0]["lr"])

    def _make(self, params: Iterable[Tensor]) -> torch.optim.Optimizer:
        make = self.optimizer or (lambda p: torch.optim.AdamW(p, lr=1e-3))
        return make(params)

    def configure_optimizers(self) -> Any:
        """Returns the optimizer, and the scheduler where there is one."""
        optimizer = self._make(self.theta().values())
        if self.lr_scheduler is None:
            return optimizer
        schedule = {"scheduler": self.lr_scheduler(optimizer), "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def training_step(self, batch: list[Task], batch_idx: int) -> Tensor:
        """Returns the cross-entropy over all rows of the step's mini-batch pairs."""
        parts = [part for task in batch for part in (*task.support, task.query)]
        labels = torch.cat([part.labels for part in parts])
        predictions = torch.cat([logits(self.learner, {}, part) for part in parts])
        loss = functional.cross_entropy(predictions, labels)
        accuracy = (predictions.argmax(dim=-1) == labels).to(loss.dtype).mean()
        values = {"train/loss": loss.detach(), "train/accuracy": accuracy}
        self.log_dict(values, prog_bar=True, sync_dist=True, batch_size=len(labels))
        return loss

    def validation_step(self, batch: Batch | list[Task], batch_idx: int) -> None:
        """Scores rows of the validation split."""
        self._evaluate(batch, self.val_metrics)

    def _evaluate(self, batch: Batch | list[Task], metrics: Any) -> None:
        if isinstance(batch, Batch):  # else it is empty: this process has no more rows
            metrics.update(logits(self.learner, {}, batch), batch.labels)

    def on_validation_epoch_end(self) -> None:
        """Logs the metrics over the whole split; ``val/reward`` is minus the loss."""
        values = self.val_metrics.compute()
        self.log_dict({**values, "val/reward": -values["val/loss"]}, prog_bar=True)
        with torch.inference_mode(False):  # Lightning may evaluate under it, and train afterwards
            self.val_metrics.reset()

    def test_step(self, batch: Batch | list[Task], batch_idx: int) -> None:
        """Scores rows of the test split."""
        self._evaluate(batch, self.test_metrics)

    def on_test_epoch_end(self) -> None:
        """Logs the metrics over the whole split."""
        self.log_dict(self.test_metrics.compute())
        with torch.inference_mode(False):
            self.test_metrics.reset()

    def predict_step(self, batch: Batch | list[Task], batch_idx: int) -> list[dict[str, Tensor]]:
        """Returns ``rows``, ``predicted`` classes and their ``probability``."""
        if not isinstance(batch, Batch):
            return []
        probability, predicted = logits(self.learner, {}, batch).softmax(dim=-1).max(dim=-1)
        return [{"rows": batch.rows, "predicted": predicted, "probability": probability}]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the shape of the data, so that the checkpoint can be loaded by itself."""
        assert self.spec is not None, "nothing is saved before configure_model"
        checkpoint["lightning_evolve"] = {"spec": dict(vars(self.spec))}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Builds the learner where no Trainer did.

        Raises:
            UsageError: if the checkpoint is of another model.
        """
        saved_spec = restored_spec(saved_entry(checkpoint)["spec"])
        if self.spec is None:
            self.build(saved_spec)
        check_same_data(self.spec or saved_spec, saved_spec, self._source())
        check_same_tensors(self.state_dict(), checkpoint["state_dict"])
