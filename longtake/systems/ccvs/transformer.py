"""The transformer over frames and what annotates them (paper section 3.3, Figure 2).

A sequence is [class] [start token] [end frame] and then, frame by frame, [states or sound] [the frame's codes].
Frames and annotations share one embedding table and one head; an embedding of the place is added, put together from
one for the place within a frame and one for the frame ("Dec." of Table 2). Class and start token have none.

Shapes: B clips; N frames of a window; s annotation tokens and n = h * w codes a frame; C width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from longtake.nn.transformer import Transformer, TransformerConfig

Positions = Literal["temporal", "spatio-temporal", "none"]


@dataclass(frozen=True)
class Layout:
    """What a sequence is made of. Ids: codes, then states or sound, then the start token, then the classes."""

    frames: int
    """N, frames of a training clip, an end frame included."""
    grid: tuple[int, int]
    """(h, w) codes of a frame."""
    codes: int
    """Different codes of a frame; 0 where latent vectors are regressed."""
    states: int = 0
    """Annotation tokens a frame (s)."""
    state_codes: int = 0
    """Different annotation tokens."""
    start: bool = False
    """Whether sequences begin with a start token."""
    classes: int = 0
    """Classes, of which one begins a sequence; 0: none does."""

    @property
    def size(self) -> int:
        """Codes of a frame."""
        return self.grid[0] * self.grid[1]

    @property
    def stride(self) -> int:
        """Tokens of a frame and its annotation."""
        return self.size + self.states

    @property
    def vocabulary(self) -> int:
        return self.codes + self.state_codes + self.start + self.classes

    @property
    def block(self) -> int:
        """Most tokens of a sequence."""
        return (self.classes > 0) + self.start + self.frames * self.stride

    def prefix(self, labels: Tensor | None, batch: int) -> Tensor:
        """Ids (B, p) of class and start token; `labels` (B,) where there are classes."""
        first_class = self.codes + self.state_codes + self.start
        parts = []
        if self.classes:
            assert labels is not None
            parts.append(labels.view(-1, 1) + first_class)
        if self.start:
            parts.append(torch.full((batch, 1), first_class - 1))
        device = None if labels is None else labels.device
        return torch.cat([p.to(device) for p in parts], 1) if parts else torch.zeros(batch, 0, dtype=torch.long)

    def frame_places(self, first: int, count: int) -> Tensor:
        """Places of `count` whole frames with their annotations, from frame `first` of the window on."""
        return 1 + torch.arange(first * self.stride, (first + count) * self.stride)

    def end_places(self, distance: Tensor | int) -> Tensor:
        """Places of the codes of an end frame so many frames (an int, or (B, 1)) from the window's first."""
        return 1 + distance * self.stride + self.states + torch.arange(self.size)

    def join(self, states: Tensor | None, codes: Tensor) -> Tensor:
        """States (B, t, s) and codes (B, t, n) -> ids (B, t * (s + n)) in the order of the sequence."""
        if states is None or not self.states:
            return codes.flatten(1)
        return torch.cat([states + self.codes, codes], 2).flatten(1)


class Places(nn.Module):
    """The embeddings of every place: row 0 of zeros, for class and start token, then frame after frame."""

    def __init__(self, layout: Layout, width: int, kind: Positions):
        super().__init__()
        self.layout, self.kind = layout, kind
        (h, w), s = layout.grid, layout.states

        def zeros(count: int) -> nn.Parameter:
            return nn.Parameter(torch.zeros(count, width))

        if kind == "none":
            self.flat = zeros(layout.frames * layout.stride)
            return
        self.time = zeros(layout.frames)
        if kind == "temporal":
            self.space = zeros(h * w)
        else:
            self.rows, self.columns = zeros(h), zeros(w)
        if s:
            self.states = zeros(s)

    def forward(self) -> Tensor:
        """(1 + N * (s + n), C)."""
        if self.kind == "none":
            return torch.cat([torch.zeros_like(self.flat[:1]), self.flat])
        space = self.space if self.kind == "temporal" else (self.rows[:, None] + self.columns).flatten(0, 1)
        within = torch.cat([self.states, space]) if self.layout.states else space
        places = (self.time[:, None] + within).flatten(0, 1)
        return torch.cat([torch.zeros_like(places[:1]), places])


class AnnotatedTransformer(Transformer):
    """Ids at places in, logits of the next token out. Without codes it takes and predicts latent vectors."""

    def __init__(
        self,
        layout: Layout,
        layers: int,
        heads: int,
        width: int,
        dropout: float = 0.0,
        positions: Positions = "temporal",
        vectors: int = 0,
    ):
        """`vectors`: width of the latent vectors that are regressed; 0 where codes are predicted."""
        super().__init__(TransformerConfig(max(1, layout.vocabulary), layout.block, layers, heads, width, dropout))
        self.layout = layout
        del self.positions
        self.places = Places(layout, width, positions)
        self.head = nn.Linear(width, vectors or max(layout.codes, layout.state_codes), bias=False)
        nn.init.normal_(self.head.weight, std=0.02)
        if layout.start:  # of unit spread, as in the released code
            with torch.no_grad():
                self.tokens.weight[layout.codes + layout.state_codes].normal_()
        self.vectors = nn.Linear(vectors, width) if vectors else None
        if self.vectors is not None:
            nn.init.normal_(self.vectors.weight, std=0.02)
            nn.init.zeros_(self.vectors.bias)

    def position_table(self) -> Tensor:
        return self.places()

    def predict(self, ids: Tensor, places: Tensor, vectors: Tensor | None = None) -> Tensor:
        """Logits (B, m, V), or vectors (B, m, D), of what follows each of the m given tokens.

        Args:
            ids: (B, p) what comes first, all of the sequence where codes are predicted.
            places: (m,) or (B, m) rows of the position table.
            vectors: (B, m - p, D) latent vectors that come after, where these are regressed.
        """
        x = self.tokens(ids)
        if vectors is not None:
            assert self.vectors is not None
            x = torch.cat([x, self.vectors(vectors)], 1)
        return self.head(self.hidden(x + self.position_table()[places]))
