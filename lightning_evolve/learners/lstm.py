"""A recurrent classifier of text (Hochreiter & Schmidhuber 1997)."""

from __future__ import annotations

import warnings
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from lightning_evolve.learners.base import Learner
from lightning_evolve.learners.checks import check_kind, check_sizes
from lightning_evolve.learners.recurrence import lstm_layer
from lightning_evolve.tasks import DataSpec

# An inner loop's parameters are new tensors in each step, so cuDNN can never have them in the one
# chunk of memory that it would like, and would say so in each step.
warnings.filterwarnings("ignore", message="RNN module weights are not part of single contiguous")


class LSTM(Learner):
    """Embedding, one LSTM layer from left to right, the mean over the real tokens, and ``head``.

    ``nn.LSTM`` is the faster one as long as gradients are taken once. Where the engine
    differentiates through gradients it sets ``second_order``, and the same parameters run through
    ``unroll``: cuDNN has no second derivative at all, and on a CPU the loop is the faster one.

    Args:
        spec: what the data looks like; ``vocab_size`` token ids, of which 0 is padding.
        embedding_size: width of the token embedding.
        hidden_size: units of the recurrent layer.

    Raises:
        UsageError: if the data is not text, or a size is below 1.
    """

    first_layer = "embedding"

    def __init__(
        self, spec: DataSpec, *, embedding_size: int = 128, hidden_size: int = 128
    ) -> None:
        super().__init__(spec)
        check_kind("LSTM", "text", spec)
        check_sizes("LSTM", embedding_size=embedding_size, hidden_size=hidden_size)
        self.embedding = nn.Embedding(spec.vocab_size, embedding_size, padding_idx=0)
        self.lstm = nn.LSTM(embedding_size, hidden_size, batch_first=True)
        self.head = nn.Linear(hidden_size, spec.num_classes)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Classify texts.

        Args:
            input_ids: token ids, int64 of shape ``[rows, tokens]``, padded on the right with 0.
            attention_mask: 1 for tokens and 0 for padding, shape ``[rows, tokens]``.

        Returns:
            Logits of shape ``[rows, num_classes]``.
        """
        embedded = self.embedding(input_ids)
        # Many CPUs have no bfloat16 LSTM: there it runs in 32 bits.
        on_cpu = embedded.device.type == "cpu"
        with torch.autocast("cpu", enabled=False) if on_cpu else nullcontext():
            hidden = unroll(self.lstm, embedded) if self.second_order else self.lstm(embedded)[0]
        logits: Tensor = self.head(masked_mean(hidden, attention_mask))
        return logits


def unroll(lstm: nn.LSTM, inputs: Tensor) -> Tensor:
    """What ``lstm(inputs)[0]`` is, by a loop that can be differentiated twice.

    Args:
        lstm: one layer, one direction, ``batch_first``.
        inputs: shape ``[rows, tokens, features]``.

    Returns:
        The hidden states, shape ``[rows, tokens, units]``.
    """
    ((w_x, w_h, bias_x, bias_h),) = lstm.all_weights
    along_time = inputs.transpose(0, 1).contiguous()
    return lstm_layer(along_time, w_x, w_h, bias_x + bias_h).transpose(0, 1)


def masked_mean(states: Tensor, attention_mask: Tensor) -> Tensor:
    """Mean over the real tokens of each row; zeros for a row without any.

    Args:
        states: shape ``[rows, tokens, units]``.
        attention_mask: 1 for tokens and 0 for padding, shape ``[rows, tokens]``.

    Returns:
        Means, shape ``[rows, units]``.

    >>> import torch
    >>> masked_mean(torch.tensor([[[2.0], [4.0], [9.0]]]), torch.tensor([[1, 1, 0]]))
    tensor([[3.]])
    """
    mask = attention_mask.unsqueeze(-1).to(states.dtype)
    return (states * mask).sum(1) / mask.sum(1).clamp(min=1)
