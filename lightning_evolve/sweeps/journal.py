"""sweep.json: what a sweep has done so far, so that a killed one goes on without repeating it."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lightning_evolve.errors import UsageError
from lightning_evolve.files import write_json
from lightning_evolve.sweeps.trials import Trial


@dataclass
class Journal:
    """The trials of a sweep and what each of them was started with.

    Args:
        path: the file; its folder exists.
        seeds: of the runs of each trial; None where a parameter of the sweep is the seed.
        options: of ``fit``, for all runs.
        draw_seed: of the search.
        count: how many trials there shall be, None for as many as a grid has.
        trials: by number.
    """

    path: Path
    seeds: list[int | None]
    options: list[str]
    draw_seed: int
    count: int | None
    trials: list[Trial] = field(default_factory=list)

    def save(self) -> None:
        """Writes the file in one piece."""
        content = asdict(self)
        del content["path"]
        for trial in content["trials"]:
            # JSON has no name for a number that is none.
            trial["history"] = [
                [value if math.isfinite(value) else None for value in values]
                for values in trial["history"]
            ]
        write_json(self.path, content)

    @classmethod
    def load(cls, path: Path) -> Journal:
        """Reads a file that :meth:`save` has written.

        Args:
            path: the file.

        Raises:
            UsageError: if it cannot be read or is no such file.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            trials = [_trial(entry) for entry in content.pop("trials")]
            return cls(path=path, trials=trials, **content)
        except OSError as error:
            raise UsageError(
                f"{path.parent} is no sweep to go on with: cannot read {path.name}: "
                f"{(error.strerror or str(error)).lower()}; leave out --resume to start one"
            ) from error
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise UsageError(
                f"{path} is damaged or of another version; start anew with another --run_dir"
            ) from error


def _trial(entry: dict[str, Any]) -> Trial:
    history = [[math.nan if v is None else v for v in values] for values in entry.pop("history")]
    return Trial(history=history, **entry)
