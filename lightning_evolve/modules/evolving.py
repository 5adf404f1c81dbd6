"""EvolvingClassifier: a learner that evolves under a meta-learner, with two optimizers."""

from __future__ import annotations

import math
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import lightning as L
import torch
from torch import Tensor

from lightning_evolve.compilation import compile_learner
from lightning_evolve.errors import UsageError
from lightning_evolve.estimators import (
    Episode,
    Estimate,
    Estimator,
    EvolutionStrategies,
    Memory,
)
from lightning_evolve.inner_loop import Adapted, Pull, detached, inner_steps, logits
from lightning_evolve.learners.base import Learner, LearnerFactory
from lightning_evolve.learners.checks import check_statistics
from lightning_evolve.meta_learners import Gains, MetaLearner, MetaLearnerFactory, State
from lightning_evolve.modules.building import adapting, attached_spec, build, drawn_in_single
from lightning_evolve.modules.checkpoints import (
    check_same_data,
    check_same_tensors,
    restored_spec,
    saved_entry,
)
from lightning_evolve.modules.compatibility import check_trainer
from lightning_evolve.modules.finite import FiniteEstimates
from lightning_evolve.modules.memories import loaded, saved, under_way
from lightning_evolve.modules.metrics import LOGGED, Mean, PerTaskMetrics, PooledMetrics
from lightning_evolve.modules.persistent import averaged, matched
from lightning_evolve.pretrained import configuration
from lightning_evolve.rewards import NegativeLoss, Reward
from lightning_evolve.tasks import Batch, DataSpec, Task, Tensors


class Players(NamedTuple):
    """Who plays a task.

    Args:
        learner: the base classifier.
        meta_learner: the update rule.
        start: theta and the rule's state before the first inner step.
    """

    learner: Learner
    meta_learner: MetaLearner
    start: Adapted


