"""Classifiers on a transformer encoder such as BERT (Devlin et al. 2019)."""

from __future__ import annotations

import inspect
from contextlib import nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from lightning_evolve.errors import UsageError
from lightning_evolve.learners.base import Learner
from lightning_evolve.learners.checkpoints import load_pretrained
from lightning_evolve.learners.checks import check_kind
from lightning_evolve.learners.lstm import masked_mean
from lightning_evolve.tasks import DataSpec

# Checkpoints round their vocabulary up, to a multiple of 64 or of 100 mostly, so the tokenizer
# that belongs to one may have this many ids less.
_SPARE_IDS = 128


class BERT(Learner):
    """A transformer encoder, a pooling of its last hidden states, and ``head``.

    Attention runs through fused kernels, which can be differentiated once. Where the engine
    differentiates through gradients it sets ``second_order``, and the same attention is computed
    from primitive operations.

    Args:
        spec: what the data looks like; ``vocab_size`` is the number of token ids.
        checkpoint: pretrained encoder: its name on the Hugging Face hub, a folder with
            ``config.json`` and ``model.safetensors``, or ``"minilm"`` (all-MiniLM-L6-v2 from an
            installed package, without a network). Not used where ``config`` is given.
        config: builds a BERT with random weights instead, by these fields of
            ``transformers.BertConfig``, such as ``{"hidden_size": 128, "num_hidden_layers": 2}``.
        pooling: ``"mean"`` over the real tokens, or ``"cls"``, the first token.
        dropout: probability of every dropout in the encoder.

    Raises:
        UsageError: if the data is not text, the checkpoint cannot be loaded or has a different
            vocabulary from the data's, or an argument is out of range.
    """

    def __init__(
        self,
        spec: DataSpec,
        *,
        checkpoint: str = "bert-base-uncased",
        config: dict[str, Any] | None = None,
        pooling: Literal["mean", "cls"] = "mean",
        dropout: float = 0.0,
    ) -> None:
        super().__init__(spec)
        check_kind("BERT", "text", spec)
        if pooling not in ("mean", "cls"):
            raise UsageError(f"pooling of BERT is {pooling!r}: give 'mean' or 'cls'")
        if not 0 <= dropout < 1:
            raise UsageError(f"dropout of BERT is {dropout}: give at least 0 and less than 1")
        self.pooling = pooling
        encoder = (
            _pretrained(checkpoint, spec.vocab_size, dropout)
            if config is None
            else _random(config, spec.vocab_size, dropout)
        )
        # Checkpoints come in evaluation mode, where a dropout that was asked for does nothing, and
        # some in half precision, which an inner loop's small steps get lost in.
        self.encoder: nn.Module = encoder.to(torch.get_default_dtype()).train()
        self.head = nn.Linear(encoder.config.hidden_size, spec.num_classes)
        self.max_tokens = getattr(encoder.config, "max_position_embeddings", None)
        self.first_layer = "encoder." + _embeddings(encoder)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Classify texts.

        Args:
            input_ids: token ids, int64 of shape ``[rows, tokens]``, padded on the right.
            attention_mask: 1 for tokens and 0 for padding, shape ``[rows, tokens]``.

        Returns:
            Logits of shape ``[rows, num_classes]``.

        Raises:
            UsageError: if a text has more tokens than the encoder has positions.
        """
        tokens = input_ids.shape[1]
        if self.max_tokens and 0 < self.max_tokens < tokens:
            raise UsageError(
                f"a text has {tokens} tokens and the encoder takes at most {self.max_tokens}: "
                f"give the stream's encoder max_length={self.max_tokens} or less"
            )
        # The kernel that is made of primitive operations is the only one with a second derivative;
        # and in bfloat16 on a CPU the fused one's backward pass takes longer than all the rest.
        slow = input_ids.device.type == "cpu" and torch.is_autocast_enabled("cpu")
        with sdpa_kernel(SDPBackend.MATH) if self.second_order or slow else nullcontext():
            states = self.encoder(input_ids, attention_mask=attention_mask).last_hidden_state
        pooled = states[:, 0] if self.pooling == "cls" else masked_mean(states, attention_mask)
        logits: Tensor = self.head(pooled)
        return logits


def _pretrained(checkpoint: str, vocab_size: int, dropout: float) -> Any:
    from transformers import AutoConfig, AutoModel

    config = load_pretrained(AutoConfig, checkpoint)
    if config.is_encoder_decoder or not hasattr(config, "vocab_size"):
        raise UsageError(
            f"checkpoint {checkpoint!r} is a {config.model_type}, which is no encoder of text: "
            "name one such as 'bert-base-uncased'"
        )
    spare = config.vocab_size - vocab_size
    if not 0 <= spare < _SPARE_IDS:
        raise UsageError(
            f"the data has {vocab_size} token ids and checkpoint {checkpoint!r} has "
            f"{config.vocab_size}: encode the data with the checkpoint's own tokenizer, "
            f"CheckpointTokenizer(checkpoint={checkpoint!r})"
        )
    encoder, loaded = load_pretrained(
        AutoModel,
        checkpoint,
        config=_with_dropout(config, dropout),
        use_safetensors=True,  # nothing is unpickled
        output_loading_info=True,
        **_no_pooler(config),
    )
    if missing := sorted(loaded["missing_keys"]):
        # transformers would leave them random, which is no pretrained encoder any more.
        raise UsageError(
            f"the weights of checkpoint {checkpoint!r} lack {len(missing)} tensors that its "
            f"config.json asks for, such as {missing[0]}: name a folder whose two files belong "
            "together"
        )
    return encoder


def _random(config: dict[str, Any], vocab_size: int, dropout: float) -> Any:
    from transformers import AutoModel, BertConfig

    fields = {n for n in BertConfig().to_dict() if n != "vocab_size" and "drop" not in n}
    if unknown := sorted(set(config) - fields):
        raise UsageError(
            f"config of BERT has {unknown[0]!r}, which is not for it to set: give fields of "
            "transformers.BertConfig; vocab_size comes from the data, dropout is an argument"
        )
    try:
        built = BertConfig(**config, vocab_size=vocab_size)
        return AutoModel.from_config(_with_dropout(built, dropout), **_no_pooler(built))
    except Exception as error:  # transformers checks the fields, each version in its own way
        reason = " ".join(str(error).split())
        raise UsageError(
            f"config of BERT is {config}, which builds no encoder: change it ({reason})"
        ) from error


def _with_dropout(config: Any, dropout: float) -> Any:
    """Set every dropout of an architecture, whatever it calls them (those of heads are None)."""
    for name, value in config.to_dict().items():
        if "drop" in name and isinstance(value, (int, float)):
            setattr(config, name, dropout)
    return config


def _no_pooler(config: Any) -> dict[str, bool]:
    """Leave out the layer that only the [CLS] objective of pretraining used, if there is one."""
    from transformers import MODEL_MAPPING

    parameters = inspect.signature(MODEL_MAPPING[type(config)]).parameters
    return {"add_pooling_layer": False} if "add_pooling_layer" in parameters else {}


def _embeddings(encoder: Any) -> str:
    """Prefix of the embeddings' parameters: ``embeddings``, or ``wte`` where there is no group."""
    words = encoder.get_input_embeddings()
    name: str = next(name for name, module in encoder.named_modules() if module is words)
    group = name.partition(".")[0]
    return group if "embed" in group else name
