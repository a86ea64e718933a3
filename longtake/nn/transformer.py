"""The decoder-only transformer that predicts tokens.

GPT as the official code of TATS (Ge et al., ECCV 2022) builds it, after minGPT: layer norm before each
branch, biased projections, exact GELU, learned positions that start at zero, and a bias-free head that does
not share the embedding's weights.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from longtake.nn.attention import SelfAttention
from longtake.nn.cache import KVCache


@dataclass(frozen=True)
class TransformerConfig:
    """Sizes of a transformer.

    Attributes:
        vocabulary: number of token ids V, condition ids included.
        block: most tokens the model can see at once L (its number of positions).
        layers: number of blocks.
        heads: attention heads of a block; divides `width`.
        width: channels C of the residual stream; the MLP is four times as wide.
        dropout: probability, while training, after the embedding, on attention weights and on both branches. The
            released models have none; on a CPU it rules fused attention out, which costs most of an update.
        table: (t, H, W) of a table of 3D positions, for a model that sees shifted crops of a larger grid and is
            told their place (TATS's `vtokens_pos`); None: no table.
    """

    vocabulary: int
    block: int
    layers: int
    heads: int
    width: int
    dropout: float = 0.0
    table: tuple[int, int, int] | None = None

    def __post_init__(self) -> None:
        if self.heads < 1 or self.width % self.heads:
            raise ValueError(f"A width of {self.width} cannot be split into {self.heads} heads.")


class MLP(nn.Module):
    """Two biased layers with exact (erf) GELU between them."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.up = nn.Linear(width, hidden)
        self.activation = nn.GELU()
        self.down = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.activation(self.up(x)))


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width)
        self.attention = SelfAttention(config.width, config.heads, config.dropout)
        self.norm2 = nn.LayerNorm(config.width)
        self.mlp = MLP(config.width, 4 * config.width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, x: Tensor, mask: Tensor | None = None, cache: KVCache | None = None, layer: int = 0
    ) -> Tensor:
        """(B, n, C) -> (B, n, C); arguments as in `SelfAttention`."""
        x = x + self.dropout(self.attention(self.norm1(x), mask, cache, layer))
        return x + self.dropout(self.mlp(self.norm2(x)))


class Transformer(nn.Module):
    """Tokens in, logits of the next token out."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.config = config
        self.tokens = nn.Embedding(config.vocabulary, config.width)
        self.positions = nn.Parameter(torch.zeros(config.block, config.width))
        if config.table is not None:
            self.table = nn.Parameter(torch.zeros(*config.table, config.width))
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)
        self.head = nn.Linear(config.width, config.vocabulary, bias=False)
        self.apply(initialise)

    def forward(
        self,
        tokens: Tensor,
        cache: KVCache | None = None,
        mask: Tensor | None = None,
        positions: Tensor | None = None,
        last_only: bool = False,
    ) -> Tensor:
        """Logits of the token that follows each given one.

        Args:
            tokens: (B, n) int64 in [0, V), at positions cache.length .. cache.length + n - 1.
            cache: holds the tokens before these and takes these in; None: there are none before.
            mask: boolean, broadcastable to (B, heads, n, past + n), True where attention is allowed;
                None: causal.
            positions: added to the learned positions, broadcastable to (B, n, C) (TATS's 3D table).
            last_only: apply the head to the last token only, which is all that sampling needs.

        Returns:
            (B, n, V), or (B, 1, V) with `last_only`.

        Raises:
            ValueError: more tokens than positions.
        """
        past = 0 if cache is None else cache.length
        x = self.embed(tokens, past)
        if positions is not None:
            x = x + positions
        x = self.hidden(x, cache, mask)
        return self.head(x[:, -1:] if last_only else x)

    def crop_positions(self, corner: tuple[int, int], crop: tuple[int, int], before: int = 0) -> Tensor:
        """What the table adds to the learned positions when the grid's crop at `corner` (row, column) is seen.

        An input is given the place of the token that it predicts, as in the official code of TATS.

        Args:
            corner, crop: the upper left token, and the height and width in tokens.
            before: condition tokens in front, of which the last predicts the crop's first token.

        Returns:
            (before - 1 + n, C) for n = t * height * width; (n, C) without condition tokens.
        """
        (row, column), (height, width) = corner, crop
        part = self.table[:, row : row + height, column : column + width].flatten(0, 2)
        return nn.functional.pad(part, (0, 0, max(0, before - 1), 0))

    def embed(self, tokens: Tensor, start: int = 0) -> Tensor:
        """Token plus position embeddings (B, n, C) of `tokens` (B, n) at positions start .. start + n - 1."""
        end = start + tokens.shape[1]
        if end > self.config.block:
            raise ValueError(f"This transformer has {self.config.block} positions; {end} tokens were given.")
        return self.tokens(tokens) + self.position_table()[start:end]

    def position_table(self) -> Tensor:
        """Embeddings (places, C) of every place a token can stand at, which a subclass may make of parts."""
        return self.positions

    def hidden(self, x: Tensor, cache: KVCache | None = None, mask: Tensor | None = None) -> Tensor:
        """All blocks and the final norm: embeddings (B, n, C) -> the head's input (B, n, C)."""
        x = self.dropout(x)
        for layer, block in enumerate(self.blocks):
            x = block(x, mask, cache, layer)
        if cache is not None:
            cache.advance(x.shape[1])
        return self.norm(x)

    def new_cache(self, batch: int, length: int | None = None) -> KVCache:
        """An empty cache for `batch` rows of `length` tokens (default: `config.block`) beside the weights."""
        config = self.config
        weight = self.head.weight
        head_width = config.width // config.heads
        length = config.block if length is None else length
        return KVCache(config.layers, batch, config.heads, length, head_width, weight.dtype, weight.device)


def initialise(module: nn.Module) -> None:
    """N(0, 0.02) for linear and embedding weights, zero biases (official gpt.py)."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
