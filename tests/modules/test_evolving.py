"""The two-optimizer module under Lightning."""

from __future__ import annotations

import warnings
from dataclasses import replace
from functools import partial

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from lightning_evolve.data import Pixels, Words
from lightning_evolve.errors import UsageError
from lightning_evolve.estimators import EvolutionStrategies, FirstOrder, PersistentES, Unrolled
from lightning_evolve.learners import CNN, LSTM
from lightning_evolve.meta_learners import SGD, Adam, CoordinateMLP, Gains, Linear
from lightning_evolve.modules import Classifier, EvolvingClassifier
from lightning_evolve.modules.checkpoints import check_same_data
from lightning_evolve.rewards import Accuracy
from lightning_evolve.streams import BatchStream
from lightning_evolve.tasks import DataSpec
from tests.modules.small import difference, module, stream, trainer


def test_steps_count_outer_steps_one_a_batch(tmp_path):
    """Two optimizers, and yet max_steps, checkpoints and the log count batches."""
    logger = CSVLogger(str(tmp_path), name="", version="")
    saved = ModelCheckpoint(str(tmp_path), filename="{step}", every_n_train_steps=5, save_top_k=-1)
    t = trainer(
        tmp_path,
        max_steps=12,
        logger=logger,
        callbacks=[saved],
        enable_checkpointing=True,
        log_every_n_steps=4,
        limit_val_batches=0,
    )
    t.fit(module(theta="persistent"), datamodule=stream())
    assert t.global_step == 12
    assert sorted(p.name for p in tmp_path.glob("*.ckpt")) == ["step=10.ckpt", "step=5.ckpt"]
    lines = (tmp_path / "metrics.csv").read_text().splitlines()
    column = lines[0].split(",").index("step")
    assert [line.split(",")[column] for line in lines[1:]] == ["3", "7", "11"]


def test_persistent_theta_is_the_average_over_tasks(tmp_path):
    """One outer step by hand: theta moves to the mean of where each task takes it."""
    from lightning_evolve.inner_loop import adapt, detached

    data = stream()
    data.setup()
    m = module(theta="persistent", meta_learner=SGD, steps=3, learner=CNN)
    m.build(data.spec)
    before = detached({n: p.clone() for n, p in m.theta().items()})
    tasks = [data.training_task(i) for i in range(4)]
    goals = [adapt(m.learner, m.meta_learner, before, t, alpha=0.01, steps=3).theta for t in tasks]
    trainer(tmp_path, max_steps=1, limit_val_batches=0).fit(m, datamodule=data)
    for name, p in m.theta().items():
        mean = torch.stack([goal[name] for goal in goals]).mean(dim=0)
        torch.testing.assert_close(p.detach(), mean, rtol=1e-5, atol=1e-7)
        assert not torch.equal(p.detach(), before[name])
    assert m.state.step == 3


def test_episodic_theta_returns_to_its_initial_value(tmp_path):
    m = module()
    data = stream()
    data.setup()
    m.build(data.spec)
    before = {n: p.clone() for n, p in m.theta().items()}
    phi = {n: p.clone() for n, p in m.meta_learner.phi().items()}
    trainer(tmp_path, max_steps=3).fit(m, datamodule=data)
    assert all(torch.equal(p, before[n]) for n, p in m.theta().items())
    assert any(not torch.equal(p, phi[n]) for n, p in m.meta_learner.phi().items())


@pytest.mark.parametrize("rule", [SGD, Adam, Gains, Linear, CoordinateMLP])
@pytest.mark.parametrize("estimator", [Unrolled(), FirstOrder()])
def test_a_learned_initial_theta_composes_with_every_rule(tmp_path, rule, estimator):
    m = module(meta_learner=rule, estimator=estimator, learn_init=True, beta=1e-3)
    data = stream()
    data.setup()
    m.build(data.spec)
    before = {n: p.detach().clone() for n, p in m.theta().items()}
    trainer(tmp_path, max_steps=2).fit(m, datamodule=data)
    assert all(not torch.equal(p.detach(), before[n]) for n, p in m.theta().items())


