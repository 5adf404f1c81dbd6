"""Learned rules on disk: saving one, exporting it from a checkpoint, and loading it again.

A rule is a folder: ``rule.safetensors`` holds phi, ``config.json`` how the rule is built and what
it was trained on, ``README.md`` the same for people. Folders beside this file come with the
package and are called by their name.
"""

from __future__ import annotations

import inspect
import json
import math
import os
import pickle
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from lightning_evolve import __version__, meta_learners
from lightning_evolve.errors import UsageError
from lightning_evolve.files import replacing, write_json
from lightning_evolve.meta_learners import MetaLearner
from lightning_evolve.tasks import Tensors

FORMAT = 1
PHI, CONFIG, CARD = "rule.safetensors", "config.json", "README.md"
_BUNDLED = Path(__file__).parent
_KINDS: dict[str, Any] = {
    "class": str,
    "class_version": int,
    "options": dict,
    "options_not_saved": list,
    "tensors": dict,
    "alpha": (int, float, type(None)),
    "trained_on": dict,
    "lightning_evolve": str,
}
"""What a rule's configuration holds."""


def bundled() -> list[str]:
    """Returns the names of the rules that come with the package."""
    return sorted(path.parent.name for path in _BUNDLED.glob(f"*/{CONFIG}"))


def configuration(
    rule: MetaLearner,
    *,
    alpha: float | None = None,
    trained_on: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Returns what, beside phi, has to be known to build a rule again, as JSON.

    Args:
        rule: the rule.
        alpha: the inner step size that it was trained with.
        trained_on: what it was trained on, in short words and numbers.

    Example:
        >>> rule = meta_learners.Gains({"w": torch.zeros(2)}, horizon=5)
        >>> config = configuration(rule, alpha=0.1)
        >>> config["class"], config["options"], config["tensors"], config["alpha"]
        ('Gains', {'horizon': 5}, {'w': [2]}, 0.1)
    """
    options = {name: value for name, value in rule.options.items() if _is_json(value)}
    return {
        "format": FORMAT,
        "lightning_evolve": __version__,
        "class": _name(type(rule)),
        "class_version": rule.version,
        "options": json.loads(json.dumps(options)),
        "options_not_saved": sorted(set(rule.options) - set(options)),
        "tensors": {name: list(shape) for name, shape in rule.shapes.items()},
        "alpha": alpha,
        "trained_on": dict(trained_on or {}),
    }


def save_rule(
    rule: MetaLearner,
    folder: str | Path,
    *,
    alpha: float | None = None,
    trained_on: Mapping[str, Any] | None = None,
) -> None:
    """Saves a rule as a folder that :func:`load_rule` reads.

    Args:
        rule: the rule, such as ``module.meta_learner`` of an EvolvingClassifier.
        folder: where to; a rule that is there already is replaced.
        alpha: the inner step size that it was trained with: the default ``lr`` of who loads it.
        trained_on: what it was trained on, in short words and numbers.

    Raises:
        UsageError: if the folder cannot be written, or ``trained_on`` is not JSON.
    """
    config = configuration(rule, alpha=alpha, trained_on=trained_on)
    _write(Path(folder), rule.state_dict(), config)


def export(checkpoint: str | Path, folder: str | Path) -> None:
    """Saves the rule of a run's checkpoint, such as ``runs/mine/checkpoints/best.ckpt``.

    Args:
        checkpoint: written by ``lightning-evolve fit`` or a Trainer with an EvolvingClassifier.
        folder: where to, as in :func:`save_rule`.

    Raises:
        UsageError: if the checkpoint is damaged or has no rule.
    """
    try:
        loaded = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        raise UsageError(
            f"{checkpoint} cannot be read ({_short(error)}); give a checkpoint of a run, such as "
            "runs/mine/checkpoints/best.ckpt"
        ) from error
    entry = loaded.get("lightning_evolve") if isinstance(loaded, dict) else None
    if not isinstance(entry, dict) or "rule" not in entry:
        raise UsageError(
            f"{checkpoint} holds no learned rule; give one that an EvolvingClassifier has written"
        )
    config = dict(entry["rule"])
    config["trained_on"] = {**config["trained_on"], "outer_steps": loaded["global_step"]}
    prefix = "meta_learner."
    phi = {
        name.removeprefix(prefix): tensor.clone()
        for name, tensor in loaded["state_dict"].items()
        if name.startswith(prefix)
    }
    _write(Path(folder), phi, config)


def load_rule(name: str | Path, **options: Any) -> tuple[MetaLearner, dict[str, Any]]:
    """Loads a rule that was saved; no code comes with it, and none of it is run.

    Args:
        name: a folder, or the name of a rule that comes with the package.
        **options: options of the rule to have otherwise than in training, such as ``horizon``.

    Returns:
        The rule for the tensors that it was trained on (its ``over`` gives it for others), and its
        configuration.

    Raises:
        UsageError: in one line, for a folder that is no rule, a damaged file, or another version.
    """
    folder = _find(name)
    config = _read_config(folder)
    cls = _class(folder, config["class"])
    if config["class_version"] != cls.version:
        raise UsageError(
            f"{folder}: its phi is for version {config['class_version']} of {cls.__name__}, and "
            f"this is version {cls.version}; train the rule again, or install lightning-evolve "
            f"{config['lightning_evolve']}"
        )
    settings = {**config["options"], **options}
    known = {p for p in inspect.signature(cls).parameters if p != "params"}
    if unknown := sorted(set(settings) - known):
        shown = ", ".join(sorted(known))
        raise UsageError(f"{folder}: {cls.__name__} has no option {unknown[0]!r}; it has {shown}")
    if missing := sorted(set(config["options_not_saved"]) - set(options)):
        raise UsageError(
            f"{folder}: the option {missing[0]!r} of {cls.__name__} could not be saved; give it"
        )
    # Only names and shapes matter, and expanded tensors have no memory.
    try:
        tensors = {n: torch.zeros(()).expand(shape) for n, shape in config["tensors"].items()}
    except (TypeError, RuntimeError) as error:
        raise UsageError(
            f"{folder / CONFIG} is damaged: a tensor is larger than any; save the rule again"
        ) from error
    try:
        rule = cls(tensors, **settings)
    except UsageError:
        raise
    except (TypeError, ValueError, RuntimeError) as error:
        raise UsageError(
            f"{folder}: {cls.__name__} cannot be built with "
            f"{', '.join(f'{k}={v!r}' for k, v in settings.items())} ({_short(error)}); give it "
            "the options that it was trained with"
        ) from error
    rule.load_state_dict(_read_phi(folder, rule, options))
    return rule, config


def _write(folder: Path, phi: Mapping[str, torch.Tensor], config: dict[str, Any]) -> None:
    tensors = {name: t.detach().cpu().contiguous() for name, t in phi.items()}
    alpha = config["alpha"]
    number = isinstance(alpha, int | float) and math.isfinite(alpha) and alpha >= 0
    if alpha is not None and not number:
        raise UsageError(f"alpha is {alpha!r}; give a finite number of at least 0, or none")
    # Before anything is written: phi under the options of another rule would be a third one.
    for key, value in config["trained_on"].items():
        if not (isinstance(key, str) and _is_json(value)):
            raise UsageError(
                f"trained_on has {key!r}: {value!r}, which is not JSON; give text, finite numbers "
                "of Python (float(x), x.item()), lists and dictionaries of them"
            )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # First gone, written last: a folder that was not finished is no rule.
        (folder / CONFIG).unlink(missing_ok=True)
        with replacing(folder / PHI) as temporary:
            save_file(tensors, temporary)
        with replacing(folder / CARD) as temporary:
            temporary.write_text(_card(config, tensors), encoding="utf-8")
        write_json(folder / CONFIG, config)
    except OSError as error:
        raise UsageError(f"{folder} cannot be written ({_short(error)}); name another") from error


def _card(config: dict[str, Any], phi: Tensors) -> str:
    """The model card: what a person wants to know before using a rule."""
    alpha = config["alpha"]
    facts = {
        "rule": config["class"],
        "options": json.dumps(config["options"]),
        "numbers in phi": sum(t.numel() for t in phi.values()),
        "alpha in training": "not recorded" if alpha is None else f"{alpha:g}",
        "written by": f"lightning-evolve {config['lightning_evolve']}",
    }
    trained_on = config["trained_on"] or {"": "not recorded"}
    lr = "" if alpha is not None else ", lr=1e-3"
    serves = (
        f"It has numbers for each of {len(config['tensors'])} tensors, and serves only the model "
        "that it was trained on."
        if _is_of_tensors(config)
        else "It serves other models too."
    )
    return "\n".join(
        [
            "---",
            "library_name: lightning-evolve",
            "tags: [learned-optimizer, meta-learning]",
            "---",
            "",
            f"# A learned update rule ({config['class']})",
            "",
            *(f"- {name}: {value}" for name, value in facts.items()),
            "",
            "## Trained on",
            "",
            *(f"- {name}: {value}" if name else f"- {value}" for name, value in trained_on.items()),
            "",
            "## Use",
            "",
            "```python",
            "from lightning_evolve import LearnedOptimizer",
            "",
            "optimizer = LearnedOptimizer.from_pretrained("
            f'model.named_parameters(), "path/to/this/folder"{lr})',
            "```",
            "",
            serves,
            "",
            "Step sizes are learned relative to `lr`, and for models and tasks like those that it",
            "was trained on; elsewhere tune `lr`, and compare with Adam. As in AdamW, a",
            "`weight_decay` counts times `lr`.",
            "",
        ]
    )


def _is_of_tensors(config: dict[str, Any]) -> bool:
    """Whether phi has numbers for each tensor of one model."""
    gains = config["class"] == "Gains" and config["options"].get("per", "tensor") == "tensor"
    return gains or config["class"] in ("MetaSGD", "Controller")


def _find(name: str | Path) -> Path:
    folder = Path(os.path.expanduser(name))
    # A folder that happens to be called "text" is no rule.
    if folder.name == str(folder) in bundled() and not (folder / CONFIG).is_file():
        return _BUNDLED / folder
    if folder.is_dir():
        return folder
    there = ", ".join(bundled()) or "none yet"
    raise UsageError(
        f"{str(name)!r} is neither a folder nor a rule that comes with the package ({there})"
    )


def _read_config(folder: Path) -> dict[str, Any]:
    file = folder / CONFIG
    try:
        for part in (folder / CONFIG, folder / PHI):
            if part.exists():
                part.open("rb").close()
    except OSError as error:
        raise UsageError(f"{folder} cannot be read ({_short(error)}); mend its rights") from error
    if not file.is_file() or not (folder / PHI).is_file():
        raise UsageError(
            f"{folder} holds no rule: there is no {CONFIG if not file.is_file() else PHI}; name a "
            "folder that save_pretrained, save_rule or export has written"
        )
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:  # of JSON, or of UTF-8
        raise UsageError(f"{file} is damaged ({_short(error)}); save the rule again") from error
    if not isinstance(config, dict) or "format" not in config:
        raise UsageError(f"{file} is not of a rule; name a folder that save_pretrained has written")
    if config["format"] != FORMAT:
        raise UsageError(
            f"{folder} is in format {config['format']} of lightning-evolve "
            f"{config.get('lightning_evolve')}, and this is {__version__}, which reads format "
            f"{FORMAT}; install that version, or save the rule again"
        )
    for key, kinds in _KINDS.items():
        if not isinstance(config.get(key, ...), kinds):
            found = json.dumps(config[key])[:40] if key in config else "missing"
            raise UsageError(f"{file} is damaged: {key!r} is {found}; save the rule again")
    for name, shape in config["tensors"].items():
        if not (isinstance(shape, list) and all(type(n) is int and n >= 0 for n in shape)):
            raise UsageError(
                f"{file} is damaged: the shape of {name} is {json.dumps(shape)[:40]}; save the "
                "rule again"
            )
    return config


def _read_phi(folder: Path, rule: MetaLearner, options: dict[str, Any]) -> Tensors:
    file = folder / PHI
    try:
        phi: Tensors = load_file(file)
    except (SafetensorError, OSError) as error:
        raise UsageError(f"{file} is damaged ({_short(error)}); save the rule again") from error
    ours = rule.state_dict()
    for name in [*ours, *phi]:
        here = tuple(ours[name].shape) if name in ours else "absent"
        there = tuple(phi[name].shape) if name in phi else "absent"
        if here != there:
            raise UsageError(
                f"{file} does not fit its {CONFIG}: {name} is {there} there and {here} in a "
                f"{type(rule).__name__} of these options; "
                + (f"leave out {', '.join(options)}" if options else "save the rule again")
            )
    return phi


def _class(folder: Path, name: str) -> type[MetaLearner]:
    """Finds a rule's class among those that the program knows; nothing is imported for it."""
    for cls in _subclasses(MetaLearner):
        if _name(cls) == name:
            return cls
    ours = ", ".join(
        sorted(n for n in (_name(c) for c in _subclasses(MetaLearner)) if "." not in n)
    )
    raise UsageError(f"{folder}: the rule {name!r} is none of {ours}; import your own first")


def _subclasses(cls: type[MetaLearner]) -> Iterator[type[MetaLearner]]:
    for sub in cls.__subclasses__():
        yield sub
        yield from _subclasses(sub)


def _name(cls: type[MetaLearner]) -> str:
    """A rule of ours goes by its class's name, which it keeps wherever its file moves."""
    ours: bool = getattr(meta_learners, cls.__name__, None) is cls
    return cls.__name__ if ours else f"{cls.__module__}.{cls.__qualname__}"


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return False
    return True


def _short(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:120]
