"""Rewards without a gradient: metrics, functions, and what is refused."""

from __future__ import annotations

import math

import pytest
import torch
from jsonargparse import ArgumentParser
from sklearn.metrics import cohen_kappa_score, f1_score
from torchmetrics import MeanSquaredError, MetricCollection
from torchmetrics.classification import (
    MulticlassCalibrationError,
    MulticlassCohenKappa,
    MulticlassConfusionMatrix,
)

from lightning_evolve.errors import UsageError
from lightning_evolve.estimators import FirstOrder
from lightning_evolve.rewards import Accuracy, Function, MacroF1, Metric, NegativeLoss, Reward

LOGITS = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(40) % 3  # the fourth class is predicted but never right


def margin(logits, labels):
    """How far the label's logit is above the mean."""
    return (logits.gather(1, labels[:, None])[:, 0] - logits.mean(dim=1)).mean()


def test_macro_f1_is_sklearns():
    ours = MacroF1()(LOGITS, LABELS)
    assert float(ours) == pytest.approx(f1_score(LABELS, LOGITS.argmax(dim=1), average="macro"))
    # Classes that neither occur nor are predicted do not count.
    right = torch.eye(4)[LABELS]
    assert float(MacroF1()(right, LABELS)) == 1


def test_any_metric_is_a_reward_and_keeps_nothing_from_task_to_task():
    reward = Metric(MulticlassCohenKappa(num_classes=4))
    expected = cohen_kappa_score(LABELS, LOGITS.argmax(dim=1))
    assert float(reward(LOGITS, LABELS)) == pytest.approx(expected, abs=1e-6)
    reward(torch.eye(4)[LABELS], LABELS)
    assert float(reward(LOGITS, LABELS)) == pytest.approx(expected, abs=1e-6)
    assert not reward.metric.sync_on_compute, "processes play different tasks"


def test_a_metric_that_is_better_when_lower_counts_as_its_negative():
    metric = MulticlassCalibrationError(num_classes=4)
    value = float(MulticlassCalibrationError(num_classes=4)(LOGITS, LABELS))
    assert value > 0
    assert float(Metric(metric)(LOGITS, LABELS)) == pytest.approx(-value)


def test_any_function_is_a_reward_in_the_precision_of_the_logits():
    assert Function(margin)(LOGITS.double(), LABELS).dtype == torch.float64
    assert float(Function(lambda _, labels: len(labels))(LOGITS, LABELS)) == 40
    traced = Function(margin)(LOGITS.clone().requires_grad_(), LABELS)
    assert not traced.requires_grad


@pytest.mark.parametrize(
    ("reward", "match"),
    [
        (lambda: Metric(MulticlassConfusionMatrix(num_classes=4)), "ConfusionMatrix"),
        (lambda: Function(lambda *_: math.nan)(LOGITS, LABELS), "gave nan"),
        (lambda: Function(lambda *_: torch.zeros(3))(LOGITS, LABELS), r"shape \(3,\)"),
        (lambda: Function(lambda *_: None)(LOGITS, LABELS), "gave None"),
        (lambda: Function(lambda *_: "good")(LOGITS, LABELS), "gave 'good'"),
        (lambda: Metric(MetricCollection([])), "MetricCollection is neither"),
        (lambda: Metric(MulticlassCohenKappa(num_classes=7))(LOGITS, LABELS), "4 classes"),
        (lambda: Metric(MeanSquaredError())(LOGITS, LABELS), "MeanSquaredError does not take"),
    ],
)
def test_what_is_no_score_is_refused_in_a_line(reward, match):
    with pytest.raises(UsageError, match=match) as error:
        reward()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("reward", [Function(margin), Metric(MeanSquaredError())])
def test_a_learner_that_diverged_has_no_score_and_the_reward_is_not_to_blame(reward):
    assert reward(torch.full_like(LOGITS, math.nan), LABELS).isnan()


def test_only_the_loss_has_a_gradient_to_follow():
    assert NegativeLoss().differentiable
    for reward in (
        Accuracy(),
        MacroF1(),
        Function(margin),
        Metric(MulticlassCohenKappa(num_classes=4)),
    ):
        assert not reward.differentiable
        with pytest.raises(UsageError, match="EvolutionStrategies"):
            FirstOrder().check(reward=reward, steps=2, measured=(2,), learn_init=False)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"class_path": "MacroF1"}, MacroF1),
        (
            {
                "class_path": "Metric",
                "init_args": {
                    "metric": {
                        "class_path": "torchmetrics.classification.MulticlassCohenKappa",
                        "init_args": {"num_classes": 4},
                    }
                },
            },
            Metric,
        ),
        ({"class_path": "Function", "init_args": {"function": f"{__name__}.margin"}}, Function),
    ],
)
def test_a_line_of_yaml_chooses_one(config, expected):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--reward", type=Reward)
    built = parser.instantiate(parser.parse_object({"reward": config})).reward
    assert isinstance(built, expected)
    assert built(LOGITS, LABELS).shape == ()
