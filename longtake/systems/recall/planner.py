"""The GPT that plans latent spaces (thesis section 5.4): layout of its sequences, the network, and running plans.

Shapes: B sequences, n places, D width of a token (a latent space), C width of the network.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from longtake.nn.cache import KVCache
from longtake.nn.transformer import Block, TransformerConfig, initialise
from longtake.rollout.rng import Rng
from longtake.systems.recall.config import PlannerConfig

PADDING, CLASS, LENGTH, TOKEN = range(4)
"""What can stand at a place."""


@dataclass(frozen=True)
class Layout:
    """Sequences as the network sees them."""

    values: Tensor
    """(B, n, D) tokens; zeros elsewhere."""
    kinds: Tensor
    """(B, n) PADDING, CLASS, LENGTH or TOKEN."""
    ids: Tensor
    """(B, n) classes and lengths; zeros elsewhere."""


def lay_out(kind: str, tokens: Tensor, lengths: Tensor, labels: Tensor, places: int) -> Layout:
    """Latent sequences in one of the formats of Eq. 5.5 to 5.7, cut after `places` places and the longest sequence.

    The other video of a class is the next in the batch; a video without one goes on as itself.

    Args:
        kind: "zeros": seq, zeros; "sequence": seq, another of its class; "mixed": class, length, seq, length of the
            other, the other, zeros.
        tokens: (B, most, D).
        lengths: (B,) how many tokens of each are real.
        labels: (B,) class, -1 where there is none.
        places: most places.
    """
    counts, names = lengths.tolist(), labels.tolist()
    rows: list[list[tuple[int, int, int, int]]] = []  # kind, id, and which token of which row
    for b, name in enumerate(names):
        row = [(TOKEN, 0, b, i) for i in range(counts[b])]
        if kind != "zeros":
            others = (o % len(names) for o in range(b + 1, b + len(names)))
            other = next((o for o in others if names[o] == name), b)
            more = [(TOKEN, 0, other, i) for i in range(counts[other])]
            if kind == "mixed":
                row = [(CLASS, name, 0, 0), (LENGTH, len(row), 0, 0), *row, (LENGTH, len(more), 0, 0)]
            row += more
        rows.append(row[:places])
    most = max(len(row) for row in rows)
    padded = [[*row, *[(PADDING, 0, 0, 0)] * (most - len(row))] for row in rows]
    kinds, ids, source, place = torch.tensor(padded, device=tokens.device).unbind(2)
    return Layout(tokens[source, place] * (kinds == TOKEN)[..., None], kinds, ids)


class Planner(nn.Module):
    """Latent spaces in, the next latent space out: the blocks of the shared transformer without an embedding.

    The thesis is silent about activation, positions and the end of the network: exact GELU, learned positions, a
    final layer norm and a linear layer. Another width than a token's adds a linear layer in front (Tab. 5.10).
    """

    def __init__(self, config: PlannerConfig, token: int, classes: int):
        """`classes`: how many the mixed format knows."""
        super().__init__()
        self.config, self.token, self.classes = config, token, classes
        width = config.width or token
        mixed = config.format == "mixed"
        self.places = config.tokens + 3 * mixed
        sizes = TransformerConfig(0, self.places, config.layers, config.heads, width, config.dropout)
        self.embed = nn.Identity() if width == token else nn.Linear(token, width)
        self.positions = nn.Parameter(torch.zeros(self.places, width))
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(sizes) for _ in range(config.layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, token)
        if mixed:
            self.class_embedding = nn.Embedding(classes + 1, width)  # the last stands for no class
            self.length_embedding = nn.Embedding(config.tokens + 1, width)
            self.length_head = nn.Linear(width, config.tokens + 1)
        self.apply(initialise)

    def forward(self, values: Tensor, kinds: Tensor | None = None, ids: Tensor | None = None) -> Tensor:
        """A layout (B, n, D), (B, n), (B, n) -> features (B, n, C), each of what stands there and before."""
        return self.hidden(self._embed(values, kinds, ids))

    def _embed(self, values: Tensor, kinds: Tensor | None, ids: Tensor | None) -> Tensor:
        x = self.embed(values)
        if self.config.format == "mixed" and kinds is not None and ids is not None:
            named = self.class_embedding(torch.where((kinds == CLASS) & (ids >= 0), ids, self.classes))
            counted = self.length_embedding(torch.where(kinds == LENGTH, ids, 0))
            for what, embedded in ((CLASS, named), (LENGTH, counted)):
                x = torch.where((kinds == what)[..., None], embedded, x)
        return x

    def hidden(self, x: Tensor, cache: KVCache | None = None) -> Tensor:
        """Embeddings (B, n, C) behind what the cache holds -> features (B, n, C)."""
        past = 0 if cache is None else cache.length
        x = self.dropout(x + self.positions[past : past + x.shape[1]])
        for layer, block in enumerate(self.blocks):
            x = block(x, None, cache, layer)
        if cache is not None:
            cache.advance(x.shape[1])
        return self.norm(x)

    def new_cache(self, batch: int) -> KVCache:
        """An empty cache for `batch` sequences."""
        weight, heads, config = self.head.weight, self.config.heads, self.config
        width = weight.shape[1] // heads
        return KVCache(config.layers, batch, heads, self.places, width, weight.dtype, weight.device)


class Plan:
    """Sequences of latent spaces that go on: `next` predicts a token, `append` says what it became.

    Positions end where training did: from there on the last tokens slide along, and are taken in anew each time.
    They are one fewer than the planner's places: at the last of these nothing was ever predicted.
    """

    begins: tuple[bool, ...] | None = None
    """Whose token begins another sequence; None: nobody's."""

    def __init__(self, planner: Planner, tokens: Tensor):
        """`tokens` (B, n, D): the sequences so far, n >= 1."""
        self.planner = planner
        self.most = planner.places - 1
        self.window = self.fresh = tokens[:, -self.most :]
        self.cache = planner.new_cache(len(tokens))

    def next(self) -> Tensor:
        """The token (B, D) that should follow."""
        features = self.planner.hidden(self.planner.embed(self.fresh), self.cache)
        self.fresh = self.fresh[:, :0]
        return self.planner.head(features[:, -1])

    def append(self, token: Tensor) -> None:
        """Take in the token (B, D) that did follow."""
        self.window = torch.cat([self.window, token[:, None]], 1)
        self.fresh = torch.cat([self.fresh, token[:, None]], 1)
        if self.window.shape[1] > self.most:
            self.window = self.fresh = self.window[:, -self.most :]
            self.cache.reset()


