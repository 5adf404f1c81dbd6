"""Lightning's command line with our defaults, callbacks and messages; public names only."""

from __future__ import annotations

import math
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn, get_args, get_type_hints

import lightning as L
import torch
import yaml
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.plugins.io import CheckpointIO
from typing_extensions import override

from lightning_evolve.callbacks import (
    AtomicCheckpointIO,
    Checkpoints,
    Comparison,
    Metrics,
    PredictionWriter,
    RichProgress,
)
from lightning_evolve.cli import run_directory
from lightning_evolve.cli.arguments import SHORT_FORMS
from lightning_evolve.cli.messages import condense
from lightning_evolve.cli.run_directory import CONFIG
from lightning_evolve.cli.training import Session, first_process
from lightning_evolve.cli.wandb import Wandb, start, warn_of_ignored
from lightning_evolve.errors import UsageError
from lightning_evolve.files import free, replacing, write_json
from lightning_evolve.reports.wandb import log_checkpoint

# Imported before parsing, so that YAML may name their classes without the path.
_PACKAGES = (
    "modules",
    "streams",
    "learners",
    "meta_learners",
    "estimators",
    "rewards",
    "data.encoders",
)
_TRAINER_DEFAULTS = {
    "logger": False,  # Metrics writes what is logged; --wandb adds a logger
    "inference_mode": False,  # adapting to a held-out task differentiates
    "use_distributed_sampler": False,  # the streams share tasks out themselves
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
    "log_every_n_steps": 10,
}


