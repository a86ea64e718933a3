"""A codebook that is trained by gradients, with no averages and no restarts (paper equation 3)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longtake.nn.precision import wide
from longtake.nn.quantize import DISTANCE_ELEMENTS, Quantised, spread

BETA = 0.25


class GradientCodebook(nn.Module):
    """K embeddings of width D, moved by the gradient of their distance to the vectors that choose them.

    Distances and losses are computed in float32 (or float64 for float64 input) also under autocast.

    The released code puts beta on the codebook's term and not, as equation 3 does, on the commitment term;
    `official_beta` is that quirk.

    Args:
        codes, width: K and D.
        official_beta: see above.
        evenly: a scalar codebook (D = 1) of values spread evenly over [0, 1] to begin with (states); else uniform
            in +-1 / K.
    """

    def __init__(self, codes: int, width: int, official_beta: bool = False, evenly: bool = False):
        super().__init__()
        self.official_beta = official_beta
        start = torch.rand(codes, width).mul(2).sub(1).div(codes)
        if evenly:
            start = ((torch.arange(codes) + 0.5) / codes)[:, None]
        self.embeddings = nn.Parameter(start)

    def lookup(self, indices: Tensor) -> Tensor:
        """The embeddings of `indices` (B, ...) as (B, D, ...)."""
        return F.embedding(indices, self.embeddings).movedim(-1, 1)

    @torch.no_grad()
    def nearest(self, z: Tensor) -> Tensor:
        """The index of the nearest embedding for each vector of `z` (B, D, ...): int64 (B, ...)."""
        vectors = wide(z).movedim(1, -1)
        flat, table = vectors.reshape(-1, z.shape[1]), self.embeddings.to(vectors.dtype)
        with torch.autocast(z.device.type, enabled=False):
            # |z|^2 is the same for all codes of a vector and is left out.
            norms, rows = table.square().sum(1), max(1, DISTANCE_ELEMENTS // len(table))
            found = [torch.addmm(norms, part, table.t(), alpha=-2).argmin(1) for part in flat.split(rows)]
        return torch.cat(found).view(vectors.shape[:-1])

    def forward(self, z: Tensor) -> Quantised:
        """Quantises `z` (B, D, ...); `commitment_loss` is the whole of equation 3, to be added with weight 1."""
        with torch.autocast(z.device.type, enabled=False):
            z = wide(z)
            indices = self.nearest(z)
            embedded = self.lookup(indices).to(z.dtype)
            commitment = (z - embedded.detach()).square().mean()
            codebook = (embedded - z.detach()).square().mean()
            loss = commitment + BETA * codebook if self.official_beta else BETA * commitment + codebook
            usage = torch.bincount(indices.flatten(), minlength=len(self.embeddings)).to(z.dtype)
            return Quantised(z + (embedded - z).detach(), indices, loss, *spread(usage))
