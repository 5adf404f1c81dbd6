"""64-true, 32-true and bf16-mixed, from the inputs to the final table."""

from __future__ import annotations

import json
import sys
from functools import partial

import lightning as L
import pytest
import torch

from lightning_evolve.callbacks import Comparison
from lightning_evolve.data import Pixels, Words
from lightning_evolve.estimators import EvolutionStrategies, FirstOrder, Unrolled
from lightning_evolve.evaluation.curves import adaptation_curves
from lightning_evolve.inner_loop import logits
from lightning_evolve.learners import BERT, CNN, LSTM, Head
from lightning_evolve.meta_learners import CoordinateMLP, Gains
from lightning_evolve.modules import Classifier
from lightning_evolve.modules.building import build
from lightning_evolve.rewards import Accuracy
from lightning_evolve.streams import BatchStream, DriftStream, EpisodeStream
from lightning_evolve.tasks import DataSpec
from tests.modules.small import FlatPixels, module, stream, trainer

PRECISIONS = {"64-true": torch.float64, "32-true": torch.float32, "bf16-mixed": torch.float32}
TINY_BERT = dict(
    hidden_size=8,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=8,
    max_position_embeddings=8,
)
LEARNERS = {
    "lstm": partial(LSTM, embedding_size=4, hidden_size=4),
    "bert": partial(BERT, config=TINY_BERT),
    "cnn": partial(CNN, channels=(2, 3)),
    "head": partial(Head, hidden_size=4),
}
ESTIMATORS = {
    "unrolled": Unrolled(),
    "first_order": FirstOrder(),
    "evolution_strategies": EvolutionStrategies(),
}


@pytest.fixture(autouse=True)
def quick_table(monkeypatch):
    """The table without its plot, and with grids that do not grow."""
    monkeypatch.setattr("lightning_evolve.callbacks.comparison.plot_curves", lambda *_: None)
    monkeypatch.setattr("lightning_evolve.evaluation.tuning._EXTENSIONS", 0)


@pytest.fixture
def data(tmp_path):
    """Builds a small stream that a learner can read."""
    lines = [
        json.dumps({"text": f"topic{c} says {'word ' * (n % 4)}{n}", "label": f"class{c:02}"})
        for c in range(10)
        for n in range(12)
    ]

    def make(learner, kind=EpisodeStream):
        options = {"cache_dir": str(tmp_path / "cache")}
        if kind is EpisodeStream:
            options |= dict(ways=2, shots=2, queries=3, tasks_per_step=1, steps_per_epoch=2)
            options |= dict(val_tasks=2, test_tasks=2, class_fractions=(0.4, 0.3, 0.3))
        else:
            options |= dict(batch_size=8)
        if learner in ("lstm", "bert"):
            (tmp_path / "data.jsonl").write_text("\n".join(lines))
            options |= dict(source=str(tmp_path / "data.jsonl"), encoder=Words(max_length=8))
        else:
            encoder = Pixels(size=8) if learner == "cnn" else FlatPixels(size=8)
            options |= dict(source="digits", encoder=encoder)
        return kind(**options)

    return make


class Dtypes(L.Callback):
    """Notes the dtypes that logits, losses and metrics have, during training and evaluation."""

    def __init__(self, monkeypatch):
        self.seen = set()
        for place in (
            "lightning_evolve.inner_loop",
            "lightning_evolve.estimators.base",
            "lightning_evolve.evaluation.curves",
            "lightning_evolve.evaluation.ordinary",
            "lightning_evolve.modules.evolving",
            "lightning_evolve.modules.classifier",
        ):
            # By its full name: the packages have functions of the same names as their modules.
            monkeypatch.setattr(sys.modules[place], "logits", self.logits)

    def logits(self, learner, theta, batch, **options):
        inputs = {v.dtype for v in batch.inputs.values() if v.is_floating_point()}
        out = logits(learner, theta, batch, **options)
        self.seen |= {out.dtype} | inputs | {p.dtype for p in theta.values()}
        return out


