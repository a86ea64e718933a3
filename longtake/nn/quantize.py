"""A codebook learned by exponential moving averages.

Source: VQ-VAE (van den Oord et al., 2017, appendix A.1) as used by TATS (section 2.1, released code):
data-dependent initialisation, moving averages with decay 0.99, commitment weight 0.25.

Shapes: B batch, D embedding width, K codes, N vectors in a batch.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from longtake.nn.distributed import all_reduce_sum, broadcast, gather_rows
from longtake.nn.precision import wide

COUNT_EPS = 1e-7
DISTANCE_ELEMENTS = 1 << 24  # size of the largest distance matrix held at once (64 MB in float32)


RestartBy = Literal["random", "error"]


class Quantised(NamedTuple):
    """What a codebook makes of a batch of vectors."""

    values: Tensor
    """The nearest embeddings, shaped like the input; the gradient passes straight through to the input."""
    indices: Tensor
    """int64, the input's shape without its channel axis."""
    commitment_loss: Tensor
    """Scalar: commitment * mean squared distance of the input to its embeddings; add it with weight 1."""
    perplexity: Tensor
    """Scalar in [1, K]: exp of the entropy of code usage in this batch (of all processes while training)."""
    used: Tensor
    """Scalar in (0, 1]: fraction of the codes that this batch used."""


def unquantised(z: Tensor) -> Quantised:
    """`z` (B, D, ...) as it is, with no loss and no codes used: for training before there is a codebook."""
    zero = torch.zeros((), device=z.device)
    indices = torch.zeros(z.shape[0], *z.shape[2:], dtype=torch.int64, device=z.device)
    return Quantised(z, indices, zero, zero, zero)


