"""Estimates of several families of tasks, brought to one scale before they are averaged."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from lightning_evolve.estimators import Estimate

DECAY = 0.95  # an outer step's share of the mean is 1 - DECAY


class Balance(nn.Module):
    r"""Divides the estimates of each family by the running root mean square of their norm.

    .. math::
        v_f \leftarrow d \, v_f + (1 - d) \, \overline{\|e_f\|^2}, \qquad
        e_f \leftarrow e_f / \sqrt{v_f / (1 - d^{t_f})}

    It is Adam's normaliser with one second moment a family, the estimates of this step included:
    neither the scale of a family's rewards nor one run that diverged decides where phi goes. An
    exact gradient and a noisy one are scaled alike; of a family that is mostly noise, the signal
    counts less.

    Args:
        families: their names.

    Example:
        >>> estimates = [
        ...     Estimate({"phi": torch.tensor([g])}, {}, *[torch.zeros(())] * 2, None)
        ...     for g in (100.0, -0.5)
        ... ]
        >>> [e.phi["phi"].item() for e in Balance(["a", "b"])(["a", "b"], estimates)]
        [1.0, -1.0]
    """

    mean_square: Tensor
    steps: Tensor

    def __init__(self, families: Sequence[str]) -> None:
        super().__init__()
        self.families = tuple(families)
        self.register_buffer("mean_square", torch.zeros(len(families)))
        self.register_buffer("steps", torch.zeros(len(families)))

    @torch.no_grad()
    def forward(
        self,
        families: Sequence[str],
        estimates: Sequence[Estimate],
        add_up: Callable[[Tensor], Tensor] = lambda t: t,
    ) -> list[Estimate]:
        """Takes the estimates of an outer step into account, and returns them on one scale.

        Args:
            families: of each estimate, its family.
            estimates: this process's own.
            add_up: sums a tensor over processes.
        """
        places = [self.families.index(family) for family in families]
        squares = self.mean_square.new_zeros(2, len(self.families))
        for place, estimate in zip(places, estimates, strict=True):
            squares[0, place] += sum(g.square().sum() for g in estimate.phi.values())
            squares[1, place] += 1
        total, count = add_up(squares)
        there = count > 0
        moved = torch.lerp(total / count.clamp_min(1), self.mean_square, DECAY)
        self.mean_square.copy_(torch.where(there, moved, self.mean_square))
        self.steps.add_(there)
        norms = (self.mean_square / (1 - DECAY**self.steps)).sqrt()
        return [
            # A family whose estimates are all zero keeps them.
            e._replace(phi={name: g / norms[p].clamp_min(1e-30) for name, g in e.phi.items()})
            for p, e in zip(places, estimates, strict=True)
        ]
