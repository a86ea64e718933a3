"""From a model of short clips to a video of any length: autoregression in code space and in image space.

The transformer slides over the codes of the last frames (paper section 3.3). Each new frame is decoded from its
codes with the last frames of the video itself as context, then becomes context in its turn ("shift-and-add",
section 3.1). Both hold a bounded number of frames, so a video streams frame by frame.

Shapes: B videos; n codes, s annotation tokens a frame.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from longtake.errors import UserError
from longtake.rollout.given import first_frames, first_sound, last_frame
from longtake.rollout.rng import Rng
from longtake.rollout.sound import sound_of
from longtake.rollout.states import states_of
from longtake.story import Story
from longtake.systems.ccvs.autoencoder import Autoencoder, Features
from longtake.systems.ccvs.config import CCVSSettings
from longtake.systems.ccvs.sampling import Opening

if TYPE_CHECKING:
    from longtake.systems.ccvs.system import CCVS


class ImageSpace:
    """Decodes frame after frame, each with those before it as context.

    Args:
        autoencoder: in eval mode.
        grid: codes (h, w) of a frame.
        memory: most frames that are context; 0: none.
        keep_first: so many of them are the first ones for good.
    """

    def __init__(self, autoencoder: Autoencoder, grid: tuple[int, int], memory: int, keep_first: int = 0):
        self.autoencoder, self.grid, self.memory, self.keep_first = autoencoder, grid, memory, keep_first
        self.held: list[Features] = []

    def push(self, features: Features) -> None:
        """Add a frame's features to the context and forget the oldest that may go."""
        self.held.append(features)
        if len(self.held) > self.memory:
            self.held.pop(self.keep_first)

    def show(self, frames: Tensor) -> None:
        """Take given frames (B, 3, T, H, W) as context."""
        for frame in frames.unbind(2) if self.memory else ():
            self.push(self.autoencoder.encode(frame)[1])

    def decode(self, tokens: Tensor, end: Features | None = None) -> Tensor:
        """The next frame (B, 3, H, W) from its tokens; `end` is one more context, the features of an end frame."""
        contexts = self.held[::-1] + ([end] if end is not None and self.memory else [])
        frame = self.autoencoder.decode(self.autoencoder.latents(tokens, self.grid), contexts).frames
        if self.memory:
            self.push(self.autoencoder.encode(frame)[1])
        return frame


class Annotations:
    """States or sound of stories as tokens, made as they are wanted: (B, t, s), -1 where nothing tells them.

    What a story does not tell of its given frames is learned from these: sound from the file they come from, states
    by the estimator, where the model has one.

    Args:
        system, stories: as in a rollout.
        known: (B, m, n) codes of the last given frames, or None.
        given: frames that are given.
    """

    def __init__(self, system: CCVS, stories: list[Story], known: Tensor | None = None, given: int = 0):
        self.system, self.kind, self.track = system, system.config.prior.annotation, None
        self.shape = len(stories), system.layout.states
        if self.kind == "states":
            self._tell([states_of(story, system.state_names, given) for story in stories])
            if known is not None and system.config.states.estimated:
                self._estimate(known, given)
        elif self.kind == "audio":
            self._tell([self._sound(story) for story in stories])

    def _tell(self, tracks: list[np.ndarray]) -> None:
        """Numbers (frames, S) or (frames, samples) of each story, NaN where nothing tells them."""
        if not all(np.isnan(track).all() for track in tracks):
            self.track = torch.stack([torch.from_numpy(track) for track in tracks])

    def _sound(self, story: Story) -> np.ndarray:
        samples, frames = self.system.info.samples_per_frame, story.frames
        assert samples is not None
        assert frames is not None
        own, begin = first_sound(story, samples), frames
        if "audio" in story.conditions():
            track = sound_of(story, samples)
            begin = round(min(e.start for e in story.timeline if e.audio is not None) * (story.fps or 0))
        else:
            track = np.empty((frames, samples), np.float32)
        track[:begin] = np.nan
        if own is not None:
            known = min(len(own), begin)
            track[:known] = own[:known]
        return track

    def _estimate(self, known: Tensor, given: int) -> None:
        """Fill in the states of given frames from their codes."""
        system, (batch, count) = self.system, known.shape[:2]
        latents = system.autoencoder.latents(known.flatten(0, 1), system.config.grid)
        found = system.states.estimate(latents).float().cpu().unflatten(0, (batch, count))
        if self.track is None:
            self.track = torch.full((batch, given, found.shape[2]), torch.nan)
        own = self.track[:, given - count : given]
        own.copy_(torch.where(own.isnan(), found, own))

    def tokens(self, first: int, count: int) -> Tensor:
        """Of the frames first .. first + count - 1."""
        nothing = torch.full((self.shape[0], count, self.shape[1]), -1, device=self.system.device)
        if self.track is None or not count:
            return nothing
        # Of sound the neighbours are heard too, so that no frame depends on how windows fall.
        begin = max(0, first - 1) if self.kind == "audio" else first
        part = self.track[:, begin : first + count + (self.kind == "audio")].to(self.system.device)
        told, part = ~part.isnan(), part.nan_to_num()
        if self.kind == "audio":
            told = told.all(2, keepdim=True)
        network = self.system.states if self.kind == "states" else self.system.sound
        found = torch.where(told, network.tokens(part), -1)[:, first - begin :][:, :count]
        nothing[:, : found.shape[1]] = found
        return nothing


