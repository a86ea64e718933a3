"""A codebook that learns by gradient and pulls the codes nobody uses to where vectors are.

Source: "Online Clustered Codebook" (Zheng and Vedaldi, ICCV 2023), CVQ for short, which Loong uses (section 4.1);
the update rule is its equations 4 to 7 as the released code has them.

Shapes: B batch, D embedding width, K codes, N vectors in a batch.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from longtake.nn.distributed import all_reduce_sum, broadcast
from longtake.nn.precision import wide
from longtake.nn.quantize import Quantised, flatten, spread

DECAY = 0.99
SHARPNESS = 10.0
"""How far below uniform use a code is pulled: at a tenth of (1 - decay) / K of all vectors it moves by 1/e."""
EPS = 1e-3
NEGLIGIBLE = 1e-7
"""Codes that would move by less than this share of the way stay where they are."""
CANDIDATES = 8192
"""Vectors of a batch, at most, among which anchors are drawn."""
ELEMENTS = 1 << 24  # of the largest similarity matrix held at once (64 MB in float32)

Similarity = Literal["distance", "cosine"]


class ClusteringCodebook(nn.Module):
    """K embeddings of width D, trained by gradient; a vector takes the most similar one.

    In training mode each forward updates the moving shares of use N_k and blends every code with an anchor, a
    vector of the batch drawn with probability softmax of its similarity to the code: e <- (1 - a) e + a anchor,
    a = exp(-10 K N_k / (1 - decay) - eps). A code with its fair share does not move, an unused one is replaced.

    Args:
        codes: K.
        dim: D.
        commitment: weight of the encoder's term beside the codebook's term, whose weight is 1.
        similarity: the cosine, the default of CVQ's released code, or minus the squared distance, as its paper
            writes; codes are used unnormalised either way. Anchors drawn by the distance of wide codes are nearly
            always the nearest vector, and dead codes become copies of a few.
        anchors: False leaves out the anchors: plain vector quantisation (van den Oord et al., 2017), for ablations.
    """

    shares: Tensor

    def __init__(
        self,
        codes: int,
        dim: int,
        commitment: float = 0.25,
        similarity: Similarity = "cosine",
        anchors: bool = True,
    ):
        super().__init__()
        self.commitment, self.similarity, self.anchors = commitment, similarity, anchors
        self.embeddings = nn.Parameter(torch.empty(codes, dim).uniform_(-1 / codes, 1 / codes))
        self.register_buffer("shares", torch.zeros(codes))

    def extra_repr(self) -> str:
        return f"codes={self.embeddings.shape[0]}, dim={self.embeddings.shape[1]}, anchors={self.anchors}"

    def lookup(self, indices: Tensor) -> Tensor:
        """The embeddings of `indices` (B, ...) as (B, D, ...)."""
        return F.embedding(indices, self.embeddings).movedim(-1, 1)

    def nearest(self, z: Tensor) -> Tensor:
        """The index of the most similar embedding for each vector of `z` (B, D, ...): int64 (B, ...)."""
        with torch.no_grad(), torch.autocast(z.device.type, enabled=False):
            return self._nearest(flatten(wide(z))).view(z.shape[0], *z.shape[2:])

    def forward(self, z: Tensor, generator: Generator | None = None) -> Quantised:
        """Quantises `z` (B, D, ...); `generator` (of the CPU) draws the anchors.

        `commitment_loss` is commitment * |sg(e) - z|^2 + |e - sg(z)|^2, both as means.
        """
        with torch.autocast(z.device.type, enabled=False):
            z = wide(z)
            vectors = flatten(z).detach()
            with torch.no_grad():
                flat = self._nearest(vectors)
            embedded = self.lookup(flat.view(z.shape[0], *z.shape[2:])).to(z.dtype)
            loss = self.commitment * F.mse_loss(z, embedded.detach()) + F.mse_loss(embedded, z.detach())
            usage = torch.bincount(flat, minlength=len(self.embeddings)).to(z.dtype)
            if self.training:
                usage = all_reduce_sum(usage)
                self._update(vectors, usage / usage.sum(), generator)
            values = z + (embedded - z).detach()
        indices = flat.view(z.shape[0], *z.shape[2:])
        return Quantised(values, indices, loss, *spread(usage))

    def _nearest(self, vectors: Tensor) -> Tensor:
        """Index (N,) of the most similar code for vectors (N, D)."""
        table = self.embeddings.detach().to(vectors.dtype)
        parts = vectors.split(max(1, ELEMENTS // len(table)))
        return torch.cat([self._similarity(part, table).argmax(1) for part in parts])

    def _similarity(self, one: Tensor, two: Tensor) -> Tensor:
        """(N, D), (M, D) -> (N, M)."""
        if self.similarity == "cosine":
            return F.normalize(one, dim=-1) @ F.normalize(two, dim=-1).t()
        squares = one.square().sum(1)[:, None] + two.square().sum(1)
        return torch.addmm(squares, one, two.t(), beta=-1, alpha=2)

    @torch.no_grad()
    def _update(self, vectors: Tensor, usage: Tensor, generator: Generator | None) -> None:
        """Moving shares of use, then the blend with anchors."""
        self.shares.lerp_(usage.to(self.shares.dtype), 1 - DECAY)
        blend = torch.exp(-SHARPNESS * len(usage) * self.shares / (1 - DECAY) - EPS)
        rows = (blend > NEGLIGIBLE).nonzero().flatten()
        if not self.anchors or not len(rows):  # shares, and so this branch, are the same in every process
            return
        anchors = broadcast(self._anchors(vectors, rows, generator)).to(self.embeddings.dtype)
        alpha = blend[rows, None].to(anchors.dtype)
        self.embeddings[rows] = (1 - alpha) * self.embeddings[rows] + alpha * anchors

    def _anchors(self, vectors: Tensor, rows: Tensor, generator: Generator | None) -> Tensor:
        """One of `vectors` (N, D) for each code in `rows`, by softmax of similarity over the vectors (Gumbel-max).

        Several processes take the first one's.
        """
        if len(vectors) > CANDIDATES:  # the noise has a number for each code and vector
            vectors = vectors[torch.randperm(len(vectors), generator=generator)[:CANDIDATES].to(vectors.device)]
        codes = self.embeddings.detach()[rows].to(vectors.dtype)
        chosen = []
        for part in codes.split(max(1, ELEMENTS // len(vectors))):
            uniform = torch.rand(len(part), len(vectors), generator=generator).clamp_(1e-20, 1 - 1e-7)
            gumbel = -torch.log(-torch.log(uniform))
            chosen.append((self._similarity(part, vectors) + gumbel.to(part)).argmax(1))
        return vectors[torch.cat(chosen)]
