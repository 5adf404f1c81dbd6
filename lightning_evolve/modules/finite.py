"""Estimates that are not finite are left out: one of them would make all of phi NaN for ever."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lightning_evolve.errors import UsageError
from lightning_evolve.estimators import Estimate
from lightning_evolve.tasks import Tensors


class FiniteEstimates:
    """Puts zero in the place of estimates with NaN or infinite values, and counts them.

    A learner that diverges in the inner loop has such a one, or one whose meta-gradient explodes.
    The count stays on the device, so that no step waits for it, and is told once an epoch.

    Example:
        >>> estimate = Estimate({"phi": torch.tensor([float("nan"), 1.0])}, {}, *[None] * 3)
        >>> finite = FiniteEstimates()
        >>> finite([estimate])[0].phi["phi"]
        tensor([0., 0.])
        >>> finite.count
        tensor([1., 1.])
    """

    def __init__(self) -> None:
        self.count: Tensor | None = None  # estimates that were left out, and all

    def __call__(self, estimates: Sequence[Estimate]) -> list[Estimate]:
        """Returns the estimates, all of them finite.

        Args:
            estimates: of an outer step.
        """
        return [self._finite(estimate) for estimate in estimates]

    @torch.no_grad()
    def _finite(self, estimate: Estimate) -> Estimate:
        gradients = [*estimate.phi.values(), *estimate.theta.values()]
        if not gradients:
            return estimate
        # One whose squares overflow is of as little use.
        fine = torch.stack(torch._foreach_norm(gradients)).isfinite().all()
        seen = torch.stack([~fine, torch.ones_like(fine)]).to(torch.get_default_dtype())
        self.count = seen if self.count is None else self.count + seen

        def zeroed(tensors: Tensors) -> Tensors:
            return {n: torch.where(fine, t, torch.zeros_like(t)) for n, t in tensors.items()}

        return estimate._replace(phi=zeroed(estimate.phi), theta=zeroed(estimate.theta))

    def tell(self, add_up: Callable[[Tensor], Tensor], alpha: float) -> None:
        """Warns of estimates that were left out since the last time.

        Args:
            add_up: sums a tensor over processes.
            alpha: inner step size.

        Raises:
            UsageError: if none was finite.
        """
        if self.count is None:
            return
        (lost, seen), self.count = add_up(self.count).tolist(), None
        mend = (
            f"the learner diverges or the meta-gradient explodes: lower alpha (now {alpha:g}), or "
            "use the estimator EvolutionStrategies"
        )
        if lost == seen:
            raise UsageError(f"no gradient of the reward was finite in a whole epoch; {mend}")
        if lost:
            warnings.warn(
                f"{lost:.0f} of {seen:.0f} gradients of the reward were not finite and are left "
                f"out; {mend}",
                stacklevel=2,
            )
