from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from lightning_evolve.errors import UsageError
from lightning_evolve.estimators import Episode, Estimate, FirstOrder, Unrolled
from lightning_evolve.inner_loop import Adapted
from lightning_evolve.learners import CNN, LSTM, Conv4, Head
from lightning_evolve.learners.base import Learner, LearnerFactory
from lightning_evolve.meta_learners import SGD, Adam, Gains, MetaLearnerFactory, MetaSGD
from lightning_evolve.rewards import NegativeLoss
from lightning_evolve.tasks import Batch, DataSpec, Task

IMAGES, FEATURES = DataSpec(3, shape=(1, 18, 18)), DataSpec(3, shape=(6,))


class Normed(Learner):
    """Layer norm in the middle of a perceptron."""

    def __init__(self, spec: DataSpec) -> None:
        super().__init__(spec)
        width = spec.shape[0]
        self.first, self.norm = nn.Linear(width, 8), nn.LayerNorm(8)
        self.head = nn.Linear(8, spec.num_classes)

    def forward(self, features: Tensor) -> Tensor:
        return self.head(self.norm(self.first(features)).relu())


class Convolutional(Learner):
    """A convolution with a norm."""

    def __init__(self, spec: DataSpec, norm: nn.Module) -> None:
        super().__init__(spec)
        layers = (nn.Conv2d(1, 4, 3, stride=4), norm, nn.ReLU(), nn.MaxPool2d(2), nn.Flatten())
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(16, spec.num_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.layers(images))


LEARNERS = {
    "head": (partial(Head, hidden_size=7), FEATURES),
    "layer norm": (Normed, FEATURES),
    "cnn": (partial(CNN, channels=(2, 3)), IMAGES),
    "group norm": (lambda spec: Convolutional(spec, nn.GroupNorm(2, 4)), IMAGES),
    "batch norm": (
        lambda spec: Convolutional(spec, nn.BatchNorm2d(4, track_running_stats=False)),
        IMAGES,
    ),
}


def episodes(
    factory: LearnerFactory,
    spec: DataSpec,
    rule: MetaLearnerFactory,
    rows: tuple[int, ...] = (5, 5, 5),
) -> list[Episode]:
    torch.manual_seed(0)
    learner = factory(spec).double()
    for p in learner.parameters():  # a head that begins at zero hides the other gradients
        p.data.add_(torch.randn_like(p), alpha=0.1)
    name = "features" if len(spec.shape) == 1 else "images"

    def batch(count: int) -> Batch:
        inputs = {name: torch.rand(count, *spec.shape, dtype=torch.float64)}
        return Batch(inputs, torch.randint(0, 3, (count,)), torch.arange(count))

    theta = dict(learner.named_parameters())
    update = rule(theta).double()
    start = Adapted(theta, update.init({n: p.detach() for n, p in theta.items()}))
    return [
        Episode(
            learner=learner,
            meta_learner=update,
            start=start,
            task=Task((batch(count), batch(4)), batch(6), index),
            alpha=0.3,
            steps=3,
            reward=NegativeLoss(),
            measured=(2, 3),
        )
        for index, count in enumerate(rows)
    ]


def gradients(estimates: list[Estimate]) -> list[Tensor]:
    both = [{**e.theta, **{f"phi.{n}": g for n, g in e.phi.items()}} for e in estimates]
    return [torch.stack([e[name] for e in both]).mean(dim=0) for name in both[0]]


@pytest.mark.parametrize("estimator", [Unrolled, FirstOrder, partial(Unrolled, checkpoint=1)])
@pytest.mark.parametrize("rule", [SGD, MetaSGD])
@pytest.mark.parametrize("learner", LEARNERS)
def test_all_at_once_is_one_after_another(
    learner: str, rule: MetaLearnerFactory, estimator: type[Unrolled]
) -> None:
    factory, spec = LEARNERS[learner]
    played = episodes(factory, spec, rule)
    estimator(batched=True).check_learner(played[0].learner)
    loop, batched = (estimator(batched=b).play(played) for b in (False, True))
    torch.testing.assert_close(gradients(batched), gradients(loop), rtol=1e-9, atol=1e-12)
    for ours, one in zip(batched, loop, strict=True):
        torch.testing.assert_close(ours.logits, one.logits)
        torch.testing.assert_close(ours.adapted.theta, one.adapted.theta)
    rewards = [torch.stack([e.reward for e in side]).mean() for side in (batched, loop)]
    torch.testing.assert_close(*rewards)


