"""The table at the end of ``fit`` and ``test``: our update beside tuned rivals and the floor."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from rich.console import Console
from typing_extensions import override

from lightning_evolve.callbacks.checkpoints import BEST, LAST
from lightning_evolve.errors import UsageError
from lightning_evolve.evaluation.comparison import compare_on_tasks
from lightning_evolve.evaluation.curves import Curves
from lightning_evolve.evaluation.ordinary import Point, Trained, compare_on_rows, merged
from lightning_evolve.evaluation.rivals import RIVALS
from lightning_evolve.evaluation.statistics import interval
from lightning_evolve.files import free, write_json
from lightning_evolve.inner_loop import detached
from lightning_evolve.learners.base import Learner
from lightning_evolve.modules import Classifier, EvolvingClassifier, EvolvingRule
from lightning_evolve.modules.building import adapting, build
from lightning_evolve.reports.plot import plot_curves
from lightning_evolve.reports.table import print_results
from lightning_evolve.reports.wandb import log_results
from lightning_evolve.streams import BatchStream, MixtureStream
from lightning_evolve.streams.held_out_classes import HeldOutClassesStream
from lightning_evolve.tasks import Tensors

# Tuning tasks are training tasks that phi has most likely not met: far along the stream.
_FAR = 10**6

# Of each family of tasks, "" where there is only one: what results.json holds, and the curves.
_Tables = dict[str, tuple[dict[str, Any], dict[str, Any]]]


class Comparison(L.Callback):
    """Measures the best state of a run on held-out tasks and writes the table and the plot.

    A mixture of families has a table and a plot of each, in ``families/NAME``; the rivals are
    tuned for each family, and in each all methods begin from the same initial theta.

    Args:
        rivals: which of sgd, adam, adam_groups, adamw and muon to tune and run; all if not given,
            and an empty list for none: ours and the floor alone, as in a sweep.
        tuning_tasks: meta-training tasks that the rivals' rates are tuned on.
        points: rates of each grid, at least 7.
        enabled: whether there is a table at all.

    Raises:
        UsageError: for a number out of range or an unknown rival.
    """

    def __init__(
        self,
        rivals: list[str] | None = None,
        tuning_tasks: int = 20,
        points: int = 7,
        enabled: bool = True,
    ) -> None:
        if tuning_tasks < 1 or points < 7:
            raise UsageError(
                f"comparison: tuning_tasks is {tuning_tasks} and points is {points}; "
                "give at least 1 and at least 7"
            )
        for name in rivals or ():
            if name not in RIVALS:
                raise UsageError(f"comparison.rivals: {name!r} is none of {', '.join(RIVALS)}")
        self.rivals = tuple(rivals) if rivals is not None else RIVALS
        self.tuning_tasks, self.points, self.enabled = tuning_tasks, points, enabled
        self.history: list[Point] = []
        self.taken = 0  # outer steps of the run that is tested

    @override
    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Refuses now what there is no comparison for, and not when the run is at its end."""
        if not self.enabled or stage not in ("fit", "test"):
            return
        stream: Any = trainer.datamodule  # type: ignore[attr-defined]
        for modules, streams in _COMPARED:
            if isinstance(pl_module, modules) and isinstance(stream, streams):
                return
        raise UsageError(
            f"there is no comparison for {type(pl_module).__name__} on {type(stream).__name__}; "
            "give --comparison.enabled false"
        )

    @override
    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Remembers the validation curve: on ordinary data it is the run's own."""
        metrics = trainer.callback_metrics
        if trainer.state.fn == "fit" and not trainer.sanity_checking and "val/loss" in metrics:
            loss, accuracy = float(metrics["val/loss"]), float(metrics["val/accuracy"])
            self.history.append(Point(trainer.global_step, loss, accuracy))

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"history": [list(point) for point in self.history]}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.history = [Point(*point) for point in state_dict["history"]]

    @override
    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not self.enabled:
            return
        best = getattr(trainer.checkpoint_callback, "best_model_path", "")
        last = {name: t.clone() for name, t in pl_module.state_dict().items()}
        if best and Path(best).exists():
            saved = torch.load(best, weights_only=True, map_location=pl_module.device)
            pl_module.load_state_dict(saved["state_dict"])
        self._report(trainer, pl_module)
        pl_module.load_state_dict(last)

    @override
    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.ckpt_path:
            # Lightning restores callbacks in fit alone. How the run went on after its best state
            # stands in its last one.
            tested = Path(trainer.ckpt_path)
            last = tested.with_name(LAST) if tested.name == BEST else tested
            saved = torch.load(
                last if last.exists() else tested, weights_only=True, map_location="cpu"
            )
            self.taken = saved["global_step"]
            if state := saved["callbacks"].get(self.state_key):
                self.load_state_dict(state)
        self._report(trainer, pl_module)

    def _report(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if self.enabled and trainer.is_global_zero:
            # Adapting differentiates, which inference mode forbids.
            # The precision is that of training, for ours and for the rivals.
            precision = trainer.precision_plugin.forward_context()
            training = module.training
            module.eval()  # as in validation; Lightning leaves the module as training had it
            with torch.inference_mode(False), torch.no_grad(), precision, _status() as say:
                tables = self._compare(trainer, module, say)
            module.train(training)
            for family, (results, curves) in tables.items():
                self._write(trainer, results, curves, family)
        trainer.strategy.barrier("comparison")

    def _compare(
        self, trainer: L.Trainer, module: L.LightningModule, say: Callable[[str], None]
    ) -> _Tables:
        stream: Any = trainer.datamodule  # type: ignore[attr-defined]
        if isinstance(stream, BatchStream):
            return {"": self._on_rows(trainer, module, stream, say)}
        if isinstance(module, EvolvingRule) and isinstance(stream, MixtureStream):
            return {
                family: self._on_tasks(trainer, module, part, _of_family(say, family), family)
                for family, part in stream.streams.items()
            }
        assert isinstance(module, EvolvingClassifier), "setup has refused all others"
        return {"": self._on_tasks(trainer, module, stream, say)}

    def _on_tasks(
        self,
        trainer: L.Trainer,
        module: EvolvingClassifier,
        stream: HeldOutClassesStream,
        say: Callable[[str], None],
        family: str = "",
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        quick = bool(trainer.fast_dev_run)  # type: ignore[attr-defined]
        test = stream.tasks("test", 2 if quick else stream.evaluated[1])
        tuning_tasks = (1 if quick else self.tuning_tasks) if self.rivals else 0
        tuning = stream.tasks("train", tuning_tasks, offset=_FAR)
        steps = len(test[0].support) if module.persistent else module.steps
        measured = tuple(range(1, steps + 1)) if module.persistent else module.measured
        if module.anneal:
            measured = measured[-1:]  # what the objective ends as
        if quick:
            steps, measured = 1, (1,)
        learner, meta_learner, start = module.players(test[0]._replace(family=family))
        # What a family begins from is drawn; a persistent theta has lived through the training
        # stream, and phi alone is compared.
        initial = start.theta if family else _initial(module)
        held = bool(module.learned_init().keys() - module.theta().keys())
        comparison = compare_on_tasks(
            learner,
            meta_learner,
            initial if module.persistent else detached(start.theta),
            alpha=module.alpha,
            steps=steps,
            measured=measured,
            tuning=[_placed(trainer, task) for task in tuning],
            test=[_placed(trainer, task) for task in test],
            floor_features=stream.floor_features,
            rivals=self.rivals,
            rival_theta=initial,
            rival_learner=_initial_learner(module) if held else None,
            points=self.points,
            persistent=module.persistent,
            damping=module.estimator.damping,
            progress=say,
        )
        results = {
            "rows": comparison.rows,
            "seed": module.seed,
            "tasks": len(test),
            "steps": steps,
            "config": {**_settings(module, stream), "learner": type(learner).__name__},
        }
        if family:
            results["family"] = family
        return results, {name: _bands(curve) for name, curve in comparison.curves.items()}

    def _on_rows(
        self, trainer: L.Trainer, module: L.LightningModule, stream: BatchStream, say: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        assert isinstance(module, EvolvingClassifier | Classifier), "these are all there are"
        evolving = isinstance(module, EvolvingClassifier)
        # In a test, Lightning has taken no steps; a run that nothing is known of, as many as are
        # configured.
        epochs = max(trainer.max_epochs or 1, 1)
        planned = trainer.max_steps if trainer.max_steps > 0 else epochs * stream.steps_per_epoch
        steps = trainer.global_step or self.taken or planned
        curve = self.history or [Point(steps, float("inf"), 0.0)]
        # A rival steps as often as ours, each time on all the rows that ours had.
        each = stream.tasks_per_step * trainer.accumulate_grad_batches
        tasks = [
            merged([stream.training_task(index) for index in range(step * each, (step + 1) * each)])
            for step in range(steps)
        ]
        rows, curves = compare_on_rows(
            module.learner,
            Trained(curve, detached(module.theta())),
            _initial(module),
            [_placed(trainer, task) for task in tasks],
            _placed(trainer, stream.split("validation")),
            _placed(trainer, stream.split("test")),
            alpha=module.alpha,
            floor_features=stream.floor_features,
            rivals=self.rivals,
            points=self.points,
            name="evolved" if evolving else "classifier",
            progress=say,
        )
        results = {
            "rows": rows,
            "seed": module.seed,
            "tasks": 1,
            "rows_tested": len(stream.split("test").labels),
            "steps": steps,
            "config": _settings(module, stream),
        }
        return results, {name: _points(points) for name, points in curves.items() if points}

    def _write(
        self, trainer: L.Trainer, results: dict[str, Any], curves: dict[str, Any], family: str
    ) -> None:
        console = Console()
        console.print()
        print_results(results, console)
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        folder = Path(trainer.default_root_dir)
        if family:
            folder = folder / "families" / family
            folder.mkdir(parents=True, exist_ok=True)
        table, plot = free(folder / "results.json"), free(folder / "curves.png")
        write_json(table, results)
        plot_curves(curves, plot)
        log_results(trainer, results, curves, plot, f"test/{family}" if family else "test")
        console.print(f"table in {table}\ncurves in {plot}", soft_wrap=True)


_COMPARED: tuple[tuple[type, type], ...] = (
    (L.LightningModule, BatchStream),
    (EvolvingRule, MixtureStream),
    (EvolvingClassifier, HeldOutClassesStream),
)


@contextmanager
def _status() -> Iterator[Callable[[str], None]]:
    """A line on the terminal that says what is being measured."""
    with Console(stderr=True).status("comparing on held-out data") as status:
        yield lambda text: status.update(f"held-out table: {text}")


def _of_family(say: Callable[[str], None], family: str) -> Callable[[str], None]:
    return lambda text: say(f"{family}, {text}")


def _placed(trainer: L.Trainer, data: Any) -> Any:
    """Data on the device and in the precision of the training: what Lightning's loops do to it."""
    return trainer.precision_plugin.convert_input(trainer.strategy.batch_to_device(data))


def _initial(module: EvolvingClassifier | Classifier) -> Tensors:
    """The theta that the run began from."""
    initial = adapting(_initial_learner(module), ["all"] if module.adapt is None else module.adapt)
    return detached({name: initial[name].to(p) for name, p in module.theta().items()})


def _initial_learner(module: EvolvingClassifier | Classifier) -> Learner:
    """The learner that the run began with, built again: it is a function of the seed."""
    assert module.spec is not None, "the model is built by now"
    learner = build(module.learner_factory, module.spec, module.seed)
    return learner.requires_grad_(False).to(module.device).eval()


def _settings(module: L.LightningModule, stream: Any) -> dict[str, Any]:
    """What the numbers depend on, in short; config.yaml beside them has all of it."""
    found: dict[str, Any] = {
        "model": type(module).__name__,
        "data": type(stream).__name__,
        "source": stream.source,
    }
    if isinstance(module, EvolvingClassifier):
        found |= {
            "learner": type(module.learner).__name__,
            "meta_learner": type(module.meta_learner).__name__,
            "estimator": type(module.estimator).__name__,
            "alpha": module.alpha,
            "beta": module.beta,
            "steps": module.steps,
            "theta": "persistent" if module.persistent else "episodic",
        }
    for name in ("ways", "shots", "queries", "batch_size", "period"):
        if hasattr(stream, name):
            found[name] = getattr(stream, name)
    return found


def _bands(curves: Curves) -> dict[str, Any]:
    def band(values: np.ndarray) -> dict[str, list[float | None]]:
        parts = [interval(column) for column in values.T]
        # A rule that has diverged has a gap in its curve.
        return {
            key: [np.nan if part[key] is None else part[key] for part in parts]
            for key in ("mean", "low", "high")
        }

    return {
        "steps": list(curves.steps),
        "loss": band(curves.loss),
        "accuracy": band(curves.accuracy),
    }


def _points(points: list[Point]) -> dict[str, Any]:
    def line(values: list[float]) -> dict[str, list[float]]:
        return {"mean": values, "low": values, "high": values}

    return {
        "steps": [p.step for p in points],
        "loss": line([p.loss for p in points]),
        "accuracy": line([p.accuracy for p in points]),
    }
