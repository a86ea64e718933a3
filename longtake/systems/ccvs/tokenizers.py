"""What annotates frames, as tokens: states (Atari's player, a robot's arm) and sound.

Source: paper sections 3.3 and 4, released code (state estimator and spectrogram autoencoder).
Shapes: B frames; S numbers of a state.
"""

from __future__ import annotations

from torch import Tensor, nn

from longtake.data.audio import BANDS, COLUMNS, spectrogram
from longtake.nn.quantize import Quantised
from longtake.systems.ccvs.layers import ConvLayer, EqualLinear
from longtake.systems.ccvs.quantiser import GradientCodebook

HALVINGS = 3
"""Times that the sound encoder halves a patch."""


class StateTokenizer(nn.Module):
    """States in [0, 1] to tokens, one a number, from one codebook of scalars; and their estimation from frames.

    Args:
        states: S.
        codes: entries of the codebook.
        latent, grid, hidden: of a frame's quantised latents (B, latent, h, w) from which states are estimated, and
            channels of the layers that do it; None: there is no estimator, states come with the videos.
    """

    def __init__(
        self, states: int, codes: int, latent: int = 0, grid: tuple[int, int] | None = None, hidden: int = 128
    ):
        super().__init__()
        self.codebook = GradientCodebook(codes, 1, evenly=True)
        self.layers = nn.Sequential()
        if grid is not None:
            (h, w), channels = grid, latent
            while h > 1 and w > 1:
                self.layers.append(ConvLayer(channels, hidden, 3, "down"))
                h, w, channels = h // 2, w // 2, hidden
            self.head = EqualLinear(channels * h * w, states)

    def estimate(self, latents: Tensor) -> Tensor:
        """Quantised latents (B, D, h, w) -> states (B, S) in (0, 1)."""
        return self.head(self.layers(latents).flatten(1)).sigmoid()

    def quantise(self, states: Tensor) -> Quantised:
        """States (B, S) -> tokens, and the loss that moves the codebook."""
        return self.codebook(states.unsqueeze(1))

    def tokens(self, states: Tensor) -> Tensor:
        """States (..., S) -> int64 of the same shape."""
        return self.codebook.nearest(states.reshape(-1, 1)).view(states.shape)


class SoundTokenizer(nn.Module):
    """One frame's sound, a patch of a spectrogram, to 16 tokens and back."""

    def __init__(self, codes: int = 1024, latent: int = 512, hidden: int = 512):
        super().__init__()
        halves, doubles = ([ConvLayer(hidden, hidden, 3, how) for _ in range(HALVINGS)] for how in ("down", "up"))
        self.encoder = nn.Sequential(ConvLayer(1, hidden, 1), *halves, ConvLayer(hidden, latent, 3))
        self.codebook = GradientCodebook(codes, latent)
        self.decoder = nn.Sequential(ConvLayer(latent, hidden, 3), *doubles, ConvLayer(hidden, 1, 1))

    @staticmethod
    def token_count() -> int:
        """Tokens of a frame."""
        return (BANDS >> HALVINGS) * (COLUMNS >> HALVINGS)

    def forward(self, patches: Tensor) -> tuple[Tensor, Quantised]:
        """Patches (B, 1, 64, 16) in [-1, 1] -> their reconstruction, and what the codebook made of them."""
        quantised = self.codebook(self.encoder(patches))
        return self.decode(quantised.values), quantised

    def decode(self, latents: Tensor) -> Tensor:
        """Latents (B, D, 8, 2) -> patches (B, 1, 64, 16) in (-1, 1)."""
        return self.decoder(latents).tanh()

    def tokens(self, sound: Tensor) -> Tensor:
        """Sound (B, T, samples) -> int64 (B, T, 16)."""
        patches = patches_of(sound).to(self.codebook.embeddings.dtype)
        return self.codebook.nearest(self.encoder(patches)).flatten(1).view(*sound.shape[:2], -1)


def patches_of(sound: Tensor) -> Tensor:
    """Sound (B, T, samples) -> a patch a frame (B * T, 1, 64, 16) in [-1, 1]."""
    return spectrogram(sound).flatten(0, 1)[:, None]
