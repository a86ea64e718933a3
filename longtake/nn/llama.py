"""A decoder-only transformer in the manner of LLaMA (Touvron et al., 2023).

Root-mean-square norms before each branch, rotary positions (Su et al., 2021), SwiGLU, no biases. Positions are
relative, so there is no largest number of tokens but that of the cache.

Shapes: B rows, n tokens, C width, H heads, D = C / H, V ids.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from longtake.nn.attention import causal_mask
from longtake.nn.cache import KVCache

ROTARY_BASE = 10_000.0
EPS = 1e-5


@dataclass(frozen=True)
class LlamaConfig:
    """Sizes of a transformer.

    Attributes:
        vocabulary: number of token ids V.
        layers: number of blocks.
        heads: attention heads of a block; `width` / `heads` must be even.
        width: channels C of the residual stream.
        hidden: width of the MLP; None: 8/3 of `width`, rounded up to a multiple of `multiple`.
        multiple: see `hidden`.
        dropout: probability, while training, on both branches (LLaMA has none).
        recompute: keep only the blocks' inputs for the backward pass and compute the rest again (activation
            checkpointing): same gradients, less memory, a third more time.
    """

    vocabulary: int
    layers: int
    heads: int
    width: int
    hidden: int | None = None
    multiple: int = 256
    dropout: float = 0.0
    recompute: bool = False

    def __post_init__(self) -> None:
        if self.heads < 1 or self.width % (2 * self.heads):
            raise ValueError(f"A width of {self.width} cannot be split into {self.heads} heads of even width.")

    @property
    def mlp_width(self) -> int:
        """LLaMA's: 2/3 of 4 * width, rounded up."""
        return self.hidden or -(-8 * self.width // (3 * self.multiple)) * self.multiple


class RMSNorm(nn.Module):
    """x / rms(x) * weight, in float32 (Zhang and Sennrich, 2019)."""

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), x.shape[-1:], self.weight.float(), EPS).to(x.dtype)


def rotary(positions: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines (B or 1, 1, n, width) that turn a head of `width` at `positions` (B, n) or (n,)."""
    rates = ROTARY_BASE ** (-torch.arange(0, width, 2, device=positions.device, dtype=torch.float32) / width)
    angles = positions.float().view(-1, 1, positions.shape[-1], 1) * rates
    angles = torch.cat([angles, angles], -1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Turn each pair (i, i + D/2) of `x` (B, H, n, D) by its angle."""
    one, two = x.float().chunk(2, -1)
    return (x.float() * cosine + torch.cat([-two, one], -1) * sine).to(x.dtype)


class RotaryAttention(nn.Module):
    """Self-attention with rotary positions; queries, keys and values in one projection, rows in that order."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def forward(
        self, x: Tensor, angles: tuple[Tensor, Tensor], mask: Tensor | None, cache: KVCache | None, layer: int
    ) -> Tensor:
        """(B, n, C) -> (B, n, C). `angles` of the new tokens (`rotary`); the rest as in `nn.attention`."""
        B, n, C = x.shape
        query, key, value = self.qkv(x).view(B, n, 3, self.heads, C // self.heads).permute(2, 0, 3, 1, 4)
        query, key = rotate(query, *angles), rotate(key, *angles)
        if cache is not None:
            past = cache.length
            key, value = cache.write(layer, key, value)
            if mask is None and past and n > 1:
                mask = causal_mask(n, past, x.device)
        attended = F.scaled_dot_product_attention(query, key, value, mask, is_causal=mask is None and n > 1)
        return self.out(attended.transpose(1, 2).reshape(B, n, C))


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)) (Shazeer, 2020); gate and up in one projection, rows in that order."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.up = nn.Linear(width, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.up(x).chunk(2, -1)
        return self.down(F.silu(gate) * up)


class LlamaBlock(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: LlamaConfig):
        super().__init__()
        self.norm1, self.norm2 = RMSNorm(config.width), RMSNorm(config.width)
        self.attention = RotaryAttention(config.width, config.heads)
        self.mlp = SwiGLU(config.width, config.mlp_width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        x: Tensor,
        angles: tuple[Tensor, Tensor],
        mask: Tensor | None = None,
        cache: KVCache | None = None,
        layer: int = 0,
    ) -> Tensor:
        x = x + self.dropout(self.attention(self.norm1(x), angles, mask, cache, layer))
        return x + self.dropout(self.mlp(self.norm2(x)))


class Llama(nn.Module):
    """Tokens in, logits of the next token out."""

    def __init__(self, config: LlamaConfig):
        super().__init__()
        self.config = config
        self.tokens = nn.Embedding(config.vocabulary, config.width)
        self.blocks = nn.ModuleList(LlamaBlock(config) for _ in range(config.layers))
        self.norm = RMSNorm(config.width)
        self.head = nn.Linear(config.width, config.vocabulary, bias=False)
        self.apply(_initialise)

    def forward(
        self,
        tokens: Tensor,
        cache: KVCache | None = None,
        mask: Tensor | None = None,
        positions: Tensor | None = None,
        last_only: bool = False,
        ids: range | None = None,
    ) -> Tensor:
        """Logits of the token that follows each given one.

        Args:
            tokens: (B, n) int64 in [0, V).
            cache: holds the tokens before these and takes these in; None: there are none before.
            mask: boolean, broadcastable to (B, heads, n, past + n), True where attention is allowed;
                None: causal.
            positions: (n,) or (B, n), where the tokens stand; None: behind those held.
            last_only: apply the head to the last token only, which is all that sampling needs.
            ids: the contiguous ids whose logits are wanted; None: all.

        Returns:
            (B, n or 1, V or len(ids)).
        """
        x = self.hidden(tokens, cache, mask, positions)
        return self.logits(x[:, -1:] if last_only else x, ids)

    def hidden(
        self,
        tokens: Tensor,
        cache: KVCache | None = None,
        mask: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        """All blocks and the final norm: (B, n) -> the head's input (B, n, C); arguments as in `forward`."""
        config, n = self.config, tokens.shape[1]
        if positions is None:
            past = 0 if cache is None else cache.length
            positions = torch.arange(past, past + n, device=tokens.device)
        angles = rotary(positions, config.width // config.heads)
        x = self.tokens(tokens)
        for layer, block in enumerate(self.blocks):
            if config.recompute and self.training and cache is None:
                x = cast(Tensor, checkpoint(block, x, angles, mask, use_reentrant=False))
            else:
                x = block(x, angles, mask, cache, layer)
        if cache is not None:
            cache.advance(n)
        return self.norm(x)

    def logits(self, x: Tensor, ids: range | None = None) -> Tensor:
        """The head on (..., C), for some contiguous ids only if they are given."""
        return self.head(x) if ids is None else F.linear(x, self.head.weight[ids.start : ids.stop])

    def new_cache(self, batch: int, length: int) -> KVCache:
        """An empty cache for `batch` rows of `length` tokens, beside the weights."""
        config, weight = self.config, self.head.weight
        width = config.width // config.heads
        return KVCache(config.layers, batch, config.heads, length, width, weight.dtype, weight.device)


def _initialise(module: nn.Module) -> None:
    """N(0, 0.02) for linear and embedding weights."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
