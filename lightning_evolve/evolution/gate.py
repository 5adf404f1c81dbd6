"""The gate: whether a challenger takes the champion's place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from scipy import stats

from lightning_evolve.data.checks import at_least
from lightning_evolve.errors import UsageError
from lightning_evolve.evolution.evaluation import ClassScores, Comparison

_LEVEL = 0.05
"""Of the tests for losses. However little evidence a promotion asks for, a loss must be shown: the
old rows are the same in each generation, and what chance takes from them once it takes for ever."""


@dataclass(frozen=True)
class Verdict:
    """What the gate decided.

    Args:
        promote: whether the challenger becomes the champion.
        reasons: why or why not, a sentence with its figures each.
    """

    promote: bool
    reasons: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Returns numbers, strings, lists and dictionaries alone."""
        return {"promote": self.promote, "reasons": list(self.reasons)}

    @classmethod
    def from_json(cls, saved: dict[str, Any]) -> Verdict:
        """Returns what :meth:`to_json` was called on.

        Args:
            saved: what it returned, perhaps by way of a file.
        """
        return cls(saved["promote"], tuple(saved["reasons"]))


@dataclass(frozen=True)
class Gate:
    """Promotes a challenger that is better on new data and worse on nothing that is known.

    *New data.* The lower bound of the paired gain in half the Brier score is above ``margin``, it
    is not by chance (see `Comparison`), and the accuracy is no lower. By right and wrong alone some
    50 rows cannot tell models apart that differ by 5 points; a proper score also counts how sure
    they are. Rows of a single class, or fewer than ``fewest``, are not evidence enough whatever
    they say.

    *Old data.* The difference in accuracy is no lower than minus ``tolerance``: the point, not its
    bound, which on a small retention set would keep every challenger out.

    *Anchor.* Small losses add up over promotions: beside an earlier champion, on what was old to
    that one, the same holds as for a class.

    *Classes*, on new and on old data. A class of 10 rows moves by 10 points when a single row
    flips, so a recall that is lower by more than ``tolerance`` counts only where the exact sign
    test (McNemar 1947) at 0.05 finds more rows lost than gained than chance would have. Over many
    classes something always looks lost: the level is divided by the number of classes that differ
    on enough rows to fail the test at all (Tarone 1990). Of two classes, say, 7 rows lost and 1
    gained is a loss; 3 lost and none gained never is.

    Args:
        margin: what the new data must show, in half the Brier score; less is not worth a change.
        tolerance: what a challenger may lose on old data or on a class, in accuracy.
        confidence: of the gain on new data.
        fewest: rows of new data.
        matter: names of the classes that must not get worse; None for all.

    Raises:
        UsageError: if a number is out of its range.
    """

    margin: float = 0.005
    tolerance: float = 0.02
    confidence: float = 0.95
    fewest: int = 30
    matter: list[str] | None = None

    def __post_init__(self) -> None:
        """Checks the numbers."""
        at_least(1, fewest=self.fewest)
        for name in ("margin", "tolerance"):
            if not 0 <= getattr(self, name) < 1:
                raise UsageError(
                    f"{name} is {getattr(self, name)}; give a share of the rows such as 0.02"
                )
        if not 0.5 <= self.confidence < 1:
            raise UsageError(f"confidence is {self.confidence}; give 0.5 or more, such as 0.95")

    def decide(
        self,
        new: Comparison | None,
        old: Comparison | None,
        anchor: Comparison | None = None,
    ) -> Verdict:
        """Decides on a challenger.

        Args:
            new: both models on held-out rows of the new data, compared with this gate's confidence;
                None where there are no rows.
            old: both models on held-out rows of earlier data; None where there are none yet.
            anchor: the challenger beside an earlier champion, on rows that were old to that one.

        Returns:
            The verdict: all that speaks against the challenger, or else what speaks for it.
        """
        checks = [
            *self._new(new),
            *self._old(old),
            *self._classes(new, old),
            *self._anchor(anchor),
        ]
        against = tuple(reason for good, reason in checks if not good)
        return Verdict(not against, against or tuple(reason for _, reason in checks))

    def _new(self, new: Comparison | None) -> list[tuple[bool, str]]:
        rows = 0 if new is None else new.rows
        if new is None or rows < self.fewest:
            return [(False, f"new data: {rows} held-out rows, asked for {self.fewest} at least")]
        assert new.confidence == self.confidence, "compare() and the gate take one confidence"
        if len(new.classes) == 1:
            return [(False, f"new data: all {rows} held-out rows are {next(iter(new.classes))!r}")]
        better = new.lower > self.margin
        said = (
            f"new data: {_points(new.accuracy.mean)} points, gain in Brier score "
            f"{_points(-new.brier.mean)}, lower bound {_points(new.lower)}, asked > "
            f"{100 * self.margin:g}"
        )
        if better and new.chance > 1 - self.confidence:
            said += f", yet by chance in {new.chance:.0%} of cases"
            better = False
        if better and new.accuracy.mean < 0:
            said += ", yet fewer rows are right"
            better = False
        return [(better, said)]

    def _old(self, old: Comparison | None) -> list[tuple[bool, str]]:
        if old is None:
            return [(True, "old data: none yet")]
        difference = old.accuracy.mean
        return [
            (
                difference >= -self.tolerance - 1e-9,
                f"old data: {_points(difference)} points, allowed {_points(-self.tolerance)}",
            )
        ]

    def _anchor(self, anchor: Comparison | None) -> list[tuple[bool, str]]:
        if anchor is None:
            return []
        difference = anchor.accuracy.mean
        lost = (
            difference < -self.tolerance - 1e-9 and _by_chance(anchor.lost, anchor.gained) <= _LEVEL
        )
        if not lost:
            return []
        return [
            (
                False,
                f"old data, beside an earlier champion: {_points(difference)} points "
                f"({anchor.lost} of {anchor.rows} rows lost, {anchor.gained} gained), allowed "
                f"{_points(-self.tolerance)}",
            )
        ]

    def _classes(self, new: Comparison | None, old: Comparison | None) -> list[tuple[bool, str]]:
        found = {
            (kind, name): scores
            for kind, comparison in (("new", new), ("old", old))
            if comparison is not None
            for name, scores in comparison.classes.items()
            if self.matter is None or name in self.matter
        }
        level = tarone(list(found.values()), _LEVEL)
        worse = [
            (
                False,
                f"class {name!r} on {kind} data: {_points(scores.difference)} points "
                f"({scores.lost} of {scores.rows} rows lost, {scores.gained} gained), "
                f"allowed {_points(-self.tolerance)}",
            )
            for (kind, name), scores in found.items()
            if scores.difference < -self.tolerance - 1e-9
            and _by_chance(scores.lost, scores.gained) <= level
        ]
        unseen = sorted({*(self.matter or ())} - {name for _, name in found})
        return worse + [(True, f"class {name!r}: no rows to judge it by") for name in unseen]


def tarone(classes: Sequence[ClassScores], level: float) -> float:
    """The level of each of several sign tests, so that all together keep to ``level``.

    A test of d rows that differ can have no p-value below 2^-d. Those whose least is above
    ``level / k`` cannot fail at that level and need no share of it; k is the least number that at
    most k tests remain for (Tarone 1990). Bonferroni would divide by all.

    Args:
        classes: what is tested.
        level: of all tests together.

    Example:
        >>> few, many = ClassScores(9, 1, 1, 1, 1), ClassScores(90, 1, 1, 5, 5)
        >>> tarone([few] * 99 + [many], 0.05), tarone([many] * 5, 0.05)
        (0.05, 0.01)
    """
    least = sorted(0.5 ** (scores.gained + scores.lost) for scores in classes)
    k = 1
    while sum(p <= level / k for p in least) > k:
        k += 1
    return level / k


def _by_chance(more: int, fewer: int) -> float:
    """Chance of so many of one kind, or more, where both kinds are as likely."""
    return float(stats.binom.sf(more - 1, more + fewer, 0.5))


def _points(share: float) -> str:
    """A difference of shares in percentage points, with its sign."""
    return f"{100 * share + 0.0:+.1f}"
