"""LearnedOptimizer in other people's training loops: transformers' Trainer and Lightning's."""

from __future__ import annotations

from functools import partial

import lightning as L
import pytest
import torch

from lightning_evolve.meta_learners import CoordinateMLP, Gains
from lightning_evolve.optim import LearnedOptimizer
from tests.optim.test_optimizer import Net, disturb, equal, loss_of


def bert():
    """A small BERT of random weights."""
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=20,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            max_position_embeddings=12,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
    )


def rows():
    """Texts whose first word tells the class."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(4, 20, (32, 8), generator=generator)
    labels = torch.arange(32) % 2
    ids[:, 0] = labels + 2
    return [
        {"input_ids": i, "attention_mask": torch.ones(8, dtype=torch.int64), "labels": y}
        for i, y in zip(ids, labels, strict=True)
    ]


@pytest.mark.parametrize("rule", [partial(Gains, per="role"), CoordinateMLP])
def test_in_transformers_trainer(rule, tmp_path):
    pytest.importorskip("accelerate", reason="transformers' Trainer needs it")
    from transformers import Trainer, TrainingArguments

    def trained(folder, steps, resume=None):
        model = bert()
        torch.manual_seed(1)
        rule_ = disturb(rule(dict(model.named_parameters())), size=0.1)
        optimizer = LearnedOptimizer(model.named_parameters(), rule_, lr=0.01, weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, total_iters=20)
        arguments = TrainingArguments(
            output_dir=str(folder),
            max_steps=steps,
            per_device_train_batch_size=8,
            save_steps=6,
            logging_steps=1,
            use_cpu=True,
            report_to=[],
            disable_tqdm=True,
            seed=0,
            dataloader_pin_memory=False,
        )
        trainer = Trainer(
            model=model, args=arguments, train_dataset=rows(), optimizers=(optimizer, schedule)
        )
        trainer.train(resume_from_checkpoint=resume)
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        return dict(model.named_parameters()), losses, optimizer

    whole, losses, optimizer = trained(tmp_path / "whole", 12)
    assert sum(losses[-3:]) < 0.7 * sum(losses[:3])
    assert {s["step"] for s in optimizer.state.values()} == {12}
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.01 * (1 - 0.9 * 12 / 20))
    resumed, _, _ = trained(tmp_path / "again", 12, str(tmp_path / "whole" / "checkpoint-6"))
    equal(resumed, whole)


class Module(L.LightningModule):
    """An ordinary module of a user of Lightning."""

    def __init__(self):
        super().__init__()
        self.net = Net()

    def training_step(self, batch, index):
        return loss_of(self.net, index)

    def configure_optimizers(self):
        optimizer = LearnedOptimizer(self.named_parameters(), partial(Gains, per="role"), lr=0.02)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)]


def test_in_lightnings_trainer(tmp_path):
    options = dict(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        gradient_clip_val=1.0,
        default_root_dir=str(tmp_path),
    )
    data = torch.utils.data.DataLoader(range(3))
    whole, half, resumed = Module(), Module(), Module()
    L.Trainer(max_epochs=4, **options).fit(whole, data)
    first = L.Trainer(max_epochs=2, **options)
    first.fit(half, data)
    first.save_checkpoint(tmp_path / "half.ckpt")
    L.Trainer(max_epochs=4, **options).fit(resumed, data, ckpt_path=tmp_path / "half.ckpt")
    equal(dict(resumed.named_parameters()), dict(whole.named_parameters()))
    assert (whole.net.head.weight - Net().head.weight).abs().max() > 0.01