def test_a_rule_with_a_state() -> None:
    played = episodes(*LEARNERS["head"], partial(Adam, ratios={"head.*": 2.0}))
    loop, batched = (Unrolled(batched=b).play(played) for b in (False, True))
    torch.testing.assert_close(gradients(batched), gradients(loop), rtol=1e-9, atol=1e-12)
    states = [side[1].adapted.state.accumulators for side in (batched, loop)]
    torch.testing.assert_close(*states)


def test_vmap_over_gradients_is_wrong_through_a_layer_norm() -> None:
    """Why the engine has only the forward pass under vmap."""
    played = episodes(*LEARNERS["layer norm"], SGD)
    learner, count = played[0].learner, len(played)

    def loss(theta: dict[str, Tensor], batch: Batch) -> Tensor:
        out = functional_call(learner, theta, (), batch.inputs)
        return nn.functional.cross_entropy(out, batch.labels)

    def task(theta: dict[str, Tensor], support: Batch, query: Batch) -> Tensor:
        moved = {n: theta[n] - 0.3 * g for n, g in grad(loss)(theta, support).items()}
        return -loss(moved, query)

    def stacked(batches: list[Batch]) -> Batch:
        inputs = {"features": torch.stack([b.inputs["features"] for b in batches])}
        return Batch(inputs, *(torch.stack([b[i] for b in batches]) for i in (1, 2)))

    data = [stacked([e.task.support[0] for e in played]), stacked([e.task.query for e in played])]

    def mean(theta: dict[str, Tensor]) -> Tensor:
        return vmap(task, in_dims=(None, 0, 0))(theta, *data).sum() / count

    theta = {n: p.detach() for n, p in played[0].start.theta.items()}
    usual = list(grad(mean)(theta).values())
    one_step = [e._replace(steps=1, measured=(1,)) for e in played]
    loop, batched = (gradients(Unrolled(batched=b).play(one_step)) for b in (False, True))

    def off(found: list[Tensor]) -> float:
        pairs = zip(found, loop, strict=True)
        gone = torch.stack([(a - b).norm() for a, b in pairs]).norm()
        return float(gone / torch.stack([b.norm() for b in loop]).norm())

    assert off(batched) < 1e-9
    assert off(usual) > 1e-4


def test_refused_are_other_parts_rules_and_shapes() -> None:
    estimator = Unrolled(batched=True)
    with pytest.raises(UsageError, match="whose LSTM is not known to be right"):
        estimator.check_learner(LSTM(DataSpec(3, vocab_size=9)))
    dropout = Normed(FEATURES)
    dropout.norm = nn.Dropout(0.1)
    with pytest.raises(UsageError, match="Dropout"):
        estimator.check_learner(dropout)
    theta = dict(Head(FEATURES).named_parameters())
    with pytest.raises(UsageError, match="Gains, which looks at whole tensors"):
        estimator.check_rule(Gains(theta))
    with pytest.raises(UsageError, match="BatchNorm2d"):
        estimator.check_learner(Convolutional(IMAGES, nn.BatchNorm2d(4)))
    with pytest.raises(UsageError, match="batched: true with Conv4, whose forward pass"):
        estimator.play(episodes(Conv4, IMAGES, SGD))
    with pytest.raises(UsageError, match=r"different shapes, \(4, 6\) and \(5, 6\)"):
        estimator.play(episodes(*LEARNERS["head"], SGD, rows=(5, 4, 5)))
