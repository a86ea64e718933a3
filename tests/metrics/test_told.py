"""An evaluation that tells a model the sound and the states of test videos."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import moving_square
from fakes import TinyConfig, TinyContinuous

from longtake.data import video
from longtake.data.library import Library, LibraryWriter, Row
from longtake.errors import UserError
from longtake.metrics.evaluate import evaluate
from longtake.metrics.protocol import PROTOCOLS
from longtake.metrics.sources import ModelSource
from longtake.rollout.given import first_frames
from longtake.rollout.sound import sound_of
from longtake.rollout.states import states_of
from longtake.systems.base import ModelInfo

FPS, SAMPLES, FRAMES = 10.0, 400, 40


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> Library:
    """Two test videos, the second a little shorter; states and sound are other ones in each video and frame."""
    path = tmp_path_factory.mktemp("told") / "library"
    with LibraryWriter(path, (16, 16), FPS, samples_per_frame=SAMPLES, state_names=("x", "y")) as writer:
        for i in range(4):
            frames = FRAMES - 8 * (i == 3)
            files = [writer.media(kind, f"v{i}") for kind in ("video", "audio", "states")]
            video.write_video(files[0], [moving_square(i, frames)], FPS, crf=10, pixel_format="yuv444p")
            level = np.linspace(0.1, 0.5, frames) + 0.1 * i
            video.write_audio(files[1], np.repeat(level, SAMPLES).astype(np.float32), int(FPS * SAMPLES))
            np.save(files[2], np.stack([np.zeros(frames), level], 1).astype(np.float32))
            named = dict(zip(("audio", "states"), map(writer.relative, files[1:]), strict=True))
            split = "test" if i > 1 else "train"
            writer.add(Row(f"v{i}", writer.relative(files[0]), frames, frames / FPS, split, **named))
    return Library(path)


class Obedient(TinyContinuous):
    """As bright as its one state, or as what is heard is loud; black where it is told nothing."""

    accepts = frozenset({"first_frames", "states", "audio"})
    state_names = ("y",)

    def given_frames(self, stories):
        return first_frames(stories, (16, 16)).shape[2] if stories[0].first_frames else 0

    def rollout(self, stories, rng):
        level = [sound_of(s, SAMPLES).mean(1) + np.nan_to_num(states_of(s, ("y",)))[:, 0] for s in stories]
        frames = torch.tensor(np.stack(level), dtype=torch.float32) * 2 - 1
        yield frames[:, None, :, None, None].expand(-1, 3, -1, 16, 16)


def model(library: Library, **fields) -> Obedient:
    kind = type("Obedient", (Obedient,), fields)
    return kind(TinyConfig(), ModelInfo.of(library, (16, 16))).eval()


@pytest.mark.parametrize("kind", ["audio", "states"])
@pytest.mark.parametrize("given", [0, 5])
def test_a_model_is_told_what_belongs_to_each_video(library, kind, given):
    made = ModelSource(model(library), library, 2, 30 - given, 0, "round", given=given, told=[kind])
    videos = np.concatenate([np.stack(chunk) for chunk in made.stream(range(2))], 1)
    assert videos.shape[1] == 30 - given
    for shown, row in zip(videos, library.split("test"), strict=True):
        level = np.linspace(0.1, 0.5, library.rows[row].frames)[given:30] + 0.1 * row
        np.testing.assert_allclose(shown.mean((1, 2, 3)) / 255, level, atol=0.01)
    assert made.conditions()["told"] == [kind]


def test_what_is_required_is_told_and_only_long_videos_tell(library, tmp_path):
    made = ModelSource(model(library, requires=frozenset({"audio"})), library, 2, 36, 0, "round")
    assert made.rows == library.split("test")[:1] * 2  # the other has 32 frames
    result = evaluate(made, library, tmp_path / "e", replace(PROTOCOLS["longtake-1"], clips=()), [])
    assert result.protocol["told"] == ["audio"]
    assert "told" not in ModelSource(model(library), library, 2, 36, 0, "round").conditions()


def test_what_cannot_be_told_is_refused(library, tmp_path):
    with pytest.raises(UserError, match=r"no test video of 50 frames, whose states could be told"):
        ModelSource(model(library), library, 2, 50, 0, "round", told=["states"])
    with pytest.raises(UserError, match="takes no states here; leave --told states out"):
        ModelSource(model(library, accepts=frozenset()), library, 2, 30, 0, "round", told=["states"])
    with pytest.raises(UserError, match="has no states z, which"):
        ModelSource(model(library, state_names=("y", "z")), library, 2, 30, 0, "round", told=["states"])
    faster = model(library)
    faster.info = replace(faster.info, fps=20.0)
    with pytest.raises(UserError, match="prepare the library with --fps 20"):
        ModelSource(faster, library, 2, 30, 0, "round", told=["audio"])
    silent = tmp_path / "silent"
    with LibraryWriter(silent, (16, 16), FPS) as writer:
        file = writer.media("video", "v")
        video.write_video(Path(file), [moving_square(0, 40)], FPS)
        writer.add(Row("v", writer.relative(file), 40, 4.0, "test"))
    with pytest.raises(UserError, match="has no audio that"):
        ModelSource(model(library), Library(silent), 2, 30, 0, "round", told=["audio"])
