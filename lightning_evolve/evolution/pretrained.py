"""System 1, the pretrained model: what the first champion is made of."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning_evolve.data.encoders import Encoder, Words
from lightning_evolve.data.rows import Rows
from lightning_evolve.data.table import Table
from lightning_evolve.errors import UsageError
from lightning_evolve.evolution.artifacts import Artifacts, digest_of
from lightning_evolve.evolution.journal import Journal
from lightning_evolve.evolution.model import Model
from lightning_evolve.learners import LSTM
from lightning_evolve.learners.base import LearnerFactory
from lightning_evolve.learners.checkpoints import fingerprint
from lightning_evolve.learners.warm_start import begin_from
from lightning_evolve.modules.building import build
from lightning_evolve.tasks import DataSpec


class Pretrained:
    """An encoder and a learner, from a pretrained checkpoint where there is one.

    A hub name or a folder of transformers is given to the encoder (``FrozenFeatures``) or the
    learner (``BERT``) as its ``checkpoint``.

    Args:
        encoder: texts to tensors; words by default.
        learner: tensors to logits; an LSTM by default.
        checkpoint: where the learner's parameters begin: a ``.ckpt`` file of ``fit`` (all but its
            head), or the directory of another run of ``evolve``, whose champion it is then, with
            encoder and classes; None for the learner as it is built.
    """

    def __init__(
        self,
        encoder: Encoder | None = None,
        learner: LearnerFactory = LSTM,
        checkpoint: str | None = None,
    ) -> None:
        self.encoder = encoder or Words()
        if self.encoder.kind != "texts":
            raise UsageError(
                f"encoder {type(self.encoder).__name__} reads {self.encoder.kind}, and evolve "
                "learns from texts: use Words, NGrams, CheckpointTokenizer or FrozenFeatures"
            )
        self.learner = learner
        self.checkpoint = checkpoint

    def model(self, texts: Sequence[str], classes: Sequence[str], seed: int) -> Model:
        """Builds the model that the first champion is trained from.

        Args:
            texts: the first training rows, which the encoder may learn from.
            classes: names of the classes.
            seed: of initial weights.

        Returns:
            The model, its origin and the digest of its parameters among its facts.

        Raises:
            UsageError: there is no such checkpoint, or it is of another learner.
        """
        if self.checkpoint and Path(os.path.expanduser(self.checkpoint)).is_dir():
            return self._champion(Path(os.path.expanduser(self.checkpoint))).knowing(classes, seed)
        rows = Rows([""] * len(texts), texts=list(texts))
        self.encoder.fit(rows)
        inputs = self.encoder.encode(rows.select(range(min(1, len(rows)))))
        shape = Table(inputs, inputs[next(iter(inputs))], ()).shape
        names = tuple(classes)
        spec = DataSpec(len(names), self.encoder.vocab_size, shape, class_names=names)
        learner = build(self.learner, spec, seed)
        if self.checkpoint:
            begin_from(learner, self.checkpoint)
        model = Model(self.encoder, learner.eval(), names)
        model.facts = self._origin(model)
        return model

    def _origin(self, model: Model) -> dict[str, Any]:
        """Where the parameters come from, and a digest of what was there."""
        named = {
            option: str(part.options["checkpoint"])
            for option, part in (("encoder", model.encoder), ("learner", model.learner))
            if part.options.get("checkpoint")
        }
        return {
            "pretrained": {
                **{name: {"name": n, "digest": fingerprint(n)} for name, n in named.items()},
                "checkpoint": self.checkpoint,
                "parameters": digest_of(model.learner.state_dict()),
            }
        }

    def _champion(self, run: Path) -> Model:
        journal = Journal(run / "journal.sqlite")
        champion = journal.champion()
        journal.close()
        if champion is None or champion.model is None:
            raise UsageError(f"checkpoint {str(run)!r} has no champion yet: name another run")
        model = Model.load(Artifacts(run / "artifacts"), champion.model)
        model.facts = {"pretrained": {"checkpoint": str(run), "model": champion.model}}
        return model
