"""TATS steered by sound: the tokenizer of spectrograms, windows that slide together, and sound in the file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import moving_square

from longtake import api
from longtake.data import video
from longtake.data.audio import spectrogram
from longtake.data.library import LibraryWriter, Row
from longtake.errors import UserError
from longtake.rollout.rng import Rng
from longtake.rollout.sound import sound_of
from longtake.story import Entry, Story
from longtake.systems import folder
from longtake.systems.base import ModelInfo
from longtake.systems.tats import rollout
from longtake.systems.tats.config import SIZES
from longtake.systems.tats.stages import SoundStage
from longtake.systems.tats.system import TATS
from longtake.train.loop import Trainer
from longtake.train.recipe import LoopSettings, Recipe

FPS, SAMPLES = 10.0, 1600
TINY = replace(
    SIZES["tiny"],
    frames=16,
    prior=replace(SIZES["tiny"].prior, condition="audio"),
    vqgan_stage=replace(SIZES["tiny"].vqgan_stage, steps=2, batch=2),
    sound=replace(SIZES["tiny"].sound, steps=6, batch=2, ema=0.5),
    prior_stage=replace(SIZES["tiny"].prior_stage, steps=3, batch=2),
)


def tones(seconds: float, seed: int = 0) -> np.ndarray:
    """Quarter seconds of tones of changing pitch."""
    random = np.random.default_rng(seed)
    count = round(seconds * FPS * SAMPLES)
    pitch = np.repeat(random.uniform(200, 6000, int(seconds * 4) + 1), SAMPLES * 10 // 4)[:count]
    return (0.5 * np.sin(2 * np.pi * np.cumsum(pitch) / (FPS * SAMPLES))).astype(np.float32)


@pytest.fixture(scope="module")
def heard(tmp_path_factory) -> Path:
    """Six videos of 40 frames with sound."""
    path = tmp_path_factory.mktemp("heard") / "library"
    with LibraryWriter(path, (16, 16), FPS, samples_per_frame=SAMPLES) as writer:
        for i in range(6):
            file, sound = writer.media("video", f"v{i}"), writer.media("audio", f"v{i}")
            video.write_video(file, [moving_square(i)], FPS, crf=10, pixel_format="yuv444p")
            video.write_audio(sound, tones(4, i), int(FPS * SAMPLES))
            split = "test" if i > 3 else "train"
            writer.add(Row(f"v{i}", writer.relative(file), 40, 4.0, split, audio=writer.relative(sound)))
    return path


@pytest.fixture(scope="module")
def trained(heard, tmp_path_factory) -> Path:
    loop = LoopSettings(log_every=1, validate_batches=1, checkpoint_every=2, preview_every=100)
    output = str(tmp_path_factory.mktemp("sound") / "run")
    return Trainer(Recipe("tats", "tiny", TINY, str(heard), output, loop=loop)).run()


@pytest.fixture
def wave(tmp_path) -> str:
    video.write_audio(tmp_path / "a.wav", tones(6), int(FPS * SAMPLES))
    return str(tmp_path / "a.wav")


def system(info: ModelInfo) -> TATS:
    torch.manual_seed(0)
    made = TATS(TINY, info)
    with torch.no_grad():
        for network in (made.prior, made.sound):
            for parameter in network.parameters():
                if parameter.dim() > 1:
                    parameter.normal_(0, 0.3)
        made.sound.codebook.embeddings.normal_()
    made.settings = replace(made.settings, keep=2, new=1, top_k=0, top_p=1.0)
    return made.eval()


def test_it_trains_and_generates_with_the_sound_in_the_file(trained, wave, tmp_path):
    made = folder.load(trained)
    assert made.inference == ("vqgan", "sound_vqgan", "prior")
    assert [s.name for s in made.stages()] == ["vqgan", "sound_vqgan", "prior"]
    assert made.stages()[2].frozen == ("vqgan", "sound_vqgan")
    assert made.accepts == {"audio", "cut", "first_frames"}
    assert (made.condition_length, made.offset) == (4 * 8 * 2, 16)
    story = Story(frames=45, timeline=(Entry(audio=wave),))
    api.generate(made, story=story).save(tmp_path / "out.mp4")
    info = video.probe(tmp_path / "out.mp4")
    assert info.frames == 45
    played = video.read_audio(tmp_path / "out.mp4", int(FPS * SAMPLES))
    assert abs(len(played) / (FPS * SAMPLES) - 4.5) < 1 / FPS
    steady = slice(SAMPLES, 44 * SAMPLES)
    assert np.corrcoef(played[steady], tones(6)[steady])[0, 1] > 0.9


def test_the_sound_vqgan_learns(heard):
    made = TATS(TINY, ModelInfo(FPS, (16, 16), samples_per_frame=SAMPLES))
    stage = SoundStage(made)
    optimiser = stage.optimisers()["sound"]
    batch = {"audio": torch.from_numpy(np.stack([tones(1.6, i).reshape(16, SAMPLES) for i in range(4)]))}
    losses = []
    for _ in range(30):
        loss = stage._loss(batch)
        loss["loss"].backward()
        optimiser.step()
        optimiser.zero_grad()
        losses.append(float(loss["l1"].detach()))
    assert losses[-1] < 0.8 * losses[0]


def test_a_window_hears_its_own_frames(trained, wave, monkeypatch):
    """The first window hears frames 0 to 15; each further one the 16 frames from its first kept slice on."""
    made, seen = system(folder.load(trained).info), []
    tokens = made.sound_tokens
    monkeypatch.setattr(made, "sound_tokens", lambda sound: (seen.append(sound), tokens(sound))[1])
    story = made.check(Story(frames=40, timeline=(Entry(audio=wave),)))
    list(rollout.latent_slices(made, [story], Rng([0])))
    track = torch.from_numpy(sound_of(story, SAMPLES))
    starts = [0, 4, 8, 12, 16, 20, 24, 28]  # 3 slices, of which 2 are kept for the fourth, and so on
    assert len(seen) == len(starts)
    for start, sound in zip(starts, seen, strict=True):
        part = track[start : start + 16]
        assert torch.equal(sound[0, : len(part)], part)
        assert (sound[0, len(part) :] == 0).all()


def test_other_sound_changes_what_is_seen_from_there_on(trained, wave, tmp_path):
    made = system(folder.load(trained).info)
    other = tones(6)
    other[20 * SAMPLES :] = tones(6, 9)[20 * SAMPLES :]
    video.write_audio(tmp_path / "b.wav", other, int(FPS * SAMPLES))

    def shown(file: str) -> torch.Tensor:
        story = made.check(Story(frames=48, timeline=(Entry(audio=file),)))
        return torch.cat(list(rollout.latent_slices(made, [story], Rng([0]))), 1)

    one, two = shown(wave), shown(str(tmp_path / "b.wav"))
    assert torch.equal(one[:, :3], two[:, :3])  # the first window hears frames 0 to 15 only
    assert not torch.equal(one[:, 3:], two[:, 3:])


def test_sounds_of_a_story(tmp_path):
    for name, seconds, level in (("a", 2.0, 0.25), ("b", 3.0, -0.5)):
        video.write_audio(tmp_path / f"{name}.wav", np.full(int(seconds * 16000), level, np.float32), 16000)
    a, b = str(tmp_path / "a.wav"), str(tmp_path / "b.wav")
    story = Story(frames=40, timeline=(Entry(1.0, audio=a), Entry(2.5, audio=b))).resolve(FPS, ())
    track = sound_of(story, SAMPLES)
    assert track.shape == (40, SAMPLES)
    assert (track[:10] == 0).all()
    np.testing.assert_allclose(track[10:25], 0.25, atol=1e-3)
    np.testing.assert_allclose(track[25:], -0.5, atol=1e-3)
    late = Story(frames=40, timeline=(Entry(0.0, audio=b), Entry(9.0, audio=a))).resolve(FPS, ())
    with pytest.raises(UserError, match=r"b\.wav lasts 3\.00 s and is to play for 4\.00 s from second 0 on"):
        sound_of(late, SAMPLES)


def test_what_cannot_be_heard_is_refused(trained, library, tmp_path):
    made = folder.load(trained)
    with pytest.raises(UserError, match="give --audio, playing from the start"):
        made.check(Story(frames=8, timeline=(Entry(1.0, audio="x.wav"),)))
    with pytest.raises(UserError, match=r"missing\.wav"):
        list(made.generate([Story(frames=8, timeline=(Entry(audio=str(tmp_path / "missing.wav")),))]))
    with pytest.raises(UserError, match="whose videos all have it"):
        Trainer(Recipe("tats", "tiny", TINY, str(library), str(tmp_path / "run"))).run()
    with pytest.raises(UserError, match="a sparse prior cannot be conditioned on sound"):
        TATS(replace(TINY, every=2), ModelInfo(FPS, (16, 16), samples_per_frame=SAMPLES))


def test_tokens_are_those_of_the_spectrogram(trained):
    made = folder.load(trained)
    sound = torch.from_numpy(tones(1.6).reshape(1, 16, SAMPLES))
    expected = made.sound.tokenize(spectrogram(sound)[:, None])
    assert expected.shape == (1, 4, 8, 2)
    assert torch.equal(made.sound_tokens(sound), expected.flatten(1))
