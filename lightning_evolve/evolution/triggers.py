"""When a generation starts: by the amount of new records, by time, by alarms, or by any of them.

No policy starts a generation while nothing is pending, for there would be nothing to learn from; an
alarm waits for records.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, final

from typing_extensions import override

from lightning_evolve.errors import UsageError
from lightning_evolve.evolution.monitoring import Alarm, Kind


class Trigger(ABC):
    """A policy; it keeps no state, so that a loop that resumes decides the same."""

    @final
    def due(self, pending: int, now: float, since: float, alarms: Sequence[Alarm]) -> str | None:
        """Whether a generation is to start.

        Args:
            pending: records that no generation has been trained on.
            now: seconds, of the clock that ``since`` is from.
            since: when the last generation started, or the loop where there was none.
            alarms: those since then.

        Returns:
            The reason, for the history; None if nothing is due.
        """
        return self._reason(pending, now, since, alarms) if pending > 0 else None

    @abstractmethod
    def _reason(
        self, pending: int, now: float, since: float, alarms: Sequence[Alarm]
    ) -> str | None: ...


class Amount(Trigger):
    """Every so many new records.

    Args:
        records: how many, at least 1.

    Example:
        >>> Amount(200).due(pending=230, now=0, since=0, alarms=())
        '230 new records (of 200)'
    """

    def __init__(self, records: int) -> None:
        if records < 1:
            raise UsageError(f"records is {records}: give 1 or more")
        self.records = records

    @override
    def _reason(
        self, pending: int, now: float, since: float, alarms: Sequence[Alarm]
    ) -> str | None:
        return f"{pending} new records (of {self.records})" if pending >= self.records else None


class Every(Trigger):
    """Every so many seconds.

    A clock that has been set back counts as no time since then: ``max(0, now - since)``. So it
    delays a generation and never starts one early.

    Args:
        seconds: more than 0.

    Example:
        >>> Every(3600).due(pending=1, now=4000.0, since=0.0, alarms=())
        '4000 s since the last generation (of 3600)'
        >>> Every(3600).due(pending=1, now=0.0, since=4000.0, alarms=())
    """

    def __init__(self, seconds: float) -> None:
        if not seconds > 0:
            raise UsageError(f"seconds is {seconds}: give more than 0")
        self.seconds = seconds

    @override
    def _reason(
        self, pending: int, now: float, since: float, alarms: Sequence[Alarm]
    ) -> str | None:
        elapsed = max(0.0, now - since)
        if elapsed < self.seconds:
            return None
        return f"{elapsed:.0f} s since the last generation (of {self.seconds:g})"


class _OnAlarm(Trigger):
    KINDS: ClassVar[tuple[Kind, ...]]

    @override
    def _reason(
        self, pending: int, now: float, since: float, alarms: Sequence[Alarm]
    ) -> str | None:
        return next((alarm.message for alarm in alarms if alarm.kind in self.KINDS), None)


class OnDrift(_OnAlarm):
    """When what comes in, or what is predicted for it, has moved: no labels are needed."""

    KINDS = ("embedding", "classes")


class OnDegradation(_OnAlarm):
    """When the error has risen, by labels or by the estimate without them."""

    KINDS = ("degradation", "estimated_accuracy")


class AnyOf(Trigger):
    """When any of several policies says so; the reason is that of the first which does.

    Args:
        triggers: the policies, at least one.

    Example:
        >>> AnyOf([Amount(200), Every(60)]).due(pending=3, now=90.0, since=0.0, alarms=())
        '90 s since the last generation (of 60)'
    """

    def __init__(self, triggers: Sequence[Trigger]) -> None:
        if not triggers:
            raise UsageError("triggers is empty: give at least one policy")
        self.triggers = tuple(triggers)

    @override
    def _reason(
        self, pending: int, now: float, since: float, alarms: Sequence[Alarm]
    ) -> str | None:
        reasons = (trigger.due(pending, now, since, alarms) for trigger in self.triggers)
        return next((reason for reason in reasons if reason), None)
