"""The run at Weights & Biases that a command logs to, if it is asked to."""

from __future__ import annotations

import os
import shlex
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lightning_evolve.errors import UsageError
from lightning_evolve.files import replacing

if TYPE_CHECKING:
    from lightning.pytorch.loggers import WandbLogger

PROJECT = "lightning-evolve"
_STEP = "trainer/global_step"  # what Lightning logs every metric with


@dataclass
class Wandb:
    """Whether to log to Weights & Biases too, and what.

    Entity, group, job type, name and id of the run come from W&B's own variables, such as
    ``WANDB_ENTITY`` and ``WANDB_RUN_GROUP``.

    Args:
        mode: ``offline`` keeps everything in the run's directory until ``wandb sync`` uploads it.
        project: at W&B; ``WANDB_PROJECT`` if not given, else lightning-evolve.
        checkpoint: whether ``fit`` logs its best checkpoint as an artifact.
    """

    mode: Literal["off", "offline", "online", False] = "off"  # YAML reads a bare off as False
    project: str | None = None
    checkpoint: bool = False

    @property
    def on(self) -> bool:
        """Whether there is a run at all."""
        return self.mode not in ("off", False)


def warn_of_ignored(options: Wandb, *, logged: bool) -> None:
    """Warns of settings that change nothing while nothing is logged to W&B.

    Args:
        options: as the user gave them.
        logged: whether some logger does log to W&B: ours, or one among ``trainer.logger``.
    """
    ignored = [
        f"wandb.{name}"
        for name, given, used in (
            ("project", options.project is not None, options.on),
            ("checkpoint", options.checkpoint, logged),
        )
        if given and not used
    ]
    if ignored:
        verb = "is" if len(ignored) == 1 else "are"
        warnings.warn(
            f"{' and '.join(ignored)} {verb} ignored, because W&B is off; give --wandb offline",
            stacklevel=2,
        )


def start(
    options: Wandb, folder: Path, command: str, config: dict[str, Any], *, first: bool
) -> WandbLogger:
    """Starts a run at W&B, or goes on with the one that this directory's ``fit`` began.

    Nothing is ever read back from ``wandb.config``: what an agent wants changed comes as
    arguments of the command.

    Args:
        options: with a mode that is on.
        folder: the run's directory, which W&B's own goes into.
        command: ``fit``, ``validate``, ``test`` or ``predict``, the job type unless W&B's
            variables say otherwise; a run of an agent is of the type sweep, in a group named
            after the sweep.
        config: the resolved configuration, nested: W&B shows and filters it by dotted names.
        first: whether this is the process that writes; the others' loggers do nothing.

    Raises:
        UsageError: if W&B is not installed.
        wandb.errors.Error: if W&B cannot be reached, after half a minute.
    """
    from lightning.pytorch.loggers import WandbLogger

    try:
        import wandb
    except ModuleNotFoundError as error:
        raise UsageError(
            f"--wandb {options.mode} needs W&B; pip install wandb, or --wandb off"
        ) from error
    given = os.environ
    sweep = given.get("WANDB_SWEEP_ID")
    # An agent's run belongs to the project of the sweep.
    project = options.project or given.get("WANDB_PROJECT") or (None if sweep else PROJECT)
    if not first:
        return WandbLogger(project=project, save_dir=str(folder))
    known = folder / "wandb" / "run_id"
    resumed = known.read_text(encoding="utf-8").strip() if known.exists() else None
    offline = options.mode == "offline"
    settings = wandb.Settings(silent=offline)
    if "WANDB_INIT_TIMEOUT" not in given:
        settings.init_timeout = 20  # seconds, of which W&B's own default is 90
    # Explicit arguments win over W&B's variables, so they are left out where one is set.
    run = wandb.init(
        project=project,
        name=None if "WANDB_NAME" in given else folder.name,
        id=None if "WANDB_RUN_ID" in given or command != "fit" else resumed,
        group=None if "WANDB_RUN_GROUP" in given else sweep,
        job_type=None if "WANDB_JOB_TYPE" in given else "sweep" if sweep else command,
        dir=str(folder),
        config=config,
        mode="offline" if offline else None,  # online unless WANDB_MODE says otherwise
        resume="allow",
        settings=settings,
    )
    run.define_metric(_STEP)
    run.define_metric("*", step_metric=_STEP, step_sync=True)
    if command == "fit" and not run.disabled:
        known.parent.mkdir(exist_ok=True)
        with replacing(known) as temporary:
            temporary.write_text(f"{run.id}\n", encoding="utf-8")
    if run.offline:
        segment = known.parent / Path(run.dir).parent.name
        print(f"W&B is offline; upload by: wandb sync {shlex.quote(str(segment))}", flush=True)
    return WandbLogger(experiment=run, project=project, save_dir=str(folder))
