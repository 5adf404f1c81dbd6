"""FrozenFeatures: each text as one vector of a pretrained transformer that is never trained."""

from __future__ import annotations

from typing import Any

import torch

from lightning_evolve.data.checks import at_least
from lightning_evolve.data.encoders.base import Encoder
from lightning_evolve.data.encoders.checkpoint_tokenizer import CheckpointTokenizer
from lightning_evolve.data.rows import Rows
from lightning_evolve.learners.checkpoints import load_pretrained
from lightning_evolve.tasks import Tensors

_MANY = 500  # texts, from which on it takes long enough for a progress bar


class FrozenFeatures(Encoder):
    """Mean of a pretrained encoder's last hidden states over the tokens of a text.

    The transformer runs once over each text and the vectors are kept on the disk, so that a small
    learner on them trains in no time.

    Args:
        checkpoint: a Hugging Face hub name, a folder, or ``"minilm"``.
        max_length: most tokens of a text, special ones included; the rest is cut off.
        batch_size: texts that go through the transformer at once.

    Raises:
        UsageError: a length or batch size that is too small.
    """

    def __init__(
        self, checkpoint: str = "minilm", max_length: int = 64, batch_size: int = 64
    ) -> None:
        at_least(1, batch_size=batch_size)
        self.tokenizer = CheckpointTokenizer(checkpoint, max_length)
        self.checkpoint = checkpoint
        self.max_length = max_length
        self.batch_size = batch_size

    def settings(self) -> dict[str, Any]:
        """The checkpoint's content and the length; the batch size changes rounding only."""
        return self.tokenizer.settings()

    def fit(self, rows: Rows) -> None:
        """Load the transformer, if it is not there already.

        Args:
            rows: not looked at.

        Raises:
            UsageError: there is no such checkpoint, or it cannot be loaded.
        """
        if hasattr(self, "model"):
            return
        from transformers import AutoModel

        self.tokenizer.fit(rows)
        self.model = load_pretrained(AutoModel, self.checkpoint, use_safetensors=True).eval()

    def encode(self, rows: Rows) -> Tensors:
        """Run the transformer over texts, with a progress bar.

        Args:
            rows: texts.

        Returns:
            ``features`` float32 of shape ``[rows, hidden size]``.
        """
        from rich.progress import track

        tokens = self.tokenizer.encode(rows)
        lengths = tokens["attention_mask"].sum(1)
        order = lengths.argsort(stable=True)  # texts of a length together: little padding
        features = torch.empty(len(rows), self.model.config.hidden_size)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model.to(device)
        batches = track(
            torch.split(order, self.batch_size),
            f"Encoding {len(rows)} texts with {self.checkpoint}",
            disable=len(rows) < _MANY,
        )
        with torch.inference_mode():
            for batch in batches:
                longest = int(lengths[batch].max())
                ids = tokens["input_ids"][batch, :longest].long().to(device)
                mask = tokens["attention_mask"][batch, :longest].to(device)
                hidden = self.model(input_ids=ids, attention_mask=mask.long()).last_hidden_state
                weights = mask.unsqueeze(-1).float()
                features[batch] = ((hidden.float() * weights).sum(1) / weights.sum(1)).cpu()
        self.model.to("cpu")
        return {"features": features}
