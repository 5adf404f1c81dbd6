"""The learners of several families of tasks."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from lightning_evolve.errors import UsageError
from lightning_evolve.learners.base import Learner, LearnerFactory
from lightning_evolve.tasks import DataSpec


class Learners(Learner):
    """A learner for each family, side by side; it is never run as a whole.

    Args:
        spec: what the data of all families looks like.
        factories: what builds the learner of each family, by the family's name.

    Raises:
        UsageError: if a family has no learner, or a learner no family.
    """

    def __init__(self, spec: DataSpec, factories: Mapping[str, LearnerFactory]) -> None:
        super().__init__(spec)
        for name in [*spec.families, *factories]:
            if name not in factories or name not in spec.families:
                there, lacking = (
                    ("data", "learner") if name in spec.families else ("learner", "data")
                )
                raise UsageError(
                    f"there is a {there} {name} and no {lacking} of that name: give "
                    "model.learners and data.streams the same families"
                )
        # By number, as a family's name would be taken for a part of a tensor's: its role.
        self.members = nn.ModuleList(factories[family](s) for family, s in spec.families.items())

    def of(self, family: str) -> Learner:
        """Returns the learner of a family.

        Args:
            family: its name.
        """
        member = self.members[list(self.spec.families).index(family)]
        assert isinstance(member, Learner), "a factory builds learners"
        return member
