"""Fast decoding of a LLaMA-style transformer: its weights packed for few rows, and a static cache.

The same mathematics as `Llama.forward` with a `KVCache`. Shapes: B rows, n tokens, C width, H heads, D = C / H.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F

from longtake.nn.attention import causal_mask
from longtake.nn.cache import KVCache
from longtake.nn.llama import EPS, Llama, LlamaBlock, rotary, rotate
from longtake.rollout.engine import Precision, pack_linear


class _PackedBlock:
    """The weights of one block."""

    def __init__(self, block: LlamaBlock, precision: Precision, rows: int):
        self.norm1, self.norm2 = block.norm1.weight.detach().float(), block.norm2.weight.detach().float()
        self.qkv = pack_linear(block.attention.qkv.weight, None, precision, rows)
        self.out = pack_linear(block.attention.out.weight, None, precision, rows)
        self.up = pack_linear(block.mlp.up.weight, None, precision, rows)
        self.down = pack_linear(block.mlp.down.weight, None, precision, rows)


class LlamaDecoder:
    """A LLaMA-style transformer made ready to decode: packed copies of its weights and a static cache.

    Later changes of the transformer's weights are not seen. The residual stream, the norms and (on the CPU) the
    cache are float32 in every precision.

    Args:
        llama: what to decode; its device is used.
        batch: number of rows B decoded together.
        length: most tokens a row.
        precision: of weights and products: "float32", "bfloat16" or "int8" (CPU only).
        ids: the contiguous ids whose logits are wanted; None: all.
    """

    def __init__(
        self, llama: Llama, batch: int, length: int, precision: Precision = "float32", ids: range | None = None
    ):
        config = llama.config
        self.heads, self.head_width = config.heads, config.width // config.heads
        self.tokens = llama.tokens.weight.detach().float()
        self.blocks = [_PackedBlock(cast(LlamaBlock, block), precision, batch) for block in llama.blocks]
        self.norm = llama.norm.weight.detach().float()
        head = llama.head.weight if ids is None else llama.head.weight[ids.start : ids.stop]
        self.head = pack_linear(head, None, precision, batch)
        self.dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
        cached = torch.float32 if self.tokens.device.type == "cpu" else self.dtype
        device = self.tokens.device
        self.cache = KVCache(config.layers, batch, config.heads, length, self.head_width, cached, device)

    @torch.inference_mode()
    def extend(self, tokens: Tensor, positions: Tensor, mask: Tensor | None = None) -> Tensor:
        """Take in `tokens` (B, n) behind those held; returns the logits (B, len(ids)) of the next one, float32.

        Args:
            tokens: int64.
            positions: (n,) or (B, n), where they stand.
            mask: boolean, broadcastable to (B, H, n, past + n), True where attention is allowed; None: causal.

        Raises:
            ValueError: the cache would overflow.
        """
        cache, (B, n), H, D = self.cache, tokens.shape, self.heads, self.head_width
        angles = rotary(positions, D)
        if mask is None and cache.length and n > 1:
            mask = causal_mask(n, cache.length, tokens.device)
        x = self.tokens[tokens].view(B * n, H * D)
        for layer, block in enumerate(self.blocks):
            qkv = block.qkv(self._normed(x, block.norm1)).to(cache.keys.dtype)
            query, key, value = qkv.view(B, n, 3, H, D).permute(2, 0, 3, 1, 4)
            query = rotate(query, *angles)
            keys, values = cache.write(layer, rotate(key, *angles), value)
            attended = F.scaled_dot_product_attention(query, keys, values, mask, is_causal=mask is None and n > 1)
            x.add_(block.out(attended.transpose(1, 2).reshape(B * n, H * D).to(self.dtype)))
            gate, up = block.up(self._normed(x, block.norm2)).chunk(2, -1)
            x.add_(block.down(F.silu(gate) * up))
        cache.advance(n)
        return self.head(self._normed(x.view(B, n, -1)[:, -1], self.norm)).float()

    def _normed(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], weight, EPS).to(self.dtype)
