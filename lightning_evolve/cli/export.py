"""export: the rule that a run has learned, as a folder for LearnedOptimizer."""

from __future__ import annotations

from pathlib import Path

from lightning_evolve.cli.run_directory import CONFIG as CONFIG_OF_A_RUN
from lightning_evolve.errors import UsageError


def run(command: str, arguments: list[str]) -> int:
    """Saves the rule of a run's best checkpoint, or of its last where none is the best.

    Args:
        command: ``export``.
        arguments: the directory of the run, and the folder to write.

    Returns:
        0.

    Raises:
        UsageError: if there is no such run, it has learned no rule, or the folder is something
            else's.
    """
    if options := [argument for argument in arguments if argument.startswith("-")]:
        raise UsageError(f"export has no option {options[0]}; give a run and a folder")
    if len(arguments) != 2:
        raise UsageError(
            f"export takes a run and a folder, and got {len(arguments)} arguments; "
            "such as: lightning-evolve export runs/quickstart my_rule"
        )
    directory, folder = map(Path, arguments)
    checkpoint = _checkpoint(directory)
    # From here on it takes seconds.
    from lightning_evolve.pretrained import CONFIG, export

    others = folder.is_dir() and any(folder.iterdir()) and not (folder / CONFIG).is_file()
    if others or (folder.exists() and not folder.is_dir()):
        raise UsageError(f"{folder} exists and holds no rule; name another folder")
    export(checkpoint, folder)
    print(f"the rule of {checkpoint} is in {folder}; what it is stands in {folder / 'README.md'}")
    print("use it in place of Adam, in a training loop of torch:")
    print("  from lightning_evolve import LearnedOptimizer")
    call = f"LearnedOptimizer.from_pretrained(model.named_parameters(), {str(folder)!r})"
    print(f"  optimizer = {call}")
    return 0


def _checkpoint(directory: Path) -> Path:
    if not directory.is_dir():
        raise UsageError(
            f"there is no run {directory}; name the directory of one, such as runs/quickstart"
        )
    for name in ("best.ckpt", "last.ckpt"):
        if (checkpoint := directory / "checkpoints" / name).is_file():
            return checkpoint
    if not (directory / CONFIG_OF_A_RUN).is_file():
        raise UsageError(f"{directory} is no run: it has no {CONFIG_OF_A_RUN}; name one that is")
    from lightning_evolve.evolution.state import JOURNAL

    if (directory / JOURNAL).is_file():
        raise UsageError(
            f"{directory} is a run of evolve, which has no checkpoint of a rule to save"
        )
    raise UsageError(
        f"{directory} has no checkpoint yet; go on training by: "
        f"lightning-evolve fit --run_dir {directory} --ckpt_path last"
    )