def floats(tensors):
    return {t.dtype for t in tensors if t.is_floating_point()}


def fit(tmp_path, model, data, precision, callbacks=(), **options):
    options = {"max_steps": 2, "callbacks": list(callbacks), "precision": precision, **options}
    t = trainer(tmp_path, **options)
    t.fit(model, datamodule=data)
    return t


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(
    ("learner", "estimator"),
    [
        # The one that differentiates most for all of them; the others look into no learner.
        *((name, "unrolled") for name in LEARNERS),
        *((name, "first_order") for name in ("cnn", "lstm")),
        *((name, "evolution_strategies") for name in ("head", "bert")),
    ],
)
def test_every_learner_and_every_estimator_run(
    tmp_path, monkeypatch, data, learner, estimator, precision
):
    """The table included; theta, phi, the rule's state and all inputs have the right dtype."""
    seen, wanted = Dtypes(monkeypatch), PRECISIONS[precision]
    model = module(learner=LEARNERS[learner], estimator=ESTIMATORS[estimator], steps=1)
    held_out = Comparison(rivals=["sgd"], tuning_tasks=1)
    fit(tmp_path, model, data(learner), precision, [seen, held_out])
    assert floats(model.learner.parameters()) == {wanted}
    assert floats(model.meta_learner.parameters()) == {wanted}
    for tensors in model.start().state.accumulators.values():
        assert floats(tensors.values()) == {wanted}
    assert seen.seen == {wanted}
    assert [row["method"] for row in json.loads((tmp_path / "results.json").read_text())["rows"]]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("learner", LEARNERS)
def test_ordinary_data_runs_too(tmp_path, monkeypatch, data, learner, precision):
    wanted = PRECISIONS[precision]
    models = {"plain": Classifier(LEARNERS[learner])}
    if learner in ("head", "cnn"):
        models["evolving"] = module(learner=LEARNERS[learner], theta="persistent", steps=1)
    for name, model in models.items():
        seen, held_out = Dtypes(monkeypatch), Comparison(rivals=["sgd"])
        (tmp_path / name).mkdir()
        stream = data(learner, BatchStream)
        fit(tmp_path / name, model, stream, precision, [seen, held_out])
        assert floats(model.learner.parameters()) == {wanted}
        assert seen.seen == {wanted}


def test_the_persistent_state_follows_a_theta_built_in_another_precision(tmp_path):
    data = DriftStream(
        source="digits", encoder=Pixels(size=8), ways=2, period=2, batch_size=4, val_experiences=1
    )
    data.setup()
    model = module(theta="persistent")
    model.build(data.spec)  # by hand, before Lightning is there to say which precision
    fit(tmp_path, model, data, "64-true", limit_val_batches=1)
    for tensors in model.state.accumulators.values():
        assert floats(tensors.values()) == {torch.float64}


@pytest.mark.parametrize("rule", [Gains, CoordinateMLP])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_fit_in_64_bits_is_one_in_32_but_for_rounding(tmp_path, rule, estimator):
    ends = {}
    for precision in ("64-true", "32-true"):
        # A rule with random weights of its own: they have to be the same ones too.
        torch.manual_seed(5)
        model = module(estimator=ESTIMATORS[estimator], meta_learner=rule, theta="persistent")
        fit(tmp_path, model, stream(), precision, limit_val_batches=0, max_steps=3)
        ends[precision] = {n: p.detach() for n, p in model.named_parameters()}
    for name, p in ends["64-true"].items():
        difference = (p - ends["32-true"][name].double()).abs().max()
        # Evolution strategies divide the rounding of two rewards by sigma; and where a
        # meta-gradient is as good as 0, Adam divides rounding by rounding.
        assert difference < (1e-4 if rule is Gains else 1e-3), name
        if name.startswith("learner"):
            assert difference > 1e-12, f"{name} was rounded to 32 bits"