class EvolvingClassifier(L.LightningModule):
    r"""Improves a classifier by a learned update, and the update by the reward that follows.

    .. math::
        \theta \leftarrow \theta + \alpha \, g_\phi, \qquad
        \phi \leftarrow \phi + \beta \, \nabla_\phi \, E[R(\theta + \alpha g_\phi)]

    One batch is one outer step. Manual optimization with two optimizers: SGD applies the
    averaged direction to theta with step alpha (persistent theta), Adam moves phi with step beta
    along the meta-gradient. Only the outer optimizer counts in ``global_step``, so ``max_steps``
    and ``every_n_train_steps`` count outer steps.

    Args:
        learner: builds the base classifier theta from the data's :class:`DataSpec`.
        meta_learner: builds the update rule phi from theta's tensors; ``Gains`` if not given,
            with its schedule over ``steps``.
        estimator: how to get the meta-gradient; ``EvolutionStrategies`` if not given.
        reward: score of the query set; ``NegativeLoss`` if not given.
        alpha: inner step size.
        beta: outer step size, on phi and, where ``learn_init``, on the initial theta.
        steps: inner steps K an episode.
        measurements: at how many evenly spaced inner steps the reward is measured, the last one
            among them; the episode's reward is their mean. More of them reward speed.
        anneal: outer steps over which the weights of all measurements but the last fall to 0, as
            MAML++ has it (Antoniou et al. 2019); 0 keeps all equal.
        theta: ``"episodic"`` starts each task from the initial theta; ``"persistent"`` carries
            theta and the rule's state on along the stream.
        learn_init: learn the initial theta too (MAML, Finn et al. 2017). A list goes on from the
            patterns of ``adapt``: ``[all]`` with ``adapt: [head]`` learns what does not adapt too
            (ANIL, Raghu et al. 2020); ``["!head"]`` leaves the head's initial value as it is.
        adapt: which parameters adapt: ``all``, ``head``, or patterns of names.
        clip: largest norm of the meta-gradient, 0 for none.
        beta_schedule: ``"cosine"`` lets beta fall to 0 over the run.
        compile: compile the learner by :func:`compile_learner`, which says where that helps; not
            for the estimator Unrolled.
        seed: of the initial theta and of the estimator's noise.

    Raises:
        UsageError: for a number out of range or a combination that cannot work.
    """

    METRICS = ("train/reward", *LOGGED)
    several_families: ClassVar[bool] = False

    def __init__(
        self,
        learner: LearnerFactory,
        meta_learner: MetaLearnerFactory | None = None,
        estimator: Estimator | None = None,
        reward: Reward | None = None,
        *,
        alpha: float = 1e-3,
        beta: float = 0.03,
        steps: int = 10,
        measurements: int = 1,
        anneal: int = 0,
        theta: Literal["episodic", "persistent"] = "episodic",
        learn_init: bool | list[str] = False,
        adapt: list[str] | None = None,
        clip: float = 1.0,
        beta_schedule: Literal["constant", "cosine"] = "constant",
        compile: bool = False,  # noqa: A002  # torch's own name for it
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        for name, value in (("alpha", alpha), ("beta", beta)):
            if not (math.isfinite(value) and value > 0):
                raise UsageError(f"{name} is {value}; give a finite number above 0")
        if not (math.isfinite(clip) and clip >= 0):
            raise UsageError(f"clip is {clip}; give a number above 0, or 0 for no clipping")
        if steps < 1:
            raise UsageError(f"steps is {steps}; an episode takes at least 1 inner step")
        if not 1 <= measurements <= steps:
            raise UsageError(f"measurements is {measurements}; give 1 to steps ({steps})")
        if anneal < 0 or (anneal and measurements == 1):
            raise UsageError(
                f"anneal is {anneal} and measurements is {measurements}; give outer steps above 0 "
                "and at least 2 measurements, or anneal: 0"
            )
        if learn_init and theta == "persistent":
            raise UsageError(
                "learn_init with persistent theta: theta never returns to its initial value; "
                "use theta: episodic, or learn_init: false"
            )
        self.estimator = estimator or EvolutionStrategies()
        self.reward = reward or NegativeLoss()
        # The j-th of n measurements comes after step K * j / n, rounded up.
        self.measured = tuple(-(-steps * (j + 1) // measurements) for j in range(measurements))
        self.estimator.check(
            reward=self.reward, steps=steps, measured=self.measured, learn_init=bool(learn_init)
        )
        if anneal and not self.estimator.anneals:
            raise UsageError(
                f"anneal with {type(self.estimator).__name__}, which does not weigh measurements; "
                "use the estimator Unrolled, FirstOrder or EvolutionStrategies, or anneal: 0"
            )
        if self.estimator.remembers and theta == "persistent":
            raise UsageError(
                f"{type(self.estimator).__name__} with persistent theta: its particles keep copies "
                "of theta that end with their task; use theta: episodic, or the estimator "
                "EvolutionStrategies"
            )
        if compile and self.estimator.second_order:
            raise UsageError(
                f"compile: true with {type(self.estimator).__name__}: compiled code cannot be "
                "differentiated twice; use the estimator FirstOrder or EvolutionStrategies, or "
                "compile: false"
            )
        self.learner_factory = learner
        self.meta_learner_factory = meta_learner or (lambda params: Gains(params, horizon=steps))
        self.alpha, self.beta, self.steps, self.anneal = alpha, beta, steps, anneal
        self.persistent, self.learn_init, self.adapt = theta == "persistent", learn_init, adapt
        self.clip, self.beta_schedule, self.seed = clip, beta_schedule, seed
        self.compiled = compile
        self.spec: DataSpec | None = None
        self.state: State | None = None
        # What the estimator carries on, by this process's tasks of an outer step.
        self.memories: list[Memory | None] = []
        # The families of tasks that the machine has room for.
        self._has_room: set[str] = set()

    # ---------------------------------------------------------------- building

    def configure_callbacks(self) -> list[L.Callback]:
        """Refuses what cannot work: the hook that Lightning calls first, with the Trainer known.

        Raises:
            UsageError: for a precision, strategy or setting that cannot work.
        """
        check_trainer(self.trainer, self.estimator)
        return []

    def configure_model(self) -> None:
        """Builds theta and phi once the data is known (Lightning calls it before training)."""
        spec = attached_spec(self)
        if spec is not None and self.spec is not None:
            check_same_data(spec, self.spec, self._source())
        elif spec is not None:
            self.build(spec)
            if self.trainer.world_size > 1 and not (self.learn_init or self.meta_learner.phi()):
                raise UsageError(
                    f"{type(self.meta_learner).__name__} has nothing to learn, and several "
                    "processes have nothing to share then; give --trainer.devices 1, or a rule "
                    "with a phi such as Gains"
                )

    def build(self, spec: DataSpec) -> None:
        """Builds theta and phi; needed by hand only where no Trainer does it.

        Args:
            spec: what the data looks like.
        """
        if spec.class_names and not (self.persistent or self.learn_init):
            raise UsageError(
                "theta is episodic and the data are mini-batches of fixed classes: a classifier "
                "that begins each of them anew never learns; give theta: persistent, or "
                "learn_init: true"
            )
        self.spec = spec
        self.learner = build(self.learner_factory, spec, self.seed)
        check_statistics(self.learner)
        if self.compiled:
            compile_learner(self.learner)
        # Theta is in the state_dict and broadcast by DDP, but only phi is in the reducer.
        self.learner.requires_grad_(False)
        with torch.random.fork_rng(devices=[]), drawn_in_single():
            torch.manual_seed(self.seed)
            self.meta_learner = self.meta_learner_factory(self.theta())
        self.meta_learner.to(torch.get_default_dtype())
        self.estimator.check_learner(self.learner)
        self.estimator.check_rule(self.meta_learner)
        if self.learn_init:
            for p in self.learned_init().values():
                p.requires_grad_(True)
        if self.persistent:
            self.state = self.meta_learner.init(detached(self.theta()))
        self.val_metrics, self.test_metrics = self._metrics("val/"), self._metrics("test/")
        self.rewards, self.finite = Mean(), FiniteEstimates()

    def _metrics(self, prefix: str) -> Any:
        assert self.spec is not None, "build() sets it"
        # Classes that are the same in all tasks are those of ordinary data, scored by the row.
        metrics = PooledMetrics if self.spec.class_names else PerTaskMetrics
        return metrics(self.spec.num_classes, prefix)

    def theta(self) -> Tensors:
        """Returns the adapting parameters of the learner by name: the initial or current theta."""
        return adapting(self.learner, ["all"] if self.adapt is None else self.adapt)

    def learned_init(self) -> Tensors:
        """Returns the parameters of the learner whose initial value is learned, by name."""
        if not self.learn_init:
            return {}
        learned = self.theta()
        if self.learn_init is not True:
            patterns = [*(self.adapt or ["all"]), *self.learn_init]
            learned = adapting(self.learner, patterns, "learn_init")
        if not self.estimator.learns_held and learned.keys() - self.theta().keys():
            raise UsageError(
                f"{type(self.estimator).__name__} learns only parameters that adapt; use the "
                "estimator Unrolled or FirstOrder, or learn_init: true"
            )
        return learned

    def start(self) -> Adapted:
        """Returns where an episode begins: theta, and a fresh or the persistent state."""
        theta = self.theta() if self.learn_init else detached(self.theta())
        if self.learn_init:
            # What adapts and is not learned takes part in the graph as the rest does.
            theta = {
                n: p if p.requires_grad else p.detach().requires_grad_() for n, p in theta.items()
            }
        if self.persistent:
            assert self.state is not None, "build() comes first"
            self.state = matched(self.state, theta)
            return Adapted(theta, self.state)
        return Adapted(theta, self.meta_learner.init(detached(theta)))

    def players(self, task: Task) -> Players:
        """Returns the learner and the rule that play a task, and where it begins.

        Args:
            task: what to adapt to.
        """
        return Players(self.learner, self.meta_learner, self.start())

    def configure_optimizers(self) -> Any:
        """Returns the inner optimizer on theta and the outer one on phi with its schedule."""
        # A rule without phi leaves the group empty: the outer step then only counts.
        groups = [{"params": list(self.meta_learner.phi().values())}]
        if self.learn_init:
            groups.append({"params": list(self.learned_init().values())})
        inner = torch.optim.SGD(self.theta().values(), lr=self.alpha)
        outer = torch.optim.Adam(groups, lr=self.beta)
        schedule: torch.optim.lr_scheduler.LRScheduler
        schedule = torch.optim.lr_scheduler.LambdaLR(outer, lambda _: 1.0)
        if self.beta_schedule == "cosine":
            total = self.trainer.estimated_stepping_batches
            if not math.isfinite(total):
                raise UsageError(
                    "beta_schedule is cosine, which ends with the run, and nothing says how many "
                    "outer steps that has; give --trainer.max_epochs or --trainer.max_steps, or "
                    "--model.beta_schedule constant"
                )
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(outer, T_max=int(total))
        return [inner, outer], [schedule]

    # ---------------------------------------------------------------- training

    def check_share(self, parts: int) -> None:
        """Refuses a stream of fewer tasks than processes where the estimator can't share them.

        Args:
            parts: processes a task.

        Raises:
            UsageError: saying what to give instead.
        """
        self.estimator.check_share(parts)

    def episode(self, task: Task, memory: Memory | None = None) -> Episode:
        """Returns the episode that the estimator plays on a task.

        Args:
            task: what to adapt to.
            memory: what the estimator carries on, where the task is under way.
        """
        return Episode(
            **self.players(task)._asdict(),
            task=task,
            alpha=self.alpha,
            steps=self.steps,
            reward=self.reward,
            measured=self.measured,
            seed=self.seed,
            carries_on=self.persistent,
            damping=self.estimator.damping,
            memory=memory,
            early=max(0.0, 1 - self.global_step / self.anneal) if self.anneal else 1.0,
        )

    def training_step(self, batch: list[Task], batch_idx: int) -> None:
        """One outer step on this process's share of the tasks."""
        for task in batch:
            if task.family not in self._has_room:
                self.estimator.check_room(self.episode(task))
                self._has_room.add(task.family)
        memories = under_way(self.memories, len(batch), self.device)
        # A task under way goes on; the one that the stream has in its place is left out.
        batch = [m.task if m else task for m, task in zip(memories, batch, strict=True)]
        estimates = self.estimator.play(
            [self.episode(task, memory) for task, memory in zip(batch, memories, strict=True)]
        )
        self.memories = [estimate.memory for estimate in estimates]
        self._outer_step(self._weighed(batch, self.finite(estimates)))
        if self.persistent:
            self._carry_on([estimate.adapted for estimate in estimates])
        self._log_training(batch, estimates)

    def on_train_epoch_end(self) -> None:
        """Tells of estimates that were left out."""
        self.finite.tell(partial(self.trainer.strategy.reduce, reduce_op="sum"), self.alpha)

    def _weighed(self, batch: list[Task], estimates: list[Estimate]) -> list[Estimate]:
        """The estimates as the outer step averages them."""
        return estimates

    def _outer_step(self, estimates: list[Estimate]) -> None:
        """Moves phi (and a learned initial theta) by beta along the mean estimate."""
        outer = self.optimizers()[1]  # type: ignore[index]
        uphill = [(p, [e.phi[n] for e in estimates]) for n, p in self.meta_learner.phi().items()]
        uphill += [(p, [e.theta[n] for e in estimates]) for n, p in self.learned_init().items()]
        outer.zero_grad()
        if uphill:
            # A linear function of phi whose gradient is minus the estimate: the way through
            # manual_backward is the only one on which DDP averages over processes.
            objective = -torch.stack(
                [(p * torch.stack(g).mean(dim=0)).sum() for p, g in uphill]
            ).sum()
            self.manual_backward(objective)
            if self.clip:
                self.clip_gradients(
                    outer,  # type: ignore[arg-type]  # Lightning's wrapper of an optimizer is one
                    gradient_clip_val=self.clip,
                    gradient_clip_algorithm="norm",
                )
        outer.step()
        self.lr_schedulers().step()  # type: ignore[union-attr]

    def _carry_on(self, adapted: list[Adapted]) -> None:
        """Applies the direction averaged over tasks and processes, and averages the state."""
        reduce = partial(self.trainer.strategy.reduce, reduce_op="mean")
        mean = averaged(adapted, reduce if self.trainer.world_size > 1 else None)
        # The raw optimizer, not Lightning's wrapper: global_step counts outer steps only.
        inner = self.trainer.optimizers[0]
        theta = self.theta()
        now = [p.detach() for p in theta.values()]
        gone = torch._foreach_div(
            torch._foreach_sub(now, [mean.theta[name] for name in theta]), self.alpha
        )
        for p, direction in zip(theta.values(), gone, strict=True):
            p.grad = direction
        inner.step()
        inner.zero_grad()
        self.state = mean.state

    def _log_training(self, batch: list[Task], estimates: list[Estimate]) -> None:
        losses, correct = [], []
        for task, estimate in zip(batch, estimates, strict=True):
            labels = task.query.labels
            losses.append(torch.nn.functional.cross_entropy(estimate.logits, labels))
            hit = estimate.logits.argmax(dim=-1) == labels
            correct.append(hit.to(estimate.logits.dtype).mean())
        values = {
            "train/reward": torch.stack([e.reward for e in estimates]).mean(),
            "train/loss": torch.stack(losses).mean(),
            "train/accuracy": torch.stack(correct).mean(),
        }
        self.log_dict(values, prog_bar=True, sync_dist=True, batch_size=len(batch))

    # ---------------------------------------------------------------- evaluation

    def adapted_logits(self, task: Task) -> tuple[Tensor, Tensor]:
        """Adapts to a task and predicts its query set.

        Args:
            task: with persistent theta its support batches are taken once each, else K steps.

        Returns:
            Logits after the last step, and the mean reward over the measured steps, or what it is
            annealed to; with persistent theta that of the last step, as the measured ones are of
            a training task's K.
        """
        steps = len(task.support) if self.persistent else self.steps
        measured = {steps, *(() if self.persistent else self.measured)}
        rewards = []
        # Lightning may evaluate under inference mode, where nothing can be differentiated.
        with torch.inference_mode(False), torch.no_grad():
            task = _outside_inference(task)
            learner, meta_learner, start = self.players(task)
            start = Adapted(detached(start.theta), start.state)
            damping = self.estimator.damping
            for k, adapted in enumerate(
                inner_steps(
                    learner,
                    meta_learner,
                    start,
                    task,
                    alpha=self.alpha,
                    steps=range(steps),
                    pull=Pull(damping, start.theta) if damping else None,
                ),
                start=1,
            ):
                if k in measured:
                    predictions = logits(learner, adapted.theta, task.query)
                    rewards.append(self.reward(predictions, task.query.labels))
        return predictions, rewards[-1] if self.anneal else torch.stack(rewards).mean()

    def _evaluate(self, batch: Batch | list[Task], metrics: Any) -> None:
        # Ordinary data comes in chunks of rows. A reward that is no mean over rows, such as macro
        # F1, is the mean of theirs, and not quite that of all rows.
        if isinstance(batch, Batch):
            predictions = logits(self.learner, detached(self.theta()), batch)
            scored = [(predictions, batch.labels, self.reward(predictions, batch.labels))]
        else:
            scored = [
                (predictions, task.query.labels, reward)
                for task in batch
                for predictions, reward in [self.adapted_logits(task)]
            ]
        for predictions, labels, reward in scored:
            metrics.update(predictions, labels)
            self.rewards.update(reward, weight=len(labels))

    def validation_step(self, batch: Batch | list[Task], batch_idx: int) -> None:
        """Scores held-out tasks after adaptation, or ordinary rows by theta as it is."""
        self._evaluate(batch, self.val_metrics)

    def on_validation_epoch_end(self) -> None:
        """Logs the metrics over the whole split."""
        self._log_metrics(self.val_metrics, "val", prog_bar=True)

    def test_step(self, batch: Batch | list[Task], batch_idx: int) -> None:
        """As in validation, on the test split."""
        self._evaluate(batch, self.test_metrics)

    def on_test_epoch_end(self) -> None:
        """Logs the metrics over the whole split."""
        self._log_metrics(self.test_metrics, "test")

    def _log_metrics(self, metrics: Any, prefix: str, prog_bar: bool = False) -> None:
        # compute() gathers over processes by itself.
        values = {**metrics.compute(), f"{prefix}/reward": self.rewards.compute()}
        self.log_dict(values, prog_bar=prog_bar, rank_zero_only=False)
        # Lightning may evaluate under inference mode, whose tensors no training could go on with.
        with torch.inference_mode(False):
            metrics.reset()
            self.rewards.reset()

    def predict_step(self, batch: Batch | list[Task], batch_idx: int) -> list[dict[str, Tensor]]:
        """Predicts rows, after adaptation where a batch is made of tasks.

        Returns:
            For each batch or task: ``rows``, ``predicted`` classes and their ``probability``.
        """
        if isinstance(batch, Batch):
            pairs = [(batch, logits(self.learner, detached(self.theta()), batch))]
        else:
            pairs = [(task.query, self.adapted_logits(task)[0]) for task in batch]
        results = []
        for rows, predictions in pairs:
            probability, predicted = predictions.softmax(dim=-1).max(dim=-1)
            results.append({"rows": rows.rows, "predicted": predicted, "probability": probability})
        return results

    # ---------------------------------------------------------------- checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the rule's state, where theta carries on, and the shape of the data."""
        assert self.spec is not None, "nothing is saved before configure_model"
        assert not self.persistent or self.state is not None, "build() sets the state"
        state = self.state and {"step": self.state.step, "accumulators": self.state.accumulators}
        checkpoint["lightning_evolve"] = {
            "spec": asdict(self.spec),
            "state": state,
            "rule": self.rule_configuration(),
            "memories": saved(self.memories, self.trainer.world_size if self._trainer else 1),
        }

    def rule_configuration(self) -> dict[str, Any]:
        """Returns how the rule is built and what it was trained on, for who loads it elsewhere."""
        trained_on = {
            **self._played_on(),
            "estimator": type(self.estimator).__name__,
            "reward": type(self.reward).__name__,
            "theta": "persistent" if self.persistent else "episodic",
            "inner_steps": self.steps,
        }
        return configuration(self.meta_learner, alpha=self.alpha, trained_on=trained_on)

    def _played_on(self) -> dict[str, Any]:
        """The data and the learner, in short words."""
        source = self._source()
        return {**({"data": source} if source else {}), "learner": type(self.learner).__name__}

    def _source(self) -> str | None:
        return source_of(getattr(self._trainer, "datamodule", None))

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Builds theta and phi where no Trainer did, and takes the rule's state.

        Raises:
            UsageError: if the checkpoint is of another learner, rule or dataset.
        """
        entry = saved_entry(checkpoint, "state")
        saved_spec = restored_spec(entry["spec"])
        if self.spec is None:
            self.build(saved_spec)
        check_same_data(self.spec or saved_spec, saved_spec, self._source())
        check_same_tensors(self.state_dict(), checkpoint["state_dict"])
        if self.persistent and entry["state"]:  # an episodic run's has none: as at the start
            self.state = State(entry["state"]["step"], entry["state"]["accumulators"])
        trainer = self._trainer
        ranks = (trainer.global_rank, trainer.world_size) if trainer else (0, 1)
        self.memories = loaded(entry.get("memories", []), *ranks)


def source_of(stream: Any) -> str | None:
    """Returns what a stream reads; of a file its name, as a rule need not tell where it lay.

    Args:
        stream: a data module, or None where there is none.
    """
    source: str | None = getattr(stream, "source", None)
    return Path(source).name if source and Path(source).exists() else source


def _outside_inference(task: Task) -> Task:
    """Copies tensors that were made under inference mode; others are passed through."""

    def usable(t: Tensor) -> Tensor:
        return t.clone() if t.is_inference() else t

    def batch(b: Batch) -> Batch:
        return Batch({k: usable(v) for k, v in b.inputs.items()}, usable(b.labels), usable(b.rows))

    return task._replace(support=tuple(batch(b) for b in task.support), query=batch(task.query))