def autoregress(system: CCVS, stories: list[Story], rng: Rng) -> Iterator[Tensor]:
    """Frames (B, 3, t, H, W) as they are made; given frames and the end frame come back as they were given."""
    size, frames = system.config.size, stories[0].frames or 0
    space = ImageSpace(system.autoencoder, system.config.grid, context_of(system), system.settings.keep_first)
    given, last = first_frames(stories, size), last_frame(stories, size)
    known = goal = end = None
    if given is not None:
        known = take_in(system, space, given)
        yield given.to(system.device)
    if last is not None:
        last = last.to(system.device)
        goal, end = system.tokenize(last[:, :, None])[:, 0], system.autoencoder.encode(last)[1]
    done = 0 if given is None else given.shape[2]
    del given
    for codes in code_frames(system, stories, rng, known, goal):
        near = end if done >= end_from(frames, system.config.frames) else None
        yield torch.stack([space.decode(tokens, near) for tokens in codes.unbind(1)], 2)
        done += codes.shape[1]
    if last is not None:
        yield last[:, :, None]


def take_in(system: CCVS, space: ImageSpace, given: Tensor) -> Tensor:
    """Show given frames (B, 3, m, H, W) to `space` and return the codes (B, k, n) of a window's worth of the last.

    They are encoded one by one: the features of a frame of 256 x 256 fill 48 MB.
    """
    count, window, codes = given.shape[2], system.config.frames, []
    for t in range(count):
        if space.keep_first <= t < count - max(window, space.memory):
            continue  # would be forgotten
        z, features = system.autoencoder.encode(given[:, :, t].to(system.device))
        if t >= count - window:
            codes.append(system.autoencoder.tokens(z))
        if space.memory:
            space.push(features)
    return torch.stack(codes, 1)


def context_of(system: CCVS) -> int:
    """Most context frames of a rollout.

    Raises:
        UserError: settings that do not fit the model.
    """
    settings, most = system.settings, system.config.autoencoder.context
    if not system.layout.codes:
        for name in ("temperature", "top_k", "state_top_k", "precision", "compile"):
            if getattr(settings, name) != getattr(CCVSSettings(), name):
                raise UserError(
                    f"{name} does nothing in a model without codebook (quantiser: none); leave it out", code=2
                )
    memory = most if settings.context is None else settings.context
    if not 0 <= memory <= most:
        raise UserError(f"context={memory} must lie between 0 and the {most} frames of this model", code=2)
    if most and not memory and not system.config.autoencoder_stage.unconditional:
        raise UserError("this model never learned to decode without context; give context=1 or more", code=2)
    if settings.keep_first and not 0 < settings.keep_first < memory:
        given = settings.keep_first
        raise UserError(f"keep_first={given} must be 0 or more, and less than the {memory} context frames", code=2)
    if not 1 <= settings.new < system.config.frames:
        raise UserError(
            f"new={settings.new} must be at least 1 and less than the {system.config.frames} frames of a window",
            code=2,
        )
    return memory


def end_from(frames: int, window: int) -> int:
    """The first frame of a video that is made towards its end: 0 if it is no longer than a window, else the frame
    after the first quarter of the final window, for which the frames before must be there."""
    return 0 if frames <= window else frames - window + max(1, window // 4)


def code_frames(
    system: CCVS, stories: list[Story], rng: Rng, known: Tensor | None, goal: Tensor | None
) -> Iterator[Tensor]:
    """Codes (B, t, n) of the frames after the given ones, window by window; of all but the end frame.

    A window that is full drops its first `new` frames, with their annotations, and adds `new`; class and start
    token stay, places count from the window's first frame. With an end frame the last window starts so that the end
    frame is its last; frames are made towards it from `end_from` on. A token's noise is addressed by its place in
    the video.

    Args:
        known: (B, m, n) codes of the last given frames, at least a window's worth if there are so many; or None.
        goal: (B, n) codes of the end frame, or None.
    """
    layout, new, window = system.layout, system.settings.new, system.config.frames
    batch, frames = len(stories), stories[0].frames or 0
    sampler = system.sampler(batch)
    drawn = system.draw_labels(rng)
    codes = system.no_codes(batch) if known is None else known[:, -window:]
    done = 0 if known is None else system.given_frames(stories)
    annotations = Annotations(system, stories, None if known is None else codes, done)
    states = annotations.tokens(done - codes.shape[1], codes.shape[1])
    turn = end_from(frames, window) if goal is not None else frames
    stop = frames - (goal is not None)
    while done < stop:
        keep = codes.shape[1] if codes.shape[1] + new <= window else window - new
        count = min(window - keep, stop - done, turn - done if done < turn else stop)
        opening = Opening(layout.prefix(system.labels(stories, drawn, done), batch))
        if done >= turn and goal is not None:
            keep = min(codes.shape[1], done - max(0, frames - window))
            count = stop - done
            opening = Opening(opening.ids, goal, frames - 1 - (done - keep))
        begin = done - keep
        codes, states = codes[:, codes.shape[1] - keep :], states[:, states.shape[1] - keep :]
        states = torch.cat([states, annotations.tokens(done, count)], 1)
        made, states = sampler.window(
            opening,
            codes,
            states,
            _noise(rng, "token", done, count, layout.size, system.device),
            _noise(rng, "state", begin, keep + count, layout.states, system.device),
        )
        codes = torch.cat([codes, made], 1)
        done += count
        yield made


def _noise(rng: Rng, stream: str, first: int, count: int, size: int, device: torch.device) -> Tensor:
    """Uniform numbers (B, count, size) of the tokens of some frames."""
    if not size:
        return torch.zeros(len(rng.seeds), count, 0, device=device)
    return rng.uniform(stream, range(first * size, (first + count) * size)).unflatten(1, (count, size)).to(device)
