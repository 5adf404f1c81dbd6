r"""Synthetic topics: texts of made-up words, whose class is the topic that they are about.

A text of topic t is a bag of words from a mixture of what all texts have in common and what is
said of the topic, as in a unigram topic model (Nigam et al. 2000):

.. math::
    p(w \mid t) = (1 - q) \, p_{\mathrm{Zipf}}(w) + q \, p_t(w), \qquad
    p_{\mathrm{Zipf}}(w) \propto 1 / \mathrm{rank}(w)

The topics' words come from one vocabulary and are shared: a single word tells little, and words
of held-out topics are known from the others.
"""

from __future__ import annotations

import numpy as np

from lightning_evolve.data.rows import Rows

TOPICS, TEXTS = 200, 60  # texts a topic: enough for 20 shots and 40 queries
VOCABULARY, TOPIC_WORDS = 2_000, 40
SHORTEST, LONGEST = 8, 24  # words of a text
SHARE = 0.25  # q: of 10 topics, the nearest centroid of 10 shots finds the right one for .73

_SYLLABLES = [consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in "aeiou"]


def topics(seed: int = 0) -> Rows:
    """Draws texts.

    Args:
        seed: what they are a function of.

    Returns:
        ``TEXTS`` texts of each of ``TOPICS`` topics, labelled ``"topic000"`` and so on.
    """
    draw = np.random.default_rng(seed)
    common = 1 / np.arange(1, VOCABULARY + 1)
    common /= common.sum()
    words = np.array([_word(number) for number in range(VOCABULARY)])
    labels, texts = [], []
    for topic in range(TOPICS):
        own = draw.choice(VOCABULARY, TOPIC_WORDS, replace=False)
        lengths = draw.integers(SHORTEST, LONGEST + 1, TEXTS)
        count = int(lengths.sum())
        said = np.where(
            draw.random(count) < SHARE,
            draw.choice(own, count),
            draw.choice(VOCABULARY, count, p=common),
        )
        texts += [" ".join(text) for text in np.split(words[said], lengths.cumsum()[:-1])]
        labels += [f"topic{topic:03}"] * TEXTS
    return Rows(labels, texts=texts)


def _word(number: int) -> str:
    """A word of two or more syllables, another for each number.

    >>> _word(0), _word(1), _word(70)
    ('baba', 'beba', 'babe')
    """
    base = len(_SYLLABLES)
    first, second = number % base, number // base
    return _SYLLABLES[first] + _SYLLABLES[second]
