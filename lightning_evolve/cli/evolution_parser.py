"""The configuration of evolve: a section for each system, and what is built of it."""

from __future__ import annotations

from importlib import import_module

from lightning_evolve.cli.config_files import check_yaml
from lightning_evolve.cli.lightning_cli import Parser
from lightning_evolve.errors import UsageError, mistake_behind
from lightning_evolve.evolution.baselines import Baseline
from lightning_evolve.evolution.collection import Source
from lightning_evolve.evolution.gate import Gate
from lightning_evolve.evolution.loop import Evolution
from lightning_evolve.evolution.monitoring import Monitor
from lightning_evolve.evolution.optimisation import Optimisation
from lightning_evolve.evolution.pretrained import Pretrained
from lightning_evolve.evolution.processing import Processing
from lightning_evolve.evolution.training import Training
from lightning_evolve.evolution.triggers import Trigger

# Imported before parsing, so that YAML may name their classes without the path.
_PACKAGES = ("learners", "meta_learners", "data.encoders", "evolution.proposers")
_SECTIONS = {
    "pretrained": Pretrained,
    "processing": Processing,
    "training": Training,
    "optimisation": Optimisation,
    "gate": Gate,
    "monitor": Monitor,
}


def build(arguments: list[str], *, print_config: bool = False) -> tuple[Evolution, str]:
    """Builds the loop.

    Args:
        arguments: config files and options.
        print_config: whether to print every option with its value, and stop.

    Returns:
        The loop, and its configuration in full as YAML.

    Raises:
        UsageError: for a value that makes no sense.
        SystemExit: for arguments that cannot be parsed, which have been told about.
    """
    for package in _PACKAGES:
        import_module(f"lightning_evolve.{package}")
    for argument in arguments:
        if argument.startswith("--config="):
            check_yaml(argument.partition("=")[2])
    parser = Parser(prog="lightning-evolve evolve")
    parser.add_argument("--config", action="config")
    parser.add_argument("--sources", type=list[Source])
    for name, kind in _SECTIONS.items():
        parser.add_class_arguments(kind, name)
    parser.add_argument("--trigger", type=Trigger, default=None)
    parser.add_argument("--trusted", type=list[str], default=[])
    parser.add_argument("--trust", type=dict[str, float], default={})
    parser.add_argument("--beside", type=list[Baseline], default=[])
    parser.add_argument("--memory", type=int, default=5000)
    parser.add_argument("--keep", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    given = [a.replace("--seed_everything=", "--seed=") for a in arguments]
    parsed = parser.parse_args(given)
    parsed.pop("config", None)
    text: str = parser.dump(parsed, skip_none=False)
    if parsed["sources"] is None:
        raise UsageError("sources are missing: name where records come from, as in --config FILE")
    if print_config:
        print(text, end="")
        raise SystemExit(0)
    try:
        built = parser.instantiate_classes(parsed)
    except ValueError as error:
        if mistake := mistake_behind(error):
            raise mistake from error
        raise
    return Evolution(**built.as_dict()), text
