"""Roles of tensors in a network: what a per-tensor rule can take along to another model."""

from __future__ import annotations

import re
import warnings

from torch import Tensor

from lightning_evolve.tasks import Tensors

ROLES = ("embedding", "recurrent", "convolution", "matrix", "norm", "head", "vector")
"""All roles, in the order in which phi has them. What is saved depends on it: append only."""

# The last part of a module's path that says what it is wins, so "head.norm.weight" is a norm.
_NAMED = (
    ("norm", re.compile(r"norm|^ln(_|\d|$)|^bn(_|\d|$)|^batch_?norm", re.IGNORECASE)),
    ("embedding", re.compile(r"embed|^wte$|^wpe$", re.IGNORECASE)),
    ("recurrent", re.compile(r"^(weight|bias)_hh|recurrent", re.IGNORECASE)),
    ("head", re.compile(r"^(head|lm_head|classifier|score|qa_outputs|logits)$", re.IGNORECASE)),
)


def role(name: str, tensor: Tensor) -> str:
    """Returns what a tensor is in its network, from its name, or else from its shape.

    Args:
        name: of the parameter, such as ``"encoder.layer.0.LayerNorm.weight"``; one that says
            nothing, such as ``"0"``, leaves it to the shape.
        tensor: the parameter; only its number of dimensions matters.

    Returns:
        One of :data:`ROLES`. Biases and other vectors are ``"vector"`` except in a norm or a head.

    Example:
        >>> import torch
        >>> matrix, vector = torch.zeros(2, 2), torch.zeros(2)
        >>> role("encoder.layer.0.LayerNorm.weight", vector), role("bert.wte.weight", matrix)
        ('norm', 'embedding')
        >>> role("lstm.weight_hh_l0", matrix), role("lstm.bias_ih_l0", vector)
        ('recurrent', 'vector')
        >>> role("classifier.weight", matrix), role("0", matrix)
        ('head', 'matrix')
    """
    for part in reversed(name.split(".")):
        for found, pattern in _NAMED:
            if pattern.search(part) and (tensor.dim() == 2 or found in ("norm", "head")):
                return found
    return {0: "vector", 1: "vector", 2: "matrix"}.get(tensor.dim(), "convolution")


def roles(params: Tensors) -> list[str]:
    """Returns the role of each tensor, in the order of the tensors.

    Args:
        params: named parameters; if all names are numbers, a warning tells what is lost.
    """
    if params and all(name.isdecimal() for name in params):
        warnings.warn(
            "the parameters have no names, so that an embedding, a head or a norm is not told from "
            "other matrices and vectors; pass model.named_parameters()",
            stacklevel=3,
        )
    return [role(name, tensor) for name, tensor in params.items()]
