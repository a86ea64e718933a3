"""One stream of text, special and video tokens (paper sections 3.1 and 4.1, Fig. 4).

    <sot> t_1 .. t_N <eot> <soi> v_1 .. v_L

Text ids come first, then the video's, then ten special ones: 32,000 + 8,192 + 10 at paper size. Video tokens go in
raster order, time slowest. `<eoi>` would close the video, whose length is fixed: it has an id and is never trained.
Shapes: B rows, n video tokens, p tokens before them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

SPECIAL = ("pad", "sot", "eot", "soi", "eoi", "null", "sov", "eov", "mask", "spare")
"""pad fills rows, null stands for a piece of dropped text, the last four are spare."""


@dataclass(frozen=True)
class Vocabulary:
    """Which id means what."""

    text: int
    """Ids of pieces of text."""
    codes: int
    """Codes of the tokenizer."""

    @property
    def size(self) -> int:
        return self.text + self.codes + len(SPECIAL)

    @property
    def video(self) -> range:
        """The ids of the tokenizer's codes."""
        return range(self.text, self.text + self.codes)

    def special(self, name: str) -> int:
        """The id of a special token."""
        return self.video.stop + SPECIAL.index(name)

    def prefix(self, pieces: list[int], dropped: bool = False) -> list[int]:
        """What stands before a video: its text, or as many null tokens."""
        text = [self.special("null")] * len(pieces) if dropped else pieces
        return [self.special("sot"), *text, self.special("eot"), self.special("soi")]

    def inputs(self, prefixes: list[list[int]], codes: Tensor) -> tuple[Tensor, Tensor]:
        """A training batch: ids (B, p + n - 1), filled up at the end, where causal attention needs no mask, and the
        place (B, n) of the input that predicts each video token.

        Args:
            prefixes: of any lengths.
            codes: (B, n).
        """
        n = codes.shape[1]
        length = max(map(len, prefixes)) + n - 1
        rows = [prefix + [self.special("pad")] * (length - len(prefix)) for prefix in prefixes]
        first = torch.tensor([len(prefix) - 1 for prefix in prefixes], device=codes.device)
        ids, places = torch.tensor(rows, device=codes.device), first[:, None] + torch.arange(n, device=codes.device)
        return ids.scatter_(1, places[:, 1:], codes[:, :-1] + self.video.start), places

    def aligned(self, prefixes: list[list[int]]) -> tuple[Tensor, Tensor]:
        """Prefixes (B, p) that end together, filled up at the start, and the place (B,) where each begins."""
        longest = max(map(len, prefixes))
        rows = [[self.special("pad")] * (longest - len(p)) + p for p in prefixes]
        return torch.tensor(rows), torch.tensor([longest - len(p) for p in prefixes])
