"""Counting floating-point operations, also where PyTorch's counter knows no formula for what a CPU runs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

aten: Any = torch.ops.aten


def flop_counter() -> FlopCounterMode:
    """A context that counts multiplications and additions; `get_total_flops()` tells them.

    Beside what PyTorch counts: fused attention and LSTMs on CPUs, which would be free; and weight gradients of
    grouped convolutions, which would count anew for every group. Causal attention counts whole, as everywhere.
    """
    formulas = {
        aten._scaled_dot_product_flash_attention_for_cpu: _attention,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
        aten.mkldnn_rnn_layer: _recurrent,
        aten.mkldnn_rnn_layer_backward: _recurrent_backward,
        aten.convolution_backward: _convolution_backward,
    }
    for formula in formulas.values():
        formula._get_raw = True  # type: ignore[attr-defined]
    return FlopCounterMode(display=False, custom_mapping=formulas)


def _attention(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> int:
    """Queries (B, H, n, d) by keys (B, H, m, d), then weights by values (B, H, m, e)."""
    return 2 * query[..., 0].numel() * key.shape[-2] * (key.shape[-1] + value.shape[-1])


def _attention_backward(_: Tensor, query: Tensor, key: Tensor, value: Tensor, *__: Any, **___: Any) -> int:
    """Each product has two gradients; weights that are made once more do not count, as where they are kept."""
    return 2 * _attention(query, key, value)


def _recurrent(x: Tensor, input_weight: Tensor, hidden_weight: Tensor, *_: Any, **__: Any) -> int:
    """A layer over x (T, B, C)."""
    return 2 * x[..., 0].numel() * (input_weight.numel() + hidden_weight.numel())


def _recurrent_backward(x: Tensor, input_weight: Tensor, hidden_weight: Tensor, *_: Any, **__: Any) -> int:
    return 2 * _recurrent(x, input_weight, hidden_weight)


def _convolution_backward(grad: Tensor, x: Tensor, weight: Tensor, *rest: Any, **_: Any) -> int:
    """As much as the convolution for each of the gradients of input and weight that are wanted."""
    transposed, wanted = rest[4], rest[7]
    return 2 * (x if transposed else grad).numel() * weight[0].numel() * sum(wanted[:2])
