"""LEncGAN's encoder: LSTMs over frames and difference maps (thesis section 4.2, Algorithms 3 to 5)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from longtake.systems.recall.config import LEncGANConfig
from longtake.systems.recall.encoder import FrameFeatures, Heads
from longtake.systems.recall.latents import CLIP, LatentSpace, difference_maps

MIDDLE = CLIP // 2 - 1
"""The frame up to which section 4.5.2 inherits."""


class LSTMEncoder(nn.Module):
    """Clips (B, 3, 16, H, W) in [-1, 1] and the states they start with -> latent spaces and states to go on with.

    The last cell states are what is encoded. The algorithms feed 15 of the 16 frames into the content LSTM, one
    loop serving both streams; here it sees all.
    """

    def __init__(self, config: LEncGANConfig):
        super().__init__()
        self.inherit, self.middle = config.inherit, config.inherit_at == "middle"
        n, blocks, size = config.lstm, config.generator.blocks, config.size
        self.content = FrameFeatures("content", n, blocks, size, config.encoder)
        self.motion = FrameFeatures("motion", n, blocks, size, config.encoder)
        self.content_lstm = nn.LSTM(n, n, batch_first=True)
        self.motion_lstm = nn.LSTM(n, n, batch_first=True)
        codes = (config.generator.content, config.generator.motion)
        self.heads = Heads(n, n, config.encoder.head, codes)

    def forward(self, clip: Tensor, state: Tensor | None = None) -> tuple[LatentSpace, Tensor]:
        """`state` (B, 4, n): hidden and cell state of content, then of motion; None: zeros.

        Returns:
            The latent spaces, and the states that the next clip inherits (B, 4, n).
        """
        B = len(clip)
        if state is None:
            state = clip.new_zeros(B, 4, self.content_lstm.hidden_size)
        cells, inherited = [], []
        for i, (features, lstm, maps) in enumerate(
            ((self.content, self.content_lstm, clip), (self.motion, self.motion_lstm, difference_maps(clip)))
        ):
            embedded = features(maps.transpose(1, 2).flatten(0, 1)).unflatten(0, (B, -1))
            held = (state[:, 2 * i][None].contiguous(), state[:, 2 * i + 1][None].contiguous())
            until = CLIP // 2 - i  # frames, or maps between them, up to the middle one
            _, middle = lstm(embedded[:, :until], held)
            _, end = lstm(embedded[:, until:], middle)
            cells.append(end[1][0])
            inherited += self._inherited(*(middle if self.middle else end))
        return self.heads(*cells), torch.stack(inherited, 1)

    def _inherited(self, hidden: Tensor, cell: Tensor) -> list[Tensor]:
        """What the next clip starts with of a state (1, B, n) each."""
        return [
            hidden[0] * (self.inherit != "none"),
            cell[0] * (self.inherit == "cell"),
        ]
