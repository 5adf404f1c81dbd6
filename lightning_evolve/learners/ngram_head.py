"""A linear head on bags of n-grams in a learned metric."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from lightning_evolve.errors import UsageError
from lightning_evolve.learners.base import Learner, zero
from lightning_evolve.learners.checks import check_kind
from lightning_evolve.tasks import DataSpec

# Length of the embedded part beside the n-grams' own, of 1, at the start; both have parameters of
# size 1 then, which a step of Adam moves by as much.
_SHARE = 0.25


class NGramHead(Learner):
    r"""Weighted n-grams, reweighted and embedded, and a ``head`` that starts at zero.

    .. math::
        u = g \odot x, \qquad v = \Big[u, \frac{1}{4 \sqrt{e}} E^\top u\Big], \qquad
        z = \frac{v}{\|v\|}, \qquad \mathrm{logits} = W z + b

    x is the TF-IDF vector of a text, with as many coordinates as there are n-grams, each of which
    has a gain g, 1 at the start, and an embedding of e random numbers in E. W starts at zero, from
    where one step of gradient descent gives the nearest mean as in :class:`MetricHead`: that of
    TF-IDF features, if there are no embeddings. A metric of low rank on n-grams is what fastText
    learns (Joulin et al. 2017).

    Args:
        spec: what the data looks like; ``vocab_size`` n-grams.
        embedding_size: width of the embeddings, 0 for none.

    Raises:
        UsageError: if the data is not n-grams, or ``embedding_size`` is negative.
    """

    first_layer = "gains"

    def __init__(self, spec: DataSpec, *, embedding_size: int = 32) -> None:
        super().__init__(spec)
        check_kind("NGramHead", "n-grams", spec)
        if embedding_size < 0:
            raise UsageError(
                f"embedding_size of NGramHead is {embedding_size}: give 1 or more, or 0 for none"
            )
        self.gains = nn.Embedding(spec.vocab_size, 1)
        nn.init.ones_(self.gains.weight)
        self.embedding: nn.Embedding | None = None
        if embedding_size:
            self.embedding = nn.Embedding(spec.vocab_size, embedding_size)
        self.head = nn.Linear(spec.vocab_size + embedding_size, spec.num_classes)
        zero(self.head)

    def forward(self, input_ids: Tensor, weights: Tensor) -> Tensor:
        """Classify texts.

        Args:
            input_ids: numbers of n-grams, int64 of shape ``[rows, n-grams]``, none twice in a row.
            weights: their weights, float of the same shape, 0 for padding.

        Returns:
            Logits of shape ``[rows, num_classes]``.
        """
        vocabulary = self.spec.vocab_size
        bag = weights * self.gains(input_ids).squeeze(-1)
        by_ngram = functional.embedding(input_ids, self.head.weight[:, :vocabulary].t())
        logits = torch.einsum("rn,rnc->rc", bag, by_ngram)
        square = bag.square().sum(-1)
        if self.embedding is not None:
            mean = torch.einsum("rn,rne->re", bag, self.embedding(input_ids))
            mean = _SHARE * self.embedding.embedding_dim**-0.5 * mean
            logits = logits + mean @ self.head.weight[:, vocabulary:].t()
            square = square + mean.square().sum(-1)
        length = square.clamp_min(1e-12).sqrt().unsqueeze(-1)  # a text may have no known n-gram
        scaled: Tensor = logits / length + self.head.bias
        return scaled
