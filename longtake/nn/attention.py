"""Multi-head self-attention with an optional key-value cache."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from longtake.nn.cache import KVCache


class SelfAttention(nn.Module):
    """Self-attention with one fused projection for queries, keys and values (rows stacked in that order).

    Args:
        width: channels C of the stream.
        heads: number of heads; divides `width`.
        dropout: probability of dropping an attention weight during training.
    """

    def __init__(self, width: int, heads: int, dropout: float = 0.0):
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(
        self, x: Tensor, mask: Tensor | None = None, cache: KVCache | None = None, layer: int = 0
    ) -> Tensor:
        """Attend from the n new tokens to themselves and to what the cache holds.

        Args:
            x: (B, n, C), the new tokens.
            mask: boolean, broadcastable to (B, heads, n, past + n), True where attention is allowed;
                None: causal.
            cache: holds the keys and values of `past` tokens and takes in the new; the caller advances it.
            layer: which layer of the cache is this one's.

        Returns:
            (B, n, C).
        """
        B, n, C = x.shape
        query, key, value = self.qkv(x).view(B, n, 3, self.heads, C // self.heads).permute(2, 0, 3, 1, 4)
        past = 0
        if cache is not None:
            past = cache.length
            key, value = cache.write(layer, key, value)
        if mask is None and past and n > 1:
            mask = causal_mask(n, past, x.device)
        attended = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=mask,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=mask is None and n > 1,  # a single new token may see everything there is
        )
        return self.out(attended.transpose(1, 2).reshape(B, n, C))


def causal_mask(count: int, past: int, device: torch.device | str = "cpu") -> Tensor:
    """Boolean mask (count, past + count): new token i sees the past and new tokens up to itself."""
    return torch.ones(count, past + count, dtype=torch.bool, device=device).tril(past)


def between_mask(past: int, middle: int, future: int, device: torch.device | str = "cpu") -> Tensor:
    """Mask (n, n) of an interpolation transformer (TATS section 2.3) over past, middle and future tokens.

    The two ends see each other whole, in both directions, and nothing of the middle; a middle token sees both ends
    and the middle up to itself.
    """
    n = past + middle + future
    mask = torch.ones(n, n, dtype=torch.bool, device=device)
    inside = slice(past, past + middle)
    mask[:past, inside] = False
    mask[past + middle :, inside] = False
    mask[inside, inside] = causal_mask(middle, 0, device)
    return mask
