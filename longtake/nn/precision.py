"""Which precision there is, and which is needed."""

from __future__ import annotations

import torch
from torch import Tensor


def wide(x: Tensor) -> Tensor:
    """In float32 at least: for sums and norms under autocast."""
    return x if x.dtype == torch.float64 else x.float()


def fast_bfloat16() -> bool:
    """Whether this CPU multiplies in bfloat16 itself; without, PyTorch's products are a hundred times slower."""
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