class MixedPlan:
    """The same of one video in the mixed format: when a sequence has reached its length, another of its class
    follows, of a length that is drawn; when that is complete it takes the first one's place (Eq. 5.8).

    What does not fit the places of training drops the first sequence early. Nothing is cached.
    """

    def __init__(self, planner: Planner, tokens: Tensor, label: int, seed: int | str):
        """`tokens` (1, n, D): the sequence so far; `label`: its class, -1 for none, which may be set anew
        before each token; `seed` of the lengths."""
        self.planner, self.label, self.rng, self.drawn, self.begins = planner, label, Rng([seed]), 0, False
        self.sequences = [tokens[:, -planner.config.tokens :]]
        self.lengths: list[int] = []
        self.lengths.append(self._draw_length(self._features(), tokens.shape[1] + 1))

    def next(self) -> Tensor:
        """The token (1, D) that should follow; `begins` says whether it is the first of another sequence."""
        self.begins = self.sequences[-1].shape[1] >= self.lengths[-1]
        if self.begins:
            if len(self.sequences) == 2:
                self._forget_first()
            length = self._draw_length(self._features(), 1)
            self.lengths.append(length)
            self.sequences.append(self.sequences[-1][:, :0])
        if self._places() >= self.planner.places:  # the last place was never trained to predict
            self._forget_first()
        return self.planner.head(self._features())

    def append(self, token: Tensor) -> None:
        """Take in the token (1, D) that did follow."""
        self.sequences[-1] = torch.cat([self.sequences[-1], token[:, None]], 1)

    def _forget_first(self) -> None:
        self.sequences, self.lengths = self.sequences[1:], self.lengths[1:]

    def _places(self) -> int:
        return 1 + len(self.lengths) + sum(s.shape[1] for s in self.sequences)

    def _features(self) -> Tensor:
        """Features (1, C) of the last place: of the class alone, as long as there is no length."""
        device, blank = self.sequences[0].device, self.sequences[0].new_zeros(1, 1, self.planner.token)
        values, kinds, ids = [blank], [CLASS], [self.label]
        for length, sequence in zip(self.lengths, self.sequences, strict=False):
            values += [blank, sequence]
            kinds += [LENGTH, *[TOKEN] * sequence.shape[1]]
            ids += [length, *[0] * sequence.shape[1]]
        told = (torch.tensor([x], device=device) for x in (kinds, ids))
        return self.planner(torch.cat(values, 1), *told)[:, -1]

    def _draw_length(self, features: Tensor, least: int) -> int:
        """A length of at least `least` tokens from its predicted distribution; the most where that is too many."""
        most = self.planner.config.tokens
        least = min(least, most)
        edges = self.planner.length_head(features)[0, least:].softmax(-1).double().cumsum(0).cpu()
        uniform = self.rng.uniform("length", self.drawn).double()
        self.drawn += 1
        return least + min(int(torch.searchsorted(edges, uniform, right=True)), most - least)
