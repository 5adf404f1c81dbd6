"""What the page shows of a run, read from its journal."""

from __future__ import annotations

import math
from typing import Any

from lightning_evolve.evolution.journal import Journal

_ALARMS = 20


def state(journal: Journal) -> dict[str, Any]:
    """Returns the lineage of a run and its last alarms, as JSON knows them.

    Args:
        journal: of the run.
    """
    return {
        "generations": [
            {
                "number": generation.number,
                "parent": generation.parent,
                "trigger": generation.trigger,
                "verdict": generation.verdict,
                "reasons": generation.reasons,
                "finished": generation.finished,
                "new_accuracy": _finite(generation.summary.get("new_accuracy")),
                "old_accuracy": _finite(generation.summary.get("old_accuracy")),
            }
            for generation in journal.generations()
        ],
        "champions": journal.champions(),
        "alarms": [
            {name: alarm[name] for name in ("time", "kind", "message")}
            for alarm in reversed(journal.alarms()[-_ALARMS:])
        ],
    }


def _finite(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
