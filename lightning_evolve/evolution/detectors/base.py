"""The contract of a detector: a stream of errors goes in, one value at a time; alarms come out."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from typing import Any, ClassVar, final

from lightning_evolve.errors import UsageError


class Detector(ABC):
    """Watches a stream for a rise of its mean; one that falls never alarms.

    After an alarm a detector starts anew: what came before it is forgotten.

    Attributes:
        STATE: attributes that change with the stream; ``reset`` sets them, ``state_dict`` holds
            them, and JSON can write them.
    """

    STATE: ClassVar[tuple[str, ...]]

    @final
    def update(self, value: float) -> bool:
        """Take the next value of the stream.

        Args:
            value: 1 for an error and 0 for none, or a loss between them.

        Returns:
            Whether there is an alarm at this value.

        Raises:
            UsageError: for a value outside of 0 to 1, or NaN; it is not taken.
        """
        if not 0 <= value <= 1:
            raise UsageError(f"a detector was given {value}: give errors from 0 to 1")
        alarm = self._take(float(value))
        if alarm:
            self.reset()
        return alarm

    @abstractmethod
    def reset(self) -> None:
        """Forget the stream."""

    @abstractmethod
    def _take(self, value: float) -> bool:
        """Whether the mean has risen; never at the first value, before which there is none."""

    def state_dict(self) -> dict[str, Any]:
        """Where the stream has got to: numbers and lists, nothing shared with the detector."""
        return {name: copy.deepcopy(getattr(self, name)) for name in self.STATE}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what ``state_dict`` gave.

        Raises:
            UsageError: if it is another detector's.
        """
        if set(state) != set(self.STATE):
            raise UsageError(
                f"the state of {type(self).__name__} is {', '.join(self.STATE)}, and not "
                f"{', '.join(state) or 'nothing'}: give the state of the same detector"
            )
        for name in self.STATE:
            setattr(self, name, copy.deepcopy(state[name]))


def positive(**values: float) -> None:
    """Refuse settings that are not above 0.

    Args:
        values: numbers by the name of their argument.

    Raises:
        UsageError: naming the first that is 0, negative or NaN.

    >>> positive(threshold=25.0)
    """
    for name, value in values.items():
        if not value > 0:
            raise UsageError(f"{name} is {value}: give a number above 0")
