r"""An LSTM layer whose first and second derivatives are written out.

.. math::
    a_t &= W_x x_t + W_h h_{t-1} + b, \qquad i, f, o = \sigma(a^{i,f,o}_t), \quad
    g = \tanh(a^g_t) \\
    c_t &= f \, c_{t-1} + i \, g, \qquad h_t = o \tanh(c_t)

Autograd would record some ten operations a time step, thirty for their gradient and seventy for
the gradient of that, each of which costs more to call and to remember than to compute. Here each
derivative is a loop of a handful, and what does not depend on the step before is done for all time
steps at once, such as the gradients of the weights.

The gradient is backpropagation through time. Of the second derivative only a product with a vector
is ever asked for: :math:`J` being the Jacobian of the layer, an upstream gradient :math:`\bar h`
gives :math:`J^T \bar h`, and a direction :math:`v` of the inputs and weights gives

.. math::
    \frac{\partial \langle v, J^T \bar h \rangle}{\partial \bar h} = J v, \qquad
    \frac{\partial \langle v, J^T \bar h \rangle}{\partial (x, W, b)}
    = \frac{d}{d \varepsilon} \, J(\theta + \varepsilon v)^T \bar h

(Pearlmutter 1994): the tangents, in the direction v, of the forward and of the backward pass.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional


def lstm_layer(inputs: Tensor, w_x: Tensor, w_h: Tensor, bias: Tensor) -> Tensor:
    """Runs an LSTM from zero states; can be differentiated twice.

    Args:
        inputs: shape ``[tokens, rows, features]``.
        w_x: shape ``[4 * units, features]``, gates in torch's order i, f, g, o.
        w_h: shape ``[4 * units, units]``.
        bias: shape ``[4 * units]``.

    Returns:
        The hidden states, shape ``[tokens, rows, units]``.
    """
    # In the precision of theta: the loops write into tensors of a dtype that is theirs.
    with torch.autocast(inputs.device.type, enabled=False):
        hidden: Tensor = _Layer.apply(inputs.to(w_x.dtype), w_x, w_h, bias)  # type: ignore[no-untyped-call]
    return hidden


class _Layer(Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, w_x: Tensor, w_h: Tensor, bias: Tensor) -> Tensor:
        units, w_h_t = w_h.shape[1], w_h.t()
        gates = _affine(inputs, w_x, bias)
        cells, hidden = (gates.new_empty(*gates.shape[:2], units) for _ in range(2))
        cell_before = before = None
        for now, cell, out in zip(gates, cells, hidden, strict=True):
            if before is not None:
                now.addmm_(before, w_h_t)
            take_keep, new, show = now.split((2 * units, units, units), 1)
            take, keep = take_keep.sigmoid_().chunk(2, 1)
            torch.mul(take, new.tanh_(), out=cell)
            if cell_before is not None:
                cell.addcmul_(keep, cell_before)
            torch.tanh(cell, out=out).mul_(show.sigmoid_())
            cell_before, before = cell, out
        ctx.save_for_backward(inputs, w_x, w_h, bias, gates, cells, hidden)
        return hidden

    @staticmethod
    def backward(ctx: Any, by_hidden: Tensor) -> Any:
        *saved, hidden = ctx.saved_tensors
        # How it depends on the inputs is in the tangents; as a result of this function autograd
        # would run this pass once more for it, with zeros.
        return _Gradient.apply(by_hidden, *saved, hidden.detach())  # type: ignore[no-untyped-call]


class _Gradient(Function):
    """Gradients by inputs, w_x, w_h and bias, as a function of those and of the upstream one."""

    @staticmethod
    def forward(
        ctx: Any,
        by_hidden: Tensor,
        inputs: Tensor,
        w_x: Tensor,
        w_h: Tensor,
        bias: Tensor,
        gates: Tensor,
        cells: Tensor,
        hidden: Tensor,
    ) -> tuple[Tensor, ...]:
        slopes, hidden_by_cell = _slopes(gates, cells)
        by_gates, by_cells = torch.zeros_like(gates), torch.zeros_like(cells)
        by_hidden = by_hidden.clone(memory_format=torch.contiguous_format)
        _back(gates, slopes, hidden_by_cell, w_h, by_gates, by_cells, by_hidden)
        ctx.save_for_backward(inputs, w_x, w_h, gates, cells, hidden, by_gates, by_cells, by_hidden)
        flat = by_gates.flatten(0, 1)
        return (
            by_gates @ w_x,
            flat.t() @ inputs.flatten(0, 1),
            by_gates[1:].flatten(0, 1).t() @ hidden[:-1].flatten(0, 1),
            flat.sum(0),
        )

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, v_inputs: Tensor, v_x: Tensor, v_h: Tensor, v_bias: Tensor) -> Any:
        inputs, w_x, w_h, gates, cells, hidden, by_gates, by_cells, by_hidden = ctx.saved_tensors
        units, w_h_t = w_h.shape[1], w_h.t()
        take, _, new, show = gates.chunk(4, 2)
        tanh = cells.tanh()
        # The slope of each gate's own nonlinearity, and of tanh(c).
        own = (1 - gates).mul_(gates)
        own[..., 2 * units : 3 * units] = 1 - new * new
        tanh_slope = 1 - tanh * tanh

        # Tangents of the forward pass: of the gates before their nonlinearity, then of all after.
        d_gates = _affine(v_inputs, w_x, v_bias)
        d_gates.flatten(0, 1).addmm_(inputs.flatten(0, 1), v_x.t())
        d_gates[1:].flatten(0, 1).addmm_(hidden[:-1].flatten(0, 1), v_h.t())
        d_cells, d_tanh, d_hidden = (torch.empty_like(cells) for _ in range(3))
        made = zip(d_gates, d_cells, d_tanh, d_hidden, strict=True)
        known = zip(gates, cells, own, tanh, tanh_slope, strict=True)
        d_before = d_cell_before = cell_before = None
        for (d_now, d_cell, d_tan, d_out), (now, cell, slope, tan, tan_slope) in zip(
            made, known, strict=True
        ):
            if d_before is not None:
                d_now.addmm_(d_before, w_h_t)
            (i, f, g, o), (d_i, d_f, d_g, d_o) = now.chunk(4, 1), d_now.mul_(slope).chunk(4, 1)
            torch.mul(d_i, g, out=d_cell).addcmul_(i, d_g)
            if cell_before is not None:
                d_cell.addcmul_(d_f, cell_before).addcmul_(f, d_cell_before)
            torch.mul(tan_slope, d_cell, out=d_tan)
            torch.mul(d_o, tan, out=d_out).addcmul_(o, d_tan)
            d_before, d_cell_before, cell_before = d_out, d_cell, cell

        # Tangents of the slopes, times the gradients that they are multiplied by.
        d_take, d_keep, d_new, d_show = d_gates.chunk(4, 2)
        own_i, own_f, own_g, own_o = own.chunk(4, 2)
        d_own = (1 - 2 * gates).mul_(d_gates)
        d_own[..., 2 * units : 3 * units] = -2 * new * d_new
        d_own_i, d_own_f, d_own_g, d_own_o = d_own.chunk(4, 2)
        before, d_before = (functional.pad(t[:-1], (0, 0, 0, 0, 1, 0)) for t in (cells, d_cells))
        d_by_gates = torch.empty_like(gates)
        for out, gradient, (a, b, c, d) in zip(
            d_by_gates.chunk(4, 2),
            (by_cells, by_cells, by_cells, by_hidden),
            (
                (d_new, own_i, new, d_own_i),
                (d_before, own_f, before, d_own_f),
                (d_take, own_g, take, d_own_g),
                (d_tanh, own_o, tanh, d_own_o),
            ),
            strict=True,
        ):
            torch.mul(a, b, out=out).addcmul_(c, d).mul_(gradient)
        d_by_cells = (d_show * tanh_slope).addcmul_(show * tanh, d_tanh, value=-2).mul_(by_hidden)
        d_by_cells[:-1].addcmul_(by_cells[1:], d_keep[1:])
        d_by_hidden = torch.zeros_like(cells)
        d_by_hidden[:-1] = by_gates[1:] @ v_h

        # Not kept from the backward pass: a twentieth of the time, a seventh of the memory.
        slopes, hidden_by_cell = _slopes(gates, cells)
        _back(gates, slopes, hidden_by_cell, w_h, d_by_gates, d_by_cells, d_by_hidden)
        flat, d_flat = by_gates.flatten(0, 1), d_by_gates.flatten(0, 1)
        later, d_later = by_gates[1:].flatten(0, 1), d_by_gates[1:].flatten(0, 1)
        x, d_x = inputs.flatten(0, 1), v_inputs.flatten(0, 1)
        h, d_h = hidden[:-1].flatten(0, 1), d_hidden[:-1].flatten(0, 1)
        return (
            d_hidden,
            (d_flat @ w_x).addmm_(flat, v_x).view_as(inputs),
            (d_flat.t() @ x).addmm_(flat.t(), d_x),
            (d_later.t() @ h).addmm_(later.t(), d_h),
            d_flat.sum(0),
            *[None] * 3,
        )


def _affine(inputs: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """One matrix product for the inputs of all time steps."""
    flat = torch.addmm(bias, inputs.flatten(0, 1), weight.t())
    return flat.view(*inputs.shape[:2], -1)


def _slopes(gates: Tensor, cells: Tensor) -> tuple[Tensor, Tensor]:
    """The slopes of c by a (of h, for the gate o), and of h by c, within a time step."""
    take, _, new, show = gates.chunk(4, 2)
    tanh = cells.tanh()
    slopes = (1 - gates).mul_(gates)
    by_take, by_keep, by_new, by_show = slopes.chunk(4, 2)
    by_take.mul_(new)
    by_keep[0] = 0
    by_keep[1:].mul_(cells[:-1])
    torch.mul(1 - new * new, take, out=by_new)
    by_show.mul_(tanh)
    return slopes, (1 - tanh * tanh).mul_(show)


def _back(
    gates: Tensor,
    slopes: Tensor,
    hidden_by_cell: Tensor,
    w_h: Tensor,
    by_gates: Tensor,
    by_cells: Tensor,
    by_hidden: Tensor,
) -> None:
    """Adds to the gradients by a, c and h what comes from later time steps, in place."""
    units = w_h.shape[1]
    four, slopes = (t.view(*t.shape[:2], 4, units) for t in (by_gates, slopes))
    rows = zip(
        by_gates,
        four[:, :, :3],
        four[:, :, 3],
        slopes[:, :, :3],
        slopes[:, :, 3],
        by_cells,
        by_cells.unsqueeze(2),
        by_hidden,
        hidden_by_cell,
        gates[:, :, units : 2 * units],
        strict=True,
    )
    later = None
    for row in reversed([*rows]):
        now, ifg, o, of_c, of_h, by_c, by_c_of_each, by_h, h_by_c, keep = row
        if later is not None:
            by_now, by_c_later, keep_later = later
            by_h.addmm_(by_now, w_h)
            by_c.addcmul_(by_c_later, keep_later)
        by_c.addcmul_(by_h, h_by_c)
        ifg.addcmul_(of_c, by_c_of_each)
        o.addcmul_(of_h, by_h)
        later = now, by_c, keep
