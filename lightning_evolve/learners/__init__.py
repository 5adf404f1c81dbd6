"""Base classifiers theta, from encoded inputs to logits: one architecture a file."""

from lightning_evolve.learners.base import Learner as Learner
from lightning_evolve.learners.base import LearnerFactory as LearnerFactory
from lightning_evolve.learners.bert import BERT as BERT
from lightning_evolve.learners.cnn import CNN as CNN
from lightning_evolve.learners.conv4 import Conv4 as Conv4
from lightning_evolve.learners.head import Head as Head
from lightning_evolve.learners.lstm import LSTM as LSTM
from lightning_evolve.learners.metric_head import MetricHead as MetricHead
from lightning_evolve.learners.ngram_head import NGramHead as NGramHead

__all__ = [
    "BERT",
    "CNN",
    "LSTM",
    "Conv4",
    "Head",
    "Learner",
    "LearnerFactory",
    "MetricHead",
    "NGramHead",
]
