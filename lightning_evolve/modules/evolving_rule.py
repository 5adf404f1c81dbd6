"""EvolvingRule: one update rule, meta-learned over several families of tasks and learners."""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar, Literal

from lightning_evolve.errors import UsageError
from lightning_evolve.estimators import Estimate, Estimator
from lightning_evolve.inner_loop import Adapted, detached
from lightning_evolve.learners.base import Learner, LearnerFactory
from lightning_evolve.meta_learners import Gains, MetaLearnerFactory
from lightning_evolve.modules.balance import Balance
from lightning_evolve.modules.building import build
from lightning_evolve.modules.evolving import EvolvingClassifier, Players, source_of
from lightning_evolve.modules.learners import Learners
from lightning_evolve.modules.metrics import FamilyMetrics
from lightning_evolve.noise import generator
from lightning_evolve.rewards import RelativeLoss, Reward
from lightning_evolve.tasks import DataSpec, Task, Tensors


class EvolvingRule(EvolvingClassifier):
    r"""Meta-learns an update rule that is to serve models and data other than these.

    .. math::
        \phi \leftarrow \phi + \beta \, \nabla_\phi \, E_{\mathrm{family}} \, E_{\mathrm{task}}
        \, E_{\theta_0} \, R(\theta_K(\phi, \theta_0))

    It is :class:`EvolvingClassifier` on a :class:`MixtureStream`, with two differences. Each family
    of tasks has a learner of its own, which the rule updates with the very same phi
    (:meth:`MetaLearner.over`). And each episode begins from another initial theta, a function of
    the seed and the task's index: what a rule learns about one start is of no use elsewhere.

    The outer step averages over tasks of all families, each family's estimates divided by the root
    mean square of their norm (:class:`Balance`), so that none decides alone. The reward is by
    default the logarithm of the loss (:class:`RelativeLoss`), so that a mean over families is one
    of ratios. The validation's metrics are such means; ``val/FAMILY/loss`` is that of one family.

    Args:
        learners: what builds the learner of each family, by the family's name in the stream.
        meta_learner: builds the update rule phi from all tensors of all learners; phi must not
            belong to single tensors. ``Gains`` with ``per: role`` if not given, with its schedule
            over ``steps``.
        estimator: how to get the meta-gradient; ``EvolutionStrategies`` if not given.
        reward: score of the query set; ``RelativeLoss`` if not given.
        alpha: inner step size, of all learners.
        beta: outer step size.
        steps: inner steps K an episode.
        measurements: at how many evenly spaced inner steps the reward is measured, as in
            :class:`EvolvingClassifier`.
        clip: largest norm of the meta-gradient, 0 for none.
        beta_schedule: ``"cosine"`` lets beta fall to 0 over the run.
        seed: of the initial thetas and of the estimator's noise.

    Raises:
        UsageError: for a number out of range or a combination that cannot work.
    """

    several_families: ClassVar[bool] = True

    def __init__(
        self,
        learners: dict[str, LearnerFactory],
        meta_learner: MetaLearnerFactory | None = None,
        estimator: Estimator | None = None,
        reward: Reward | None = None,
        *,
        alpha: float = 1e-3,
        beta: float = 0.03,
        steps: int = 50,
        measurements: int = 5,
        clip: float = 1.0,
        beta_schedule: Literal["constant", "cosine"] = "constant",
        seed: int = 0,
    ) -> None:
        super().__init__(
            partial(Learners, factories=learners),
            meta_learner or partial(Gains, per="role", horizon=steps),
            estimator,
            reward or RelativeLoss(),
            alpha=alpha,
            beta=beta,
            steps=steps,
            measurements=measurements,
            clip=clip,
            beta_schedule=beta_schedule,
            seed=seed,
        )
        self.learners = learners

    def build(self, spec: DataSpec) -> None:
        """Builds one learner of each family and the rule over all of their tensors.

        Args:
            spec: what the data looks like.

        Raises:
            UsageError: if phi belongs to single tensors.
        """
        super().build(spec)
        self.balance = Balance(list(spec.families))
        for family in spec.families:
            self.meta_learner.over(dict(self._member(family).named_parameters()))

    def _member(self, family: str) -> Learner:
        assert isinstance(self.learner, Learners), "built from our own factory"
        return self.learner.of(family)

    def players(self, task: Task) -> Players:
        """See :class:`EvolvingClassifier`; theta is drawn for the task."""
        learner, theta = self._member(task.family), self.initial_theta(task.family, task.index)
        rule = self.meta_learner.over(theta)
        return Players(learner, rule, Adapted(theta, rule.init(theta)))

    def initial_theta(self, family: str, index: int) -> Tensors:
        """Draws where an episode begins.

        Args:
            family: of the task.
            index: of the task.
        """
        assert self.spec is not None, "build() comes first"
        # Not of the two numbers alone: from those the estimators draw their noise.
        seed = generator(self.seed, index, 1).initial_seed()
        drawn = dict(
            build(self.learners[family], self.spec.families[family], seed).named_parameters()
        )
        like = self._member(family).named_parameters()
        return detached({name: drawn[name].to(p) for name, p in like})

    def check_share(self, parts: int) -> None:
        """Refuses to share a task, of whose estimate the norm has to be known.

        Args:
            parts: processes a task.

        Raises:
            UsageError: always.
        """
        raise UsageError(
            f"EvolvingRule cannot share a task among {parts} processes; give {parts} times the "
            "--data.tasks_per_step"
        )

    def _weighed(self, batch: list[Task], estimates: list[Estimate]) -> list[Estimate]:
        add_up = partial(self.trainer.strategy.reduce, reduce_op="sum")
        families = [task.family for task in batch]
        balanced: list[Estimate] = self.balance(families, estimates, add_up)
        return balanced

    def _metrics(self, prefix: str) -> Any:
        assert self.spec is not None, "build() sets it"
        ways = {family: spec.num_classes for family, spec in self.spec.families.items()}
        return FamilyMetrics(ways, prefix)

    def _evaluate(self, batch: Any, metrics: Any) -> None:
        for task in batch:
            predictions, reward = self.adapted_logits(task)
            metrics.update(task.family, predictions, task.query.labels, reward)

    def _log_metrics(self, metrics: Any, prefix: str, prog_bar: bool = False) -> None:
        for name, value in metrics.compute().items():
            # Of all families, not of each: the bar is one line.
            self.log(name, value, prog_bar=prog_bar and name.count("/") == 1)
        metrics.reset()

    def _played_on(self) -> dict[str, Any]:
        streams = getattr(getattr(self._trainer, "datamodule", None), "streams", {})
        assert self.spec is not None, "build() comes first"
        families = []
        for family in self.spec.families:
            source, learner = source_of(streams.get(family)), type(self._member(family)).__name__
            families.append(f"{family}: {f'{source}, ' if source else ''}{learner}")
        return {"families": families}
