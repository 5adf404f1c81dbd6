"""Muon: momentum orthogonalised by a Newton-Schulz iteration."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from fnmatch import fnmatchcase

import torch
from torch import Tensor
from typing_extensions import Self

from lightning_evolve.errors import UsageError
from lightning_evolve.meta_learners.base import MetaLearner, State, named
from lightning_evolve.meta_learners.moments import TINY, adam_moments, check_adam
from lightning_evolve.tasks import Tensors

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5
_EPS = 1e-7
_NOT_HIDDEN = ("*embedding*", "head.*")


def orthogonalise(matrices: Tensor) -> Tensor:
    r"""Moves all singular values near 1 by five Newton-Schulz iterations (Jordan et al. 2024).

    .. math::
        X_0 = M / \lVert M \rVert_F, \qquad
        X_{j+1} = a X_j + (b A + c A^2) X_j, \quad A = X_j X_j^\top

    with (a, b, c) = (3.4445, -4.7750, 2.0315), which brings them into about 0.7..1.2 rather than
    to 1. In the matrices' own precision: on a CPU bfloat16 would be the slower one.

    Args:
        matrices: shape ``[..., rows, columns]``.

    Example:
        >>> torch.linalg.svdvals(orthogonalise(torch.diag(torch.tensor([3.0, 1.0])))) > 0.6
        tensor([True, True])
    """
    a, b, c = _COEFFICIENTS
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    # Not .norm(), which has no derivative at a gradient of exactly 0.
    norm = (x.square().sum(dim=(-2, -1), keepdim=True) + TINY).sqrt()
    x = x / norm.clamp_min(_EPS)
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return x.mT if tall else x


class Muon(MetaLearner):
    r"""Orthogonalised momentum for hidden matrices, AdamW for the rest (Jordan et al. 2024).

    .. math::
        m \leftarrow \mu m + (1 - \mu) g, \qquad
        d = - 0.2 \sqrt{\max(r, c)} \; \mathrm{orthogonalise}(\mu m + (1 - \mu) g)
        - \lambda \theta

    for a matrix of r rows and c columns; further dimensions, as of a convolution, count as
    columns. The factor gives the step the size of one of AdamW (Liu et al. 2025), so that one
    alpha serves both. With it, matrices take the steps of ``torch.optim.Muon`` with
    ``adjust_lr_fn="match_rms_adamw"``.

    Args:
        params: the parameters that will adapt.
        momentum: the decay mu, in 0..1.
        weight_decay: decoupled decay lambda, per unit of alpha.
        betas: decays of AdamW's moments.
        eps: added to the root in AdamW.
        adamw: patterns of the names that AdamW takes though they are matrices. If not given,
            embeddings and the head, as Jordan et al. advise, unless no matrix were left then.

    Raises:
        UsageError: for a number out of range, or a pattern that names no parameter.
    """

    def __init__(
        self,
        params: Tensors,
        *,
        momentum: float = 0.95,
        weight_decay: float = 0.1,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        adamw: Sequence[str] | None = None,
    ) -> None:
        super().__init__(params)
        if not 0 <= momentum < 1:
            raise UsageError(f"momentum is {momentum}; give a number from 0 to below 1")
        check_adam(betas, eps, weight_decay)
        for pattern in adamw or ():
            if not any(fnmatchcase(name, pattern) for name in params):
                known = ", ".join(params)
                raise UsageError(f"adamw: {pattern!r} names none of the parameters {known}")
        self.momentum, self.weight_decay, self.betas, self.eps = momentum, weight_decay, betas, eps
        self.excluded = _NOT_HIDDEN if adamw is None else tuple(adamw)
        self._sort(params)
        if adamw is None and not self.matrices:
            self.excluded = ()
            self._sort(params)

    def over(self, params: Tensors) -> Self:
        """See :meth:`MetaLearner.over`; a pattern that names no tensor is no mistake here."""
        other = super().over(params)
        other._sort(params)
        return other

    def _sort(self, params: Tensors) -> None:
        """Finds out which tensors are matrices to be orthogonalised."""
        self.matrices = tuple(
            name
            for name, p in params.items()
            if p.dim() >= 2 and not any(fnmatchcase(name, pattern) for pattern in self.excluded)
        )
        self.rest = tuple(name for name in params if name not in self.matrices)

    def init(self, params: Tensors) -> State:
        """See :class:`MetaLearner`; a parameter has the accumulators of the rule that it is in."""

        def zeros(names: tuple[str, ...]) -> Tensors:
            return {name: torch.zeros_like(params[name]) for name in names}

        state = {"momentum": zeros(self.matrices), "m": zeros(self.rest), "v": zeros(self.rest)}
        return State(0, state)

    def forward(self, grads: Tensors, params: Tensors, state: State) -> tuple[Tensors, State]:
        """See :class:`MetaLearner`."""
        direction: Tensors = {}
        accumulators = dict(state.accumulators)
        if self.rest:
            gradients = {name: grads[name] for name in self.rest}
            moments = adam_moments(gradients, state, self.betas, self.eps)
            direction |= named(self.rest, moments.direction)
            accumulators |= moments.state.accumulators
        if self.matrices:
            g = [grads[name] for name in self.matrices]
            past = [state.accumulators["momentum"][name] for name in self.matrices]
            momentum = torch._foreach_lerp(past, g, 1 - self.momentum)
            nesterov = torch._foreach_lerp(g, momentum, self.momentum)
            direction |= named(self.matrices, _steps(nesterov))
            accumulators["momentum"] = named(self.matrices, momentum)
        steps = [direction[name] for name in self.names]
        if self.weight_decay:
            steps = list(torch._foreach_add(steps, list(params.values()), alpha=-self.weight_decay))
        return named(self.names, steps), State(state.step + 1, accumulators)


def _steps(momentum: Sequence[Tensor]) -> list[Tensor]:
    """Minus the scaled orthogonal factor of each tensor; those of one shape go in one batch."""
    alike: dict[tuple[int, int], list[int]] = defaultdict(list)
    for index, m in enumerate(momentum):
        alike[len(m), m[0].numel()].append(index)
    steps = list(momentum)
    for shape, indices in alike.items():
        stacked = torch.stack([momentum[index].reshape(shape) for index in indices])
        scaled = orthogonalise(stacked) * (-0.2 * max(shape) ** 0.5)
        for index, step in zip(indices, scaled.unbind(), strict=True):
            steps[index] = step.view_as(momentum[index])
    return steps
