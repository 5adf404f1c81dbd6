"""A linear head on cached features in a learned metric."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from lightning_evolve.learners.base import Learner, zero
from lightning_evolve.learners.checks import check_kind
from lightning_evolve.tasks import DataSpec


class MetricHead(Learner):
    r"""Features on the unit sphere of a learned metric, and a ``head`` that starts at zero.

    .. math::
        u = M \frac{x}{\|x\|} + m, \qquad z = \frac{u}{\|u\|}, \qquad \mathrm{logits} = W z + b

    From W = 0 one step of gradient descent gives :math:`W_c \propto \bar z_c - \bar z`: the
    nearest mean in the metric (Snell et al. 2017), and further ones approach logistic regression.
    M starts as the identity and m at zero. With ``adapt: [head]`` and ``learn_init: [metric.*]``
    the inner loop fits W to a task and the outer loop learns M and m: ANIL (Raghu et al. 2020), its
    head at zero (Kao et al. 2022).

    Args:
        spec: what the data looks like; ``shape`` is ``(features,)``.

    Raises:
        UsageError: if the data is not feature vectors.
    """

    first_layer = "metric"

    def __init__(self, spec: DataSpec) -> None:
        super().__init__(spec)
        check_kind("MetricHead", "feature vectors", spec)
        (width,) = spec.shape
        self.metric = nn.Linear(width, width)
        self.head = nn.Linear(width, spec.num_classes)
        nn.init.eye_(self.metric.weight)
        nn.init.zeros_(self.metric.bias)
        zero(self.head)

    def forward(self, features: Tensor) -> Tensor:
        """Classify feature vectors.

        Args:
            features: float of shape ``[rows, features]``.

        Returns:
            Logits of shape ``[rows, num_classes]``.
        """
        placed = self.metric(functional.normalize(features, dim=-1))
        logits: Tensor = self.head(functional.normalize(placed, dim=-1))
        return logits
