"""One rule over several families: fresh starts, the same phi, any number of processes."""

from __future__ import annotations

import json
from functools import partial

import pytest
import torch

from lightning_evolve.errors import UsageError
from lightning_evolve.estimators import EvolutionStrategies, PersistentES, Unrolled
from lightning_evolve.learners import CNN, Head
from lightning_evolve.meta_learners import Gains
from lightning_evolve.modules import EvolvingClassifier, EvolvingRule
from lightning_evolve.pretrained import export, load_rule
from lightning_evolve.rewards import NegativeLoss, RelativeLoss
from lightning_evolve.streams import MixtureStream
from tests.modules import small
from tests.modules.small import FlatPixels, difference, trainer
from tests.modules.test_distributed import RawBackward, run

LEARNERS = {
    "cnn": partial(CNN, channels=(3, 4)),
    "mlp": partial(Head, hidden_size=5),
    "wide": partial(Head, hidden_size=7),
}


def stream(**options):
    streams = {
        "cnn": dict(val_tasks=2),
        "mlp": dict(encoder=FlatPixels(size=8), ways=2, queries=5, val_tasks=1),
        "wide": dict(encoder=FlatPixels(size=8), val_tasks=1),
    }
    built = {
        family: small.stream(**{"tasks_per_step": 4, "steps_per_epoch": 100, **settings})
        for family, settings in streams.items()
    }
    return MixtureStream(built, **{"tasks_per_step": 6, "steps_per_epoch": 5, **options})


def module(cls=EvolvingRule, **options):
    defaults = dict(estimator=Unrolled(), alpha=0.01, beta=0.05, steps=2, measurements=2)
    return cls(**{"learners": LEARNERS, **defaults, **options})


@pytest.fixture(scope="module")
def data():
    built = stream()
    built.setup()
    return built


@pytest.fixture
def built(data):
    rule = module()
    rule.build(data.spec)
    return rule


def test_every_episode_begins_from_a_theta_of_its_own(data, built):
    again = module()
    again.build(data.spec)
    other_seed = module(seed=1)
    other_seed.build(data.spec)
    starts = []
    for index in range(6):
        task = data.training_task(index)
        learner, _, start = built.players(task)
        assert start.theta.keys() == dict(learner.named_parameters()).keys()
        starts.append(start.theta)
        assert not any(t.requires_grad for t in start.theta.values())
        for name, t in again.players(task).start.theta.items():
            assert torch.equal(t, start.theta[name]), "a function of seed and index"
        away = other_seed.players(task).start.theta
        assert not torch.equal(away["head.weight"], start.theta["head.weight"])
    for family in range(3):
        one, other = starts[family]["head.weight"], starts[family + 3]["head.weight"]
        assert not torch.equal(one, other)
    before = torch.get_rng_state()
    built.players(task)
    assert torch.equal(before, torch.get_rng_state())


def test_all_learners_are_updated_by_the_very_same_phi(data, built):
    seen = {}
    for index in range(3):
        task = data.training_task(index)
        learner, rule, _ = built.players(task)
        seen[task.family] = type(learner).__name__
        assert rule.log_gains is built.meta_learner.log_gains
        estimate = built.estimator(built.episode(task))
        assert estimate.phi["log_gains"].abs().max() > 0
    assert seen == {"cnn": "CNN", "mlp": "Head", "wide": "Head"}
    assert set(built.meta_learner.roles) == {"convolution", "matrix", "head", "vector"}


@pytest.mark.parametrize(
    ("estimator", "precision"),
    # Differences of rewards have few digits left in 32 bits.
    [(Unrolled(), "32-true"), (EvolutionStrategies(pairs=2), "64-true")],
)
def test_two_processes_end_where_one_does(tmp_path, estimator, precision):
    make, options = partial(module, estimator=estimator), {"precision": precision, "max_steps": 8}
    alone = run(tmp_path / "one", 1, make, stream, **options)[0]
    two = run(tmp_path / "two", 2, make, stream, **options)
    assert difference(*two) == 0, "the processes agree bit for bit"
    assert difference(alone, two[0]) < 1e-6
    assert {"val/loss", "val/reward"} <= alone.keys()
    assert alone["meta_learner.log_gains"].abs().max() > 0.01, "phi has learned"


def test_a_wrong_variant_fails_the_same_check(tmp_path):
    class Wrong(RawBackward, EvolvingRule):
        """Control: as in test_distributed."""

    alone = run(tmp_path / "one", 1, module, stream, max_steps=8)[0]
    two = run(tmp_path / "two", 2, partial(module, Wrong), stream, max_steps=8)
    assert max(difference(alone, rank) for rank in two) > 1e-5