class Parser(LightningArgumentParser):
    """A parser that says in one line what is wrong, and takes no abbreviated names."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # Abbreviated, a misspelt key would silently be taken for another.
        super().__init__(*args, allow_abbrev=False, **kwargs)

    @override
    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error:
            # The parser of one class among several that are tried: the outer one reports.
            super().error(message, ex)
        keys = [key.removeprefix("init_args.") for key in self.get_defaults().keys(branches=True)]
        if "trainer" in keys:
            keys += [name.lstrip("-") for name in (*SHORT_FORMS, "--run_dir", "--ckpt_path")]
        self.exit(2, f"lightning-evolve: error: {condense(message, keys, _class_names)}\n")


class ConfigWriter(SaveConfigCallback):
    """Writes the resolved configuration into the run's directory when training begins."""

    @override
    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Does nothing: what goes wrong before training is to leave nothing behind."""

    @override
    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        config = self.config.clone()
        # How this run was started, not what it is.
        for key in ("config", "ckpt_path", "weights_only"):
            config.pop(key, None)
        text = self.parser.dump(config, skip_none=False)
        folder = Path(trainer.default_root_dir)
        path, latest = folder / CONFIG, run_directory.config_of(folder)
        if latest and latest.read_text(encoding="utf-8") == text:
            return
        # A run that goes on under other options keeps the first ones too.
        with replacing(free(path)) as temporary:
            temporary.write_text(text, encoding="utf-8")


class EvolveCLI(LightningCLI):
    """Parses the arguments, builds everything, and runs the command.

    Args:
        session: the call; its ``run`` is set once the directory is chosen.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self._begun_at: int | None = None
        for package in _PACKAGES:
            import_module(f"lightning_evolve.{package}")
        super().__init__(
            L.LightningModule,
            L.LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_callback=ConfigWriter,
            trainer_defaults=_TRAINER_DEFAULTS,
            seed_everything_default=0,
            parser_class=Parser,
            auto_configure_optimizers=False,
            args=[session.command, *session.arguments],
        )

    @override
    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override] # Lightning's is static
        """Builds the parser of the one command that is called: each takes a tenth of a second."""
        command = self.session.command
        return {command: super().subcommands()[command]}

    @override
    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_class_arguments(Checkpoints, "checkpoints")
        parser.add_class_arguments(Comparison, "comparison")
        parser.add_class_arguments(Wandb, "wandb")
        # One seed for all that is drawn; classes without such an argument are left alone.
        parser.link_arguments("seed_everything", "data.init_args.seed")
        parser.link_arguments("seed_everything", "model.init_args.seed")

    @override
    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        # Lightning's own warns wherever the process has arguments too.
        self.config = parser.parse_args(args)
        for group in ("model", "data"):
            _refuse_null(group, self.config[self.session.command].get(group))

    @override
    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        """Chooses the run's directory, now that model and data are known to be valid."""
        command, options = self.session.command, self.config_init[self.session.command]
        self.session.run = run = self._choose()
        options["ckpt_path"] = str(run.checkpoint) if run.checkpoint else None
        if command == "fit" and run.checkpoint:  # now, as the run may write over it
            saved = torch.load(run.checkpoint, map_location="cpu", weights_only=True, mmap=True)
            self._begun_at = saved["global_step"]
        if command == "predict":
            options["return_predictions"] = False  # a callback writes them to a file
        elif command != "fit":
            options["verbose"] = False  # the metrics are printed below
        trainer = options["trainer"]
        callbacks = [*_listed(trainer.callbacks), Metrics()]
        if command == "predict":
            callbacks.append(PredictionWriter())
        if command in ("fit", "test"):
            callbacks.append(options["comparison"])
        if trainer.enable_checkpointing is not False:
            callbacks.append(options["checkpoints"])
        if trainer.enable_progress_bar is not False and not _has(callbacks, ProgressBar):
            callbacks.append(RichProgress())
        plugins = _listed(trainer.plugins)
        if not _has(plugins, CheckpointIO):
            plugins.append(AtomicCheckpointIO())
        built = super().instantiate_trainer(
            default_root_dir=str(run.path),
            callbacks=callbacks,
            plugins=plugins,
            logger=trainer.logger or False,  # to Lightning, None is its own choice
            **kwargs,
        )
        # Last, so that what the trainer refuses begins no run at W&B.
        self._add_wandb(built, options["wandb"])
        return built

    def _choose(self) -> run_directory.RunDirectory:
        session, first = self.session, first_process()
        options = self.config_init[session.command]
        if options["trainer"].default_root_dir is not None:
            raise UsageError("trainer.default_root_dir has no effect here; give --run_dir DIR")
        choose = run_directory.for_fit if session.command == "fit" else run_directory.for_evaluation
        run_dir = session.run_dir
        if not first and (inherited := run_directory.inherited()):
            run_dir = str(inherited)
        ckpt_path = session.ckpt_path or options["ckpt_path"]  # the latter from a config file
        run = choose(run_dir, session.name, ckpt_path, first=first)
        if first:
            if session.command == "fit":
                session.lock = run_directory.hold(run.path)
            run_directory.bequeath(run.path)
            print(f"run directory: {run.path}", flush=True)
            if ckpt_path == "last" and run.checkpoint is None:
                print("no checkpoint in it yet: starts from the beginning")
        return run

    def _add_wandb(self, trainer: L.Trainer, options: Wandb) -> None:
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return  # it logs nothing anywhere
        if options.on:
            assert self.session.run is not None, "the directory is chosen first"
            dump = self.parser.dump(self.config, skip_none=False, skip_link_targets=False)
            command = self.session.command
            config = yaml.safe_load(dump)[command]
            ours = start(options, self.session.run.path, command, config, first=first_process())
            trainer.loggers = [*trainer.loggers, ours]
        self.session.wandb = _has(trainer.loggers, WandbLogger)
        if first_process():
            warn_of_ignored(options, logged=self.session.wandb)

    def after_fit(self) -> None:
        """Says so where nothing was trained, and logs the best checkpoint to W&B if asked to."""
        run, trainer = self.session.run, self.trainer
        if run and trainer.is_global_zero and self._begun_at == trainer.global_step:
            print(
                f"nothing was trained: {run.checkpoint} is at step {trainer.global_step}, where "
                f"max_epochs {trainer.max_epochs} and max_steps {trainer.max_steps} end; raise "
                "them to go on"
            )
        if self.config_init["fit"]["wandb"].checkpoint and self.session.wandb:
            log_checkpoint(self.trainer, self.model)

    def after_validate(self) -> None:
        """Writes the metrics of the validation."""
        self._write_scores("validate.json")

    def after_test(self) -> None:
        """Writes the metrics of the test."""
        self._write_scores("test.json")

    def _write_scores(self, name: str) -> None:
        run = self.session.run
        if run is None or not self.trainer.is_global_zero:
            return
        metrics = {k: float(v) for k, v in sorted(self.trainer.callback_metrics.items())}
        path = free(run.path / name)
        # JSON has no name for a number that is none.
        finite = {k: v if math.isfinite(v) else None for k, v in metrics.items()}
        write_json(path, {"metrics": finite, "checkpoint": str(run.checkpoint)})
        print(f"{'  '.join(f'{k} {v:.4f}' for k, v in metrics.items())}\nin {path}")


def _listed(value: Any) -> list[Any]:
    if value is None:
        return []
    return [*value] if isinstance(value, list | tuple) else [value]


def _has(values: list[Any], kind: type) -> bool:
    return any(isinstance(value, kind) for value in values)


def _class_names() -> Iterable[str]:
    modules = [import_module(f"lightning_evolve.{package}") for package in _PACKAGES]
    modules.append(import_module("lightning.pytorch.callbacks"))
    return [name for module in modules for name in vars(module) if name[:1].isupper()]


def _refuse_null(group: str, chosen: Any) -> None:
    """Refuses null for an option of a class that has no use for it; the parser lets it pass."""
    options = getattr(chosen, "init_args", None) or {}
    for name in [name for name, value in vars(options).items() if value is None] if options else ():
        module, _, attribute = chosen.class_path.rpartition(".")
        for part in getattr(import_module(module), attribute).__mro__:
            hints = get_type_hints(part.__init__) if "__init__" in vars(part) else {}
            if name in hints:
                if type(None) not in get_args(hints[name]):
                    raise UsageError(f"{group}.{name} is null; give a value, or leave it out")
                break
