"""The key-value cache of a transformer: an object of its own that is passed into `forward`."""

import torch
from torch import Tensor


class KVCache:
    """Preallocated keys and values of every layer, filled from the front.

    The buffers never move or grow, so a step writes one slot per layer and copies nothing. A forward pass
    over n tokens writes n slots in each layer, then calls `advance(n)` once; the first pass is the prefill.
    For inference: run under `torch.no_grad` or `torch.inference_mode`.

    Attributes:
        keys, values: (layers, B, heads, L, D), D = width / heads. Slots from `length` on are rubbish.
        length: number of tokens held, the same for every row and layer.
    """

    def __init__(
        self,
        layers: int,
        batch: int,
        heads: int,
        length: int,
        head_width: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ):
        shape = (layers, batch, heads, length, head_width)
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.length = 0

    @property
    def batch(self) -> int:
        return self.keys.shape[1]

    @property
    def capacity(self) -> int:
        return self.keys.shape[3]

    def write(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Store `key` and `value` (B, heads, n, D) behind the tokens held, in one layer.

        Returns:
            Views (B, heads, length + n, D) of all keys and values of that layer, the new ones included.

        Raises:
            ValueError: the cache would overflow.
        """
        end = self.length + key.shape[2]
        if end > self.capacity:
            raise ValueError(f"The cache holds {self.capacity} tokens and cannot take token {end}.")
        keys, values = self.keys[layer], self.values[layer]
        keys[:, :, self.length : end] = key
        values[:, :, self.length : end] = value
        return keys[:, :, :end], values[:, :, :end]

    def advance(self, count: int) -> None:
        """Count `count` tokens, written in every layer, as held."""
        self.length += count

    def reset(self) -> None:
        """Forget everything; the next forward pass is a prefill."""
        self.length = 0
