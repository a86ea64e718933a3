"""A window of frames from the annotated transformer, token by token (paper section 3.3, Inference).

The released code runs the whole sequence again for every token; here the window is taken in once, and each further
token costs one step (`rollout.engine.Decoder`).

Shapes: B videos; s annotation tokens and n codes a frame; D width of a latent vector.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from longtake.rollout.engine import Decoder
from longtake.rollout.sampling import sample
from longtake.systems.ccvs.transformer import AnnotatedTransformer

if TYPE_CHECKING:
    from longtake.systems.ccvs.config import CCVSSettings


@dataclass(frozen=True)
class Opening:
    """What a window's sequence begins with."""

    ids: Tensor
    """(B, p) class and start token; p may be 0."""
    end: Tensor | None = None
    """(B, n) codes or (B, n, D) vectors of an end frame."""
    distance: int = 0
    """Frames from the window's first to the end frame."""


class FrameSampler:
    """Draws frames of codes, and states or sound where these are not given."""

    def __init__(self, network: AnnotatedTransformer, batch: int, settings: CCVSSettings):
        self.layout = network.layout
        self.decoder = Decoder(network, batch, settings.precision, settings.compile)
        self.frame = settings.sampling(settings.top_k)
        self.state = settings.sampling(settings.state_top_k)
        self.device = self.decoder.tokens.device
        self.pending: list[Tensor] = []
        self.places: list[Tensor] = []

    def window(
        self, opening: Opening, codes: Tensor, states: Tensor, code_noise: Tensor, state_noise: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Frames that follow those of a window.

        Args:
            opening: what stands before.
            codes: (B, m, n) of the window's frames so far, m may be 0.
            states: (B, m + t, s) of these and of the t new ones, -1 where they are to be drawn.
            code_noise: (B, t, n) uniform numbers in [0, 1).
            state_noise: (B, m + t, s) likewise, used where states are drawn.

        Returns:
            codes (B, t, n) of the new frames, states (B, m + t, s) with nothing left to be drawn.
        """
        held, drawn = codes.shape[1], []
        states = states.clone()
        self._begin(opening)
        for t in range(states.shape[1]):
            places = self.layout.frame_places(t, 1).to(self.device)
            self._draw_states(states[:, t], state_noise[:, t], places)
            if t < held:
                self._feed(codes[:, t], places[self.layout.states :])
            else:
                drawn.append(self._draw_codes(code_noise[:, t - held], places[self.layout.states :]))
        return torch.stack(drawn, 1), states

    def _begin(self, opening: Opening) -> None:
        self.decoder.cache.reset()
        self.pending, self.places = [], []
        ids = opening.ids.to(self.device)
        self._feed(ids, torch.zeros(ids.shape[1], dtype=torch.long, device=self.device))
        if opening.end is not None:
            self._feed(opening.end, self.layout.end_places(opening.distance).to(self.device))

    def _feed(self, ids: Tensor, places: Tensor) -> None:
        """Ids (B, k) that come next; they are taken in when the next logits are wanted."""
        self.pending.append(ids)
        self.places.append(places)

    def _logits(self) -> Tensor:
        logits = self.decoder.extend(torch.cat(self.pending, 1), torch.cat(self.places))
        self.pending, self.places = [], []
        return logits

    def _draw_states(self, states: Tensor, noise: Tensor, places: Tensor) -> None:
        """Fill in, in place, what is not given of a frame's annotation (B, s).

        The very first token of a sequence, where no class, start token or end frame stands before it, is all the
        same to the transformer: each is as likely.
        """
        for i in range(self.layout.states):
            if (states[:, i] < 0).any():
                if self.decoder.cache.length or any(part.shape[1] for part in self.pending):
                    drawn = sample(self._logits()[:, : self.layout.state_codes], noise[:, i], self.state)
                else:
                    drawn = (noise[:, i].to(states.device) * self.layout.state_codes).long()
                states[:, i] = torch.where(states[:, i] < 0, drawn, states[:, i])
            self._feed(states[:, i : i + 1] + self.layout.codes, places[i : i + 1])

    def _draw_codes(self, noise: Tensor, places: Tensor) -> Tensor:
        codes = []
        for i in range(self.layout.size):
            codes.append(sample(self._logits()[:, : self.layout.codes], noise[:, i], self.frame))
            self._feed(codes[-1][:, None], places[i : i + 1])
        return torch.stack(codes, 1)


class FrameRegressor:
    """The same where there is no codebook: latent vectors, each predicted from those before it (Table 5)."""

    def __init__(self, network: AnnotatedTransformer, batch: int):
        self.network, self.layout, self.batch = network, network.layout, batch

    def window(
        self, opening: Opening, codes: Tensor, states: Tensor, code_noise: Tensor, state_noise: Tensor
    ) -> tuple[Tensor, Tensor]:
        """As `FrameSampler.window`, with vectors (B, ., n, D) for codes and nothing drawn."""
        network, layout, held, count = self.network, self.layout, codes.shape[1], code_noise.shape[1]
        assert network.vectors is not None
        table, device = network.position_table(), network.head.weight.device
        vectors, places = [codes.flatten(1, 2).to(table.dtype)], [layout.frame_places(0, held)]
        if opening.end is not None:
            vectors.insert(0, opening.end)
            places.insert(0, layout.end_places(opening.distance))
        places.insert(0, torch.zeros(opening.ids.shape[1], dtype=torch.long))
        x = torch.cat([network.tokens(opening.ids.to(device)), network.vectors(torch.cat(vectors, 1))], 1)
        x = x + table[torch.cat(places).to(device)]
        cache, made = network.new_cache(self.batch), []
        for place in layout.frame_places(held, count).to(device):
            made.append(network.head(network.hidden(x, cache)[:, -1:]))
            x = network.vectors(made[-1]) + table[place]
        return torch.cat(made, 1).unflatten(1, (count, layout.size)), states
