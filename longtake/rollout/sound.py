"""The sound of a story, frame by frame."""

from __future__ import annotations

import numpy as np

from longtake.data import video
from longtake.errors import UserError
from longtake.story import Story


def sound_of(story: Story, samples: int) -> np.ndarray:
    """What is heard in a resolved story: float32 (frames, samples) in [-1, 1], silence before its first sound.

    Each sound plays from the start of its entry until the next entry that names one, or the story's end, and must
    last that long; what it has beyond is cut off.

    Args:
        story: with its length in frames and its rate.
        samples: a frame.

    Raises:
        UserError: a file that cannot be read or has no sound, or one that is too short (by more than a frame).
    """
    assert story.frames is not None
    assert story.fps is not None
    track = np.zeros(story.frames * samples, np.float32)
    entries = [entry for entry in story.timeline if entry.audio is not None]
    begins = [round(entry.start * story.fps) for entry in entries]
    ends = [*begins, story.frames][1:]
    for entry, begin, end in zip(entries, begins, ends, strict=True):
        first, last = (min(frame, story.frames) * samples for frame in (begin, end))
        if first == last:
            continue
        assert entry.audio is not None
        wave = video.read_audio(entry.audio, round(samples * story.fps))
        missing = last - first - len(wave)
        if missing > samples:
            rate = samples * story.fps
            wanted = f"{(last - first) / rate:.2f} s from second {entry.start:g} on"
            raise UserError(
                f"{entry.audio} lasts {len(wave) / rate:.2f} s and is to play for {wanted}; give a longer sound or "
                "make the story shorter",
                code=2,
            )
        heard = wave[: last - first]
        track[first : first + len(heard)] = heard
    return track.reshape(story.frames, samples)
