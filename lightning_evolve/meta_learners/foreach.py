"""Operations on lists of tensors that use no more memory than they must."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def on_temporaries(operation: str, tensors: Sequence[Tensor], *arguments: Any) -> list[Tensor]:
    """Applies ``torch._foreach_<operation>`` to tensors that nobody else will read.

    In place where no graph is kept: fresh memory costs more than the arithmetic. Where one is,
    what came in between may be needed again and is left as it is; the results are the same.

    Args:
        operation: such as ``"mul"``.
        tensors: results of an operation before.
        *arguments: the others that the operation takes.

    Example:
        >>> on_temporaries("mul", [torch.ones(2)], 3.0)
        [tensor([3., 3.])]
    """
    if torch.is_grad_enabled():
        return list(getattr(torch, f"_foreach_{operation}")(tensors, *arguments))
    getattr(torch, f"_foreach_{operation}_")(tensors, *arguments)
    return list(tensors)
