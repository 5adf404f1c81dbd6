"""A model as the loop keeps it: from texts to calibrated probabilities, whole in two artifacts."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from lightning_evolve import learners as all_learners
from lightning_evolve.data import encoders as all_encoders
from lightning_evolve.data.cache import Entry
from lightning_evolve.data.encoders import Encoder
from lightning_evolve.data.rows import Rows
from lightning_evolve.data.table import Table
from lightning_evolve.errors import UsageError
from lightning_evolve.evolution.artifacts import Artifacts
from lightning_evolve.learners.base import Learner
from lightning_evolve.modules.building import build
from lightning_evolve.tasks import DataSpec, Tensors

FORMAT = 1
_ROWS = 256  # that go through the learner at once


class Predicted(NamedTuple):
    """What a model says of some texts.

    Args:
        probabilities: calibrated, float32 of shape ``[rows, classes]``.
        features: what the output layer sees, float32 of shape ``[rows, features]``.
    """

    probabilities: NDArray[np.float32]
    features: NDArray[np.float32]


class Model:
    r"""An encoder, a learner and a temperature.

    .. math:: p = \mathrm{softmax}(\mathrm{logits} / T)

    The temperature T makes the confidence of the predictions the accuracy to expect of them (Guo
    et al. 2017).

    Args:
        encoder: texts to tensors, fitted.
        learner: tensors to logits.
        classes: names of the classes, one a logit.
        temperature: T.
        facts: what else is known of the model, as JSON knows it.
    """

    def __init__(
        self,
        encoder: Encoder,
        learner: Learner,
        classes: tuple[str, ...],
        temperature: float = 1.0,
        facts: dict[str, Any] | None = None,
    ) -> None:
        assert len(classes) == learner.spec.num_classes, "one class a logit"
        self.encoder = encoder
        self.learner = learner
        self.classes = classes
        self.temperature = temperature
        self.facts = facts or {}

    def encode(self, texts: Sequence[str]) -> Tensors:
        """Encodes texts.

        Args:
            texts: any number of them.

        Returns:
            Keyword inputs of the learner, each of shape ``[rows, ...]``.
        """
        return self.encoder.encode(Rows([""] * len(texts), texts=list(texts)))

    def predict(self, texts: Sequence[str]) -> Predicted:
        """Classifies texts.

        Args:
            texts: any number of them.
        """
        return self.predict_encoded(self.encode(texts))

    @torch.inference_mode()
    def predict_encoded(self, inputs: Tensors) -> Predicted:
        """Classifies texts that are encoded already.

        Args:
            inputs: as :meth:`encode` gives them.
        """
        logits, features = self._run(inputs)
        return Predicted((logits / self.temperature).softmax(1).numpy(), features.numpy())

    def _run(self, inputs: Tensors) -> tuple[Tensor, Tensor]:
        rows = len(next(iter(inputs.values())))
        table = Table(inputs, torch.zeros(rows, dtype=torch.int64), self.classes)
        logits, features = [torch.zeros(0, len(self.classes))], []
        with _seen_by_head(self.learner) as seen:
            for numbers in torch.split(torch.arange(rows), _ROWS) if rows else ():
                out = self.learner(**table.batch(numbers).inputs).float()
                logits.append(out)
                features.append(seen.pop().float() if seen else out)
        width = features[0].shape[1] if features else 0
        return torch.cat(logits), torch.cat([torch.zeros(0, width), *features])

    def calibrated(self, inputs: Tensors, labels: Tensor) -> Model:
        """Returns the same model with the temperature of the lowest loss on some rows.

        Args:
            inputs: encoded rows that the learner was not trained on.
            labels: int64 of shape ``[rows]``; with fewer rows than classes T stays 1.
        """
        if len(labels) < max(10, len(self.classes)):
            return Model(self.encoder, self.learner, self.classes, 1.0, self.facts)
        with torch.inference_mode():
            logits, _ = self._run(inputs)
        # The loss is convex in 1/T; a grid has no step size to go wrong.
        grid = torch.logspace(-1.3, 1.3, 105)
        losses = torch.stack([functional.cross_entropy(logits / t, labels) for t in grid])
        return Model(
            self.encoder, self.learner, self.classes, float(grid[losses.argmin()]), self.facts
        )

    def with_learner(self, learner: Learner, **facts: Any) -> Model:
        """Returns a model of the same encoder and other parameters, not calibrated.

        Args:
            learner: of the same classes.
            **facts: what is known of the new model.
        """
        return Model(self.encoder, learner, self.classes, 1.0, {**self.facts, **facts})

    def and_new(self, labels: Iterable[str]) -> tuple[str, ...]:
        """Names of the classes, and after them those of other labels, sorted.

        Args:
            labels: any, of which those that are no class yet are added.
        """
        return (*self.classes, *sorted({*labels} - {*self.classes}))

    def knowing(self, classes: Sequence[str], seed: int) -> Model:
        """Returns a model that knows more classes; its logits of the old ones stay the same.

        Args:
            classes: of which those that are new are added, in their order.
            seed: of the new rows of the output layer.

        Raises:
            UsageError: the learner has no output layer that could grow.
        """
        new = [name for name in dict.fromkeys(classes) if name not in self.classes]
        if not new:
            return self
        names = (*self.classes, *new)
        spec = replace(self.learner.spec, num_classes=len(names), class_names=names)
        grown = build(lambda s: type(self.learner)(s, **self.learner.options), spec, seed)
        ours = self.learner.state_dict()
        for name, tensor in grown.state_dict().items():
            if tensor.shape == ours[name].shape:
                tensor.copy_(ours[name])
            elif name.startswith("head."):
                tensor[: len(self.classes)] = ours[name]
            else:
                raise UsageError(
                    f"{type(self.learner).__name__} cannot learn the new class {new[0]!r}: {name} "
                    "depends on the number of classes; set new_classes: refuse"
                )
        return Model(self.encoder, grown.eval(), names, self.temperature, self.facts)

    # ---------------------------------------------------------------- on disk

    def save(self, artifacts: Artifacts) -> str:
        """Stores the model.

        Args:
            artifacts: where.

        Returns:
            Name of the artifact that names the others.
        """
        learned = self.encoder.learned()
        return artifacts.put_json(
            {
                "format": FORMAT,
                "classes": list(self.classes),
                "temperature": self.temperature,
                "facts": self.facts,
                "encoder": {
                    "class": type(self.encoder).__name__,
                    "options": self.encoder.options,
                    "facts": artifacts.put_json(learned.facts) if learned.facts else None,
                    "tensors": artifacts.put_tensors(learned.tensors) if learned.tensors else None,
                },
                "learner": {
                    "class": type(self.learner).__name__,
                    "options": self.learner.options,
                    "spec": vars(self.learner.spec),
                    "tensors": artifacts.put_tensors(self.learner.state_dict()),
                },
            }
        )

    @staticmethod
    def parts(artifacts: Artifacts, name: str) -> set[str]:
        """Names of all artifacts that a stored model is made of.

        Args:
            artifacts: where it is.
            name: what :meth:`save` returned.
        """
        saved = artifacts.json(name)
        encoder = saved["encoder"]
        found = {name, encoder["facts"], encoder["tensors"], saved["learner"]["tensors"]}
        return {part for part in found if part}

    @classmethod
    def load(cls, artifacts: Artifacts, name: str) -> Model:
        """Builds a model that was stored; no code comes with it, and none of it is run.

        Args:
            artifacts: where it is.
            name: what :meth:`save` returned.

        Raises:
            UsageError: it is not there, damaged, or of another version of this package.
        """
        saved = artifacts.json(name)
        if saved.get("format") != FORMAT:
            raise UsageError(
                f"model {name} is in format {saved.get('format')} and this package reads "
                f"{FORMAT}: install the version of lightning_evolve that wrote it"
            )
        encoder = _encoder(artifacts.folder, json.dumps(saved["encoder"], sort_keys=True))
        recipe = saved["learner"]
        spec = {**recipe["spec"], "shape": tuple(recipe["spec"]["shape"])}
        spec["class_names"] = tuple(spec["class_names"])
        learner = _class(all_learners, recipe["class"])(DataSpec(**spec), **recipe["options"])
        learner.load_state_dict(artifacts.tensors(recipe["tensors"]))
        return cls(
            encoder,
            learner.eval(),
            tuple(saved["classes"]),
            saved["temperature"],
            saved["facts"],
        )


@lru_cache(maxsize=4)
def _encoder(folder: Path, recipe: str) -> Encoder:
    """An encoder, which champions share: none of them changes it, and it may be large."""
    saved, artifacts = json.loads(recipe), Artifacts(folder)
    encoder: Encoder = _class(all_encoders, saved["class"])(**saved["options"])
    encoder.restore(
        Entry(
            artifacts.tensors(saved["tensors"]) if saved["tensors"] else {},
            artifacts.json(saved["facts"]) if saved["facts"] else {},
        )
    )
    return encoder


@contextmanager
def _seen_by_head(learner: Learner) -> Iterator[list[Tensor]]:
    """Collects what the output layer is given; nothing, where a learner does not call it."""
    seen: list[Tensor] = []
    head = getattr(learner, "head", None)
    if not isinstance(head, nn.Module):
        yield seen
        return
    handle = head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        yield seen
    finally:
        handle.remove()


def _class(package: Any, name: str) -> Any:
    found = getattr(package, name, None)
    if not isinstance(found, type) or not issubclass(found, Encoder | Learner):
        raise UsageError(f"a model names the class {name!r}, which this package does not have")
    return found