@pytest.mark.parametrize("estimator", [Unrolled(), PersistentES(window=1)])
def test_a_resumed_run_ends_where_a_whole_one_does(tmp_path, estimator):
    def fit(steps, ckpt_path=None):
        loops, rule = trainer(tmp_path, max_steps=steps), module(estimator=estimator)
        loops.fit(rule, datamodule=stream(tasks_per_step=2), ckpt_path=ckpt_path)
        loops.save_checkpoint(tmp_path / f"{steps}.ckpt")
        return rule.state_dict()

    whole = fit(9)
    fit(4)
    again = fit(9, tmp_path / "4.ckpt")
    assert difference(whole, again) == 0
    assert whole["meta_learner.log_gains"].abs().max() > 0.01


def test_validation_is_the_mean_over_the_families(data):
    loops, rule = trainer(".", devices=1), module()
    loops.validate(rule, datamodule=stream(), verbose=False)
    found = {name: float(value) for name, value in loops.callback_metrics.items()}
    for metric in ("loss", "accuracy", "reward"):
        of_families = [found[f"val/{family}/{metric}"] for family in LEARNERS]
        assert found[f"val/{metric}"] == pytest.approx(sum(of_families) / 3, abs=1e-6)
    rewards = [rule.adapted_logits(task)[1] for task in data.tasks("cnn", "validation", 2)]
    assert found["val/cnn/reward"] == pytest.approx(float(sum(rewards)) / 2, abs=1e-6)


def test_a_validation_cut_short_has_the_families_that_it_got_to():
    loops = trainer(".", devices=1, limit_val_batches=2)
    loops.validate(module(), datamodule=stream(), verbose=False)
    assert float(loops.callback_metrics["val/loss"]) > 0
    assert "val/mlp/loss" in loops.callback_metrics
    assert "val/wide/loss" not in loops.callback_metrics


def test_the_rule_is_exported_with_what_it_was_trained_on(tmp_path):
    loops, rule = trainer(tmp_path, max_steps=1, limit_val_batches=0), module()
    loops.fit(rule, datamodule=stream())
    loops.save_checkpoint(tmp_path / "c.ckpt")
    export(tmp_path / "c.ckpt", tmp_path / "rule")
    config = json.loads((tmp_path / "rule" / "config.json").read_text())
    assert config["trained_on"]["families"] == [
        "cnn: digits, CNN",
        "mlp: digits, Head",
        "wide: digits, Head",
    ]
    assert "cnn: digits, CNN" in (tmp_path / "rule" / "README.md").read_text()
    exported, _ = load_rule(tmp_path / "rule")
    assert torch.equal(exported.log_gains, rule.meta_learner.log_gains)
    fresh = EvolvingRule.load_from_checkpoint(
        tmp_path / "c.ckpt", learners=LEARNERS, weights_only=True
    )
    assert fresh.spec == rule.spec


def test_the_reward_weighs_families_by_ratios_of_their_losses():
    logits = torch.tensor([[1.0, 0.0]], requires_grad=True)
    labels = torch.tensor([1])
    plain, relative = (r(logits, labels) for r in (NegativeLoss(), RelativeLoss(floor=1e-6)))
    (g,), (h,) = (torch.autograd.grad(r, logits) for r in (plain, relative))
    assert torch.allclose(h, g / -plain, atol=1e-5)
    with pytest.raises(UsageError, match="floor is 0"):
        RelativeLoss(floor=0)


def test_the_scale_of_a_family_does_not_decide(data):
    class Louder(RelativeLoss):
        """The same, a thousand times as large for tasks of two classes, which one family has."""

        def __call__(self, logits, labels):
            return super().__call__(logits, labels) * (1000 if logits.shape[1] == 2 else 1)

    ends = []
    for reward in (RelativeLoss(), Louder()):
        rule = module(reward=reward, clip=0)
        trainer(".", max_steps=3, devices=1, limit_val_batches=0).fit(rule, datamodule=stream())
        ends.append(rule.meta_learner.log_gains.detach())
    assert torch.allclose(*ends, atol=1e-5)
    assert rule.balance.mean_square[1] > 1e4 * rule.balance.mean_square[0]


def test_what_does_not_fit_together_is_refused_in_one_line(data):
    with pytest.raises(UsageError, match="per: role"):
        module(meta_learner=Gains).build(data.spec)
    for learners in (
        {k: v for k, v in LEARNERS.items() if k != "wide"},
        {**LEARNERS, "deep": LEARNERS["wide"]},
    ):
        with pytest.raises(UsageError, match="same families"):
            module(learners=learners).build(data.spec)
    with pytest.raises(UsageError, match="cannot share a task among 2"):
        module().check_share(2)
    quick = partial(trainer, ".", max_steps=1, devices=1)
    with pytest.raises(UsageError, match="use the model EvolvingRule"):
        quick().fit(small.module(EvolvingClassifier), datamodule=stream())
    with pytest.raises(UsageError, match="use the model EvolvingClassifier"):
        quick().fit(module(), datamodule=small.stream())