class EMACodebook(nn.Module):
    """K embeddings of width D, moved towards the vectors that choose them; no gradient reaches them.

    In training mode each forward updates the averages, over all processes where there are several.
    `initialised` is saved with the weights, so resuming never draws a new codebook (the released TATS code does).

    A code whose moving count falls below `restart` is replaced by a random vector of the batch. Its averages start
    anew with it, so the replacement lasts (in the released TATS code the next update undoes it). The count starts
    at twice the threshold: log(2) / log(1 / decay) updates to win vectors before the code can be replaced again.
    With `restart_by` "error" vectors are drawn in proportion to their squared distance to the nearest code (the
    seeding of k-means++: Arthur and Vassilvitskii, 2007), so rare things that no code stands for get one; "random"
    draws uniformly, as TATS does.

    Distances are computed in float32 (or float64 for float64 input) also under autocast.
    """

    embeddings: Tensor
    counts: Tensor
    sums: Tensor
    initialised: Tensor

    def __init__(
        self,
        codes: int,
        dim: int,
        decay: float = 0.99,
        commitment: float = 0.25,
        restart: float | None = None,
        restart_by: RestartBy = "random",
    ):
        super().__init__()
        self.decay, self.commitment, self.restart, self.restart_by = decay, commitment, restart, restart_by
        self.register_buffer("embeddings", torch.randn(codes, dim))
        self.register_buffer("counts", torch.zeros(codes))
        self.register_buffer("sums", self.embeddings.clone())
        self.register_buffer("initialised", torch.tensor(False))

    def extra_repr(self) -> str:
        return f"codes={self.embeddings.shape[0]}, dim={self.embeddings.shape[1]}, restart={self.restart}"

    def lookup(self, indices: Tensor) -> Tensor:
        """The embeddings of `indices` (B, ...) as (B, D, ...)."""
        return F.embedding(indices, self.embeddings).movedim(-1, 1)

    def nearest(self, z: Tensor) -> Tensor:
        """The index of the nearest embedding for each vector of `z` (B, D, ...): int64 (B, ...)."""
        with torch.no_grad(), torch.autocast(z.device.type, enabled=False):
            vectors = flatten(wide(z))
            return self._nearest(vectors).view(z.shape[0], *z.shape[2:])

    def forward(self, z: Tensor, generator: Generator | None = None) -> Quantised:
        """Quantises `z` (B, D, ...); `generator` (of the CPU) feeds the initialisation and the restarts."""
        with torch.autocast(z.device.type, enabled=False):
            z = wide(z)
            vectors = flatten(z).detach()
            if self.training and not self.initialised:
                self._initialise(vectors, generator)
            flat = self._nearest(vectors)
            indices = flat.view(z.shape[0], *z.shape[2:])
            embedded = self.lookup(indices).to(z.dtype)
            commitment_loss = self.commitment * F.mse_loss(z, embedded)
            usage = torch.bincount(flat, minlength=len(self.embeddings)).to(z.dtype)
            if self.training:
                usage = all_reduce_sum(usage)
                self._update(vectors, flat, usage, generator)
            values = z + (embedded - z).detach()
        return Quantised(values, indices, commitment_loss, *spread(usage))

    def _nearest(self, vectors: Tensor) -> Tensor:
        table = self.embeddings.to(vectors.dtype)
        norms = table.square().sum(1)
        rows = max(1, DISTANCE_ELEMENTS // len(table))
        # |z|^2 is the same for all codes of a row and is left out.
        return torch.cat([torch.addmm(norms, part, table.t(), alpha=-2).argmin(1) for part in vectors.split(rows)])

    @property
    def _fresh_count(self) -> float:
        return 1.0 if self.restart is None else 2 * self.restart

    @torch.no_grad()
    def _initialise(self, vectors: Tensor, generator: Generator | None) -> None:
        """Takes K random vectors of the first batch as the codebook."""
        chosen = _draw(gather_rows(vectors), len(self.embeddings), generator)
        self.embeddings.copy_(broadcast(chosen))
        self.counts.fill_(self._fresh_count)
        self.sums.copy_(self.embeddings * self._fresh_count)
        self.initialised.fill_(True)

    @torch.no_grad()
    def _update(self, vectors: Tensor, flat: Tensor, usage: Tensor, generator: Generator | None) -> None:
        totals = all_reduce_sum(torch.zeros_like(vectors[:1]).repeat(len(usage), 1).index_add_(0, flat, vectors))
        self.counts.lerp_(usage.to(self.counts.dtype), 1 - self.decay)
        self.sums.lerp_(totals.to(self.sums.dtype), 1 - self.decay)
        if self.restart is not None:
            self._replace(self.counts < self.restart, vectors, generator)
        n = self.counts.sum()
        smoothed = (self.counts + COUNT_EPS) / (n + len(self.counts) * COUNT_EPS) * n
        self.embeddings.copy_(self.sums / smoothed[:, None])

    def _replace(self, dead: Tensor, vectors: Tensor, generator: Generator | None) -> None:
        rows = dead.nonzero().flatten()
        if not len(rows):  # the counts, and so this branch, are the same in every process
            return
        vectors, weights = gather_rows(vectors), None
        if self.restart_by == "error":
            weights = (vectors - self.lookup(self._nearest(vectors)).to(vectors)).square().sum(1)
        chosen = broadcast(_draw(vectors, len(rows), generator, weights)).to(self.sums.dtype)
        self.counts[rows] = self._fresh_count
        self.sums[rows] = chosen * self._fresh_count


def spread(usage: Tensor) -> tuple[Tensor, Tensor]:
    """Perplexity and share of the codes in use, from how often (K,) each was used."""
    p = usage / usage.sum()
    return torch.exp(-(p * torch.log(p + 1e-10)).sum()), (usage > 0).to(usage.dtype).mean()


def flatten(z: Tensor) -> Tensor:
    """(B, D, ...) as (N, D)."""
    return z.movedim(1, -1).reshape(-1, z.shape[1])


def _draw(vectors: Tensor, n: int, generator: Generator | None, weights: Tensor | None = None) -> Tensor:
    """`n` random rows of `vectors`, uniformly or by `weights`; if there are fewer, repeated with a little noise."""
    rows, dim = vectors.shape
    if weights is not None and int((weights > 0).sum()) >= n:
        return vectors[torch.multinomial(weights.cpu(), n, generator=generator).to(vectors.device)]
    if rows < n:
        vectors = vectors.repeat(-(-n // rows), 1)
        noise = torch.randn(vectors.shape, generator=generator, dtype=vectors.dtype)
        vectors = vectors + (noise * 0.01 / dim**0.5).to(vectors.device)
    chosen = torch.randperm(len(vectors), generator=generator)[:n]
    return vectors[chosen.to(vectors.device)]