def test_only_what_is_named_adapts(tmp_path):
    m = module(adapt=["head"], theta="persistent")
    data = stream()
    data.setup()
    m.build(data.spec)
    before = {n: p.clone() for n, p in m.learner.named_parameters()}
    trainer(tmp_path, max_steps=2).fit(m, datamodule=data)
    moved = {n for n, p in m.learner.named_parameters() if not torch.equal(p, before[n])}
    assert moved == {"head.weight", "head.bias"}


def test_a_reward_without_a_gradient_teaches_phi(tmp_path):
    m = module(estimator=EvolutionStrategies(pairs=2), reward=Accuracy())
    data = stream()
    data.setup()
    m.build(data.spec)
    trainer(tmp_path, max_steps=3).fit(m, datamodule=data)
    assert m.meta_learner.log_gains.abs().sum() > 0


def test_a_clipped_meta_gradient_has_the_norm_asked_for(tmp_path):
    seen = []

    class Look(L.Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            seen.append(
                sum(float(p.grad.square().sum()) for p in pl_module.meta_learner.parameters())
                ** 0.5
            )

    trainer(tmp_path, max_steps=4, callbacks=[Look()], limit_val_batches=0).fit(
        module(clip=1e-4), datamodule=stream()
    )
    assert len(seen) == 4
    assert all(norm == pytest.approx(1e-4, rel=1e-2) for norm in seen)


def test_beta_falls_to_zero_over_the_run(tmp_path):
    m = module(beta_schedule="cosine", beta=0.05)
    trainer(tmp_path, max_steps=8, limit_val_batches=0).fit(m, datamodule=stream())
    assert m.trainer.optimizers[1].param_groups[0]["lr"] == pytest.approx(0, abs=1e-9)


def test_a_cosine_needs_an_end(tmp_path):
    t = trainer(tmp_path, max_epochs=-1, max_time="00:00:00:01")
    with pytest.raises(UsageError, match=r"give --trainer\.max_epochs"):
        t.fit(module(beta_schedule="cosine"), datamodule=stream())


def test_the_reward_of_persistent_theta_is_that_after_the_last_batch():
    """The steps after which a training task is scored say nothing about a longer one."""
    data = stream()
    data.setup()
    m = module(theta="persistent", steps=1, measurements=1)
    m.build(data.spec)
    task = data.tasks("validation", 1)[0]
    longer = task._replace(support=task.support * 3)
    predictions, reward = m.adapted_logits(longer)
    assert torch.equal(reward, m.reward(predictions, task.query.labels))


class Spoiled(EvolutionStrategies):
    """An estimate of so many is NaN."""

    every = 2
    played = 0

    def __call__(self, episode):
        estimate = super().__call__(episode)
        type(self).played += 1
        if type(self).played % self.every == 0:
            spoiled = {n: t * torch.nan for n, t in estimate.phi.items()}
            estimate = estimate._replace(phi=spoiled)
        return estimate


def test_estimates_that_are_not_finite_are_left_out_and_told_once_an_epoch(tmp_path):
    m = module(estimator=Spoiled())
    with pytest.warns(UserWarning, match=r"20 of 40 gradients .* were not finite"):
        trainer(tmp_path, max_epochs=1).fit(m, datamodule=stream())
    phi = torch.cat([p.flatten() for p in m.meta_learner.parameters()])
    assert phi.isfinite().all()
    assert phi.abs().sum() > 0


def test_a_run_that_only_diverges_stops_and_says_so(tmp_path):
    with pytest.raises(UsageError, match=r"no gradient .* was finite .*lower alpha \(now 1e\+30\)"):
        trainer(tmp_path, max_epochs=2).fit(module(alpha=1e30), datamodule=stream())


@pytest.mark.parametrize("theta", ["episodic", "persistent"])
def test_resume_is_exact(tmp_path, theta):
    """Stopped in the middle of an epoch and resumed: bit for bit the uninterrupted run."""
    whole, first, second = module(theta=theta), module(theta=theta), module(theta=theta)
    trainer(tmp_path, max_steps=14).fit(whole, datamodule=stream())
    stopped = trainer(tmp_path, max_steps=7)
    stopped.fit(first, datamodule=stream())
    stopped.save_checkpoint(tmp_path / "c.ckpt")
    trainer(tmp_path, max_steps=14).fit(
        second, datamodule=stream(), ckpt_path=tmp_path / "c.ckpt", weights_only=True
    )
    assert difference(whole.state_dict(), second.state_dict()) == 0
    assert (whole.state is None) == (theta == "episodic")
    for kind, tensors in whole.state.accumulators.items() if whole.state else ():
        for name, t in tensors.items():
            assert torch.equal(t, second.state.accumulators[kind][name])
    assert difference(whole.state_dict(), first.state_dict()) > 0


def test_a_checkpoint_loads_without_a_trainer(tmp_path):
    m = module()
    t = trainer(tmp_path, max_steps=2)
    t.fit(m, datamodule=stream())
    t.save_checkpoint(tmp_path / "c.ckpt")
    again = EvolvingClassifier.load_from_checkpoint(
        tmp_path / "c.ckpt", weights_only=True, learner=partial(CNN, channels=(3, 4)), steps=2
    )
    assert difference(m.state_dict(), again.state_dict()) == 0


def test_a_checkpoint_of_another_learner_is_refused(tmp_path):
    t = trainer(tmp_path, max_steps=1)
    t.fit(module(), datamodule=stream())
    t.save_checkpoint(tmp_path / "c.ckpt")
    other = module(learner=partial(CNN, channels=(5, 4)))
    with pytest.raises(UsageError, match=r"another model: .* is \(3, 1, 3, 3\) there"):
        trainer(tmp_path, max_steps=2).fit(
            other, datamodule=stream(), ckpt_path=tmp_path / "c.ckpt", weights_only=True
        )
    plain = Classifier(partial(CNN, channels=(3, 4)))
    plain.build(DataSpec(3, shape=(1, 8, 8), class_names=("a", "b", "c")))
    with pytest.raises(UsageError, match="another model"):
        plain.on_load_checkpoint(torch.load(tmp_path / "c.ckpt", weights_only=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": 0.0}, "alpha is 0.0"),
        ({"alpha": -1.0}, "alpha is -1"),
        ({"alpha": float("nan")}, "alpha is nan"),
        ({"beta": float("inf")}, "beta is inf"),
        ({"steps": 0}, "steps is 0"),
        ({"measurements": 3}, "measurements is 3"),
        ({"anneal": 5}, "anneal is 5 and measurements is 1"),
        ({"anneal": -1, "measurements": 2}, "anneal is -1"),
        (
            {"anneal": 5, "measurements": 2, "estimator": PersistentES(window=1)},
            "anneal with PersistentES, which does not weigh measurements",
        ),
        ({"clip": -1.0}, "clip is -1"),
        ({"estimator": Unrolled(truncation=5)}, "truncation is 5 and there are 2 inner steps"),
        ({"reward": Accuracy()}, "EvolutionStrategies"),
        ({"learn_init": True, "theta": "persistent"}, "persistent"),
        ({"learn_init": True, "estimator": EvolutionStrategies()}, "initial theta"),
        ({"learn_init": True, "estimator": Unrolled(truncation=1)}, "no gradient"),
        ({"learn_init": True, "estimator": Unrolled(truncation=4), "steps": 6}, "first 2 inner"),
    ],
)
def test_what_cannot_work_is_refused(options, message):
    with pytest.raises(UsageError, match=message):
        module(**options)


def test_windows_without_a_reward_are_warned_of():
    with pytest.warns(UserWarning, match=r"no reward is measured in 2 of the 3 windows"):
        module(steps=6, estimator=Unrolled(truncation=2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        module(steps=6, measurements=3, estimator=Unrolled(truncation=2))


def test_a_pattern_that_names_no_parameter_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"'encoder\.\*' names no parameter"):
        trainer(tmp_path, max_steps=1).fit(module(adapt=["encoder.*"]), datamodule=stream())


def test_the_plain_classifier_trains_only_what_is_named(tmp_path):
    m = Classifier(partial(CNN, channels=(3, 4)), adapt=["head"])
    m.build(DataSpec(2, shape=(1, 8, 8), class_names=("3", "8")))
    before = {n: p.clone() for n, p in m.learner.named_parameters()}
    data = BatchStream(source="digits", classes=["3", "8"], encoder=Pixels(size=8), batch_size=8)
    trainer(tmp_path, max_steps=2).fit(m, datamodule=data)
    moved = {n for n, p in m.learner.named_parameters() if not torch.equal(p, before[n])}
    assert moved == {"head.weight", "head.bias"}


def test_a_source_that_has_changed_since_the_run_is_refused():
    spec = DataSpec(2, 9, class_names=("a", "b"), encoding="x")
    check_same_data(spec, spec, "s")
    check_same_data(DataSpec(3), DataSpec(3, class_names=()), "s")
    check_same_data(replace(spec, encoding=""), spec, "s")
    with pytest.raises(UsageError, match=r"source 's' has other classes .* has 'z' and lacks 'a'"):
        check_same_data(replace(spec, class_names=("b", "z")), spec, "s")
    with pytest.raises(UsageError, match="other training rows than the checkpoint's run"):
        check_same_data(replace(spec, encoding="y"), spec, "s")
    mixed = (DataSpec(2, families={"f": replace(spec, encoding=e)}) for e in "xy")
    with pytest.raises(UsageError, match="source 'f' has other training rows"):
        check_same_data(*mixed, None)


def test_a_test_on_other_words_than_those_of_the_run_is_refused(tmp_path):
    def data(words):
        rows = [f"{w} {n} of c{c},c{c}" for c in range(4) for n, w in enumerate(words)]
        (tmp_path / "x.csv").write_text("\n".join(["text,label", *rows]))
        return BatchStream(
            source=str(tmp_path / "x.csv"),
            encoder=Words(max_vocabulary=12),
            validation_rows=2,
            batch_size=4,
            cache_dir=str(tmp_path / "cache"),
        )

    def fresh():
        small = partial(LSTM, embedding_size=3, hidden_size=3)
        return module(learner=small, theta="persistent", steps=1, estimator=EvolutionStrategies())

    words = ["one", "two", "three", "four", "five", "six", "seven", "eight"]
    t = trainer(tmp_path, max_steps=1, limit_val_batches=0)
    t.fit(fresh(), datamodule=data(words))
    t.save_checkpoint(tmp_path / "c.ckpt")
    with pytest.raises(UsageError, match="other training rows than the checkpoint's run"):
        trainer(tmp_path).test(
            fresh(), data([*words, "nine"]), ckpt_path=tmp_path / "c.ckpt", weights_only=True
        )


def test_mini_batches_of_fixed_classes_need_a_theta_that_goes_on():
    spec = DataSpec(3, shape=(1, 8, 8), class_names=("a", "b", "c"))
    with pytest.raises(UsageError, match="theta is episodic and the data are mini-batches"):
        module().build(spec)
    module(theta="persistent").build(spec)
    module(learn_init=True).build(spec)


def test_a_persistent_run_begins_from_an_episodic_ones_checkpoint(tmp_path):
    first, second = module(), module(theta="persistent")
    episodic = trainer(tmp_path, max_steps=2, limit_val_batches=0)
    episodic.fit(first, datamodule=stream())
    episodic.save_checkpoint(tmp_path / "c.ckpt")
    saved = torch.load(tmp_path / "c.ckpt", weights_only=True)
    second.build(first.spec)
    second.on_load_checkpoint(saved)
    assert second.state.step == 0
