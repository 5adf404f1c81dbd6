"""CheckpointTokenizer: the tokens that a pretrained transformer was trained with."""

from __future__ import annotations

from typing import Any

import torch

from lightning_evolve.data.checks import at_least
from lightning_evolve.data.encoders.base import Encoder
from lightning_evolve.data.rows import Rows
from lightning_evolve.learners.checkpoints import fingerprint, load_pretrained
from lightning_evolve.tasks import Tensors


class CheckpointTokenizer(Encoder):
    """The tokenizer of a pretrained transformer; its learner must be of the same checkpoint.

    Args:
        checkpoint: a Hugging Face hub name, a folder, or ``"minilm"``.
        max_length: most tokens of a text, special ones included; the rest is cut off.

    Raises:
        UsageError: ``max_length`` leaves no room for a word between the special tokens.
    """

    def __init__(self, checkpoint: str = "bert-base-uncased", max_length: int = 64) -> None:
        at_least(3, max_length=max_length)
        self.checkpoint = checkpoint
        self.max_length = max_length

    def settings(self) -> dict[str, Any]:
        """The checkpoint's content and the length."""
        return {"checkpoint": fingerprint(self.checkpoint), "max_length": self.max_length}

    def fit(self, rows: Rows) -> None:
        """Load the tokenizer.

        Args:
            rows: not looked at.

        Raises:
            UsageError: there is no such checkpoint, or it cannot be loaded.
        """
        from transformers import AutoTokenizer

        self.tokenizer = load_pretrained(AutoTokenizer, self.checkpoint, padding_side="right")
        self.vocab_size = len(self.tokenizer)

    def encode(self, rows: Rows) -> Tensors:
        """Tokenize texts.

        Args:
            rows: texts.

        Returns:
            ``input_ids`` int32 and the boolean ``attention_mask``, both ``[rows, max_length]``.
        """
        encoded = self.tokenizer(
            rows.texts,
            truncation=True,
            padding="max_length",
            max_length=self.max_length,
            return_token_type_ids=False,
            return_tensors="np",
        )
        return {
            "input_ids": torch.from_numpy(encoded["input_ids"]).int(),
            "attention_mask": torch.from_numpy(encoded["attention_mask"]).bool(),
        }
