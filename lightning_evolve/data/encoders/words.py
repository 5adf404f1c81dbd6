"""Words: a vocabulary of whole words, trained on the training rows."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch

from lightning_evolve.data.cache import Entry
from lightning_evolve.data.checks import at_least
from lightning_evolve.data.docstrings import MASK
from lightning_evolve.data.encoders.base import Encoder
from lightning_evolve.data.rows import Rows
from lightning_evolve.tasks import Tensors

_PAD, _UNKNOWN = "[PAD]", "[UNK]"  # numbers 0 and 1


class Words(Encoder):
    """Lower-cased words and punctuation marks, each with a number of its own.

    Args:
        max_vocabulary: most words in the vocabulary, the three special ones included.
        max_length: most words of a text; the rest of a longer one is cut off.
        min_frequency: occurrences in the training rows from which on a word is in the vocabulary;
            all others are one and the same unknown word.

    Raises:
        UsageError: one of them is less than one, or there is no room for words.
    """

    learns: ClassVar[bool] = True

    def __init__(
        self, max_vocabulary: int = 10_000, max_length: int = 64, min_frequency: int = 2
    ) -> None:
        at_least(4, max_vocabulary=max_vocabulary)
        at_least(1, max_length=max_length, min_frequency=min_frequency)
        self.max_vocabulary = max_vocabulary
        self.max_length = max_length
        self.min_frequency = min_frequency

    def settings(self) -> dict[str, Any]:
        """All three arguments."""
        return {
            "max_vocabulary": self.max_vocabulary,
            "max_length": self.max_length,
            "min_frequency": self.min_frequency,
        }

    def fit(self, rows: Rows) -> None:
        """Count the words of the training rows and keep the most frequent ones.

        Args:
            rows: the training rows.
        """
        from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

        tokenizer = Tokenizer(models.WordLevel(unk_token=_UNKNOWN))
        tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        trainer = trainers.WordLevelTrainer(
            vocab_size=self.max_vocabulary,
            min_frequency=self.min_frequency,
            special_tokens=[_PAD, _UNKNOWN, MASK],
            show_progress=False,
        )
        tokenizer.train_from_iterator(rows.texts, trainer)
        self._take(tokenizer)

    def _take(self, tokenizer: Any) -> None:
        tokenizer.enable_truncation(self.max_length)
        tokenizer.enable_padding(pad_id=0, pad_token=_PAD, length=self.max_length)
        self.tokenizer = tokenizer
        self.vocab_size = tokenizer.get_vocab_size()

    def learned(self) -> Entry:
        """The vocabulary."""
        return Entry({}, {"tokenizer": self.tokenizer.to_str()})

    def restore(self, learned: Entry) -> None:
        """Take a vocabulary over.

        Args:
            learned: what `learned` gave.
        """
        from tokenizers import Tokenizer

        self._take(Tokenizer.from_str(learned.facts["tokenizer"]))

    def encode(self, rows: Rows) -> Tensors:
        """Number the words of texts.

        Args:
            rows: texts.

        Returns:
            ``input_ids`` int32 of shape ``[rows, max_length]``, 0 where a text has ended, and the
            ``attention_mask``, true up to there. A text without a word is one unknown word.
        """
        assert rows.texts is not None
        encodings = self.tokenizer.encode_batch(rows.texts)
        ids = np.array([encoding.ids for encoding in encodings], dtype=np.int32)
        ids = ids.reshape(-1, self.max_length)
        ids[:, 0] = np.where(ids[:, 0] == 0, 1, ids[:, 0])
        input_ids = torch.from_numpy(ids)
        return {"input_ids": input_ids, "attention_mask": input_ids != 0}
