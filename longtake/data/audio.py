"""Sound into pictures: one log-magnitude spectrogram patch a video frame, for every system that listens.

The papers that steer by sound (TATS section 3.4, CCVS section 4.3) start from patches of 45x17 numbers a frame,
whose making they do not tell; both resize them to 64x16. Here a patch is made at that size, and all is fixed:

* 16 columns a frame, their centres evenly spread over the frame's S samples: patches and frames never drift apart;
* a Hann window of 512 samples around each centre, beyond the ends of the sound silence;
* magnitude such that a full-scale sine has 1, averaged over 4 bins: 64 bands from 0 to half the sample rate,
  without the constant;
* the logarithm, from -80 dB (-1) to 0 dB (1).
"""

from __future__ import annotations

import torch
from torch import Tensor

BANDS, COLUMNS = 64, 16
FFT = 8 * BANDS
FLOOR_DB = -80.0


def spectrogram(sound: Tensor) -> Tensor:
    """Patches of sound.

    Args:
        sound: (..., T, S) in [-1, 1], S samples for each of T frames.

    Returns:
        (..., T, 64, 16) in [-1, 1], low bands first.
    """
    *batch, frames, samples = sound.shape
    flat = sound.reshape(-1, frames * samples).float()
    column = torch.arange(frames * COLUMNS, device=sound.device)
    centres = ((column + 0.5) * samples / COLUMNS).floor().long()  # of the sound as it is, not padded
    padded = torch.nn.functional.pad(flat, (FFT // 2, FFT // 2))
    pieces = padded[:, centres[:, None] + torch.arange(FFT, device=sound.device)]
    window = torch.hann_window(FFT, device=sound.device)
    magnitude = torch.fft.rfft(pieces * window).abs() / (window.sum() / 2)
    bands = magnitude[..., 1:].unflatten(-1, (BANDS, FFT // 2 // BANDS)).mean(-1)
    level = 20 * bands.clamp_min(10 ** (FLOOR_DB / 20)).log10()
    patches = (1 - 2 * level / FLOOR_DB).clamp(-1, 1)
    return patches.view(*batch, frames, COLUMNS, BANDS).transpose(-1, -2)