def test_the_initial_theta_of_a_seed_has_the_same_digits_in_every_precision():
    spec = DataSpec(3, shape=(1, 8, 8))
    single = build(CNN, spec, seed=4)
    torch.set_default_dtype(torch.float64)
    try:
        double = build(CNN, spec, seed=4)
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    for name, p in double.named_parameters():
        assert p.dtype == torch.float64
        assert torch.equal(p.float(), single.get_parameter(name))


class Gradient(L.Callback):
    """Compares phi's gradient in a fit with central differences of the reward in 64 bits."""

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        model, task = pl_module, trainer.datamodule.training_task(0)
        task = trainer.precision_plugin.convert_input(task)
        found, phi = model.meta_learner.log_gains.grad.clone(), model.meta_learner.log_gains

        def reward():
            with torch.no_grad(), trainer.precision_plugin.forward_context():
                return float(model.adapted_logits(task)[1])

        slopes = []
        for i in range(len(phi)):
            scores = []
            for sign in (1, -1):
                with torch.no_grad():
                    before = phi[i].clone()
                    phi[i] += sign * 1e-4
                    scores.append(reward())
                    phi[i] = before
            slopes.append((scores[0] - scores[1]) / 2e-4)
        wanted = -torch.tensor(slopes, dtype=torch.float64)  # the optimizer descends
        self.error = float((found.double() - wanted).norm() / wanted.norm())


def test_a_meta_gradient_in_64_bits_agrees_with_differences_that_32_bits_cannot_see(tmp_path):
    errors = {}
    for precision in ("64-true", "32-true"):
        look = Gradient()
        model = module(steps=3, clip=0.0)
        data = stream(tasks_per_step=1)
        fit(tmp_path, model, data, precision, [look], max_steps=1, limit_val_batches=0)
        errors[precision] = look.error
    assert errors["64-true"] < 1e-7
    assert errors["32-true"] > 1e-3, "the control: rounding of the reward drowns the difference"


def test_a_reward_is_not_rounded_to_the_8_bits_of_bfloat16(tmp_path):
    """The share of 7 rows of 9 is 0.7778 and in bfloat16 0.7773."""
    seen = []

    class Look(Accuracy):
        def __call__(self, logits, labels):
            seen.append(float(super().__call__(logits, labels)))
            return super().__call__(logits, labels)

    model = module(estimator=EvolutionStrategies(), reward=Look())
    fit(tmp_path, model, stream(), "bf16-mixed", limit_val_batches=0)
    assert any(0 < value < 1 for value in seen)
    assert all(value * 9 == pytest.approx(round(value * 9), abs=1e-5) for value in seen)


def test_a_logged_metric_is_not_rounded_to_32_bits(tmp_path):
    """Minus the loss of each task is its reward; in 32 bits their means differ in the 8th digit."""
    t = fit(tmp_path, module(), stream(steps_per_epoch=2), "64-true")
    loss, reward = t.callback_metrics["val/loss"], t.callback_metrics["val/reward"]
    assert loss.dtype == torch.float64
    assert float(loss.float()) != float(loss)
    assert float(loss) == pytest.approx(-float(reward), rel=1e-14)
    assert float(t.callback_metrics["val/accuracy"]) * 27 == pytest.approx(
        round(float(t.callback_metrics["val/accuracy"]) * 27), abs=1e-12
    )


def test_the_table_measures_ours_and_the_rivals_from_the_same_double_theta(tmp_path, monkeypatch):
    begins, tasks = [], []

    def curves(learner, rule, theta, batch, **options):
        begins.append({n: t.clone() for n, t in theta.items()})
        tasks.extend(batch)
        return adaptation_curves(learner, rule, theta, batch, **options)

    monkeypatch.setattr("lightning_evolve.evaluation.comparison.adaptation_curves", curves)
    model = module(steps=1)
    fit(tmp_path, model, stream(), "64-true", [Comparison(rivals=["sgd"], tuning_tasks=1)])
    assert floats(t.query.inputs["images"] for t in tasks) == {torch.float64}
    for begin in begins[1:]:
        assert all(torch.equal(begin[n], t) for n, t in begins[0].items())
