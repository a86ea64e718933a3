"""Rollouts of CCVS: sliding windows, image space, first and last frames, states, sound."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import moving_square

from longtake.data import video
from longtake.data.batch import to_float
from longtake.errors import UserError
from longtake.rollout.rng import Rng
from longtake.rollout.states import read_states, states_of
from longtake.story import Entry, Story
from longtake.systems.base import ModelInfo
from longtake.systems.ccvs import rollout
from longtake.systems.ccvs.config import SIZES, CCVSSettings
from longtake.systems.ccvs.rollout import ImageSpace, end_from
from longtake.systems.ccvs.sampling import Opening
from longtake.systems.ccvs.system import CCVS

TINY = SIZES["tiny"]
FPS, SAMPLES = 10.0, 1600
INFO = ModelInfo(FPS, (16, 16), ("a", "b"), (1, 3), ("x", "y", "fire"), SAMPLES)


def system(
    settings: dict | None = None,
    coder: dict | None = None,
    unconditional: bool = True,
    estimated: bool = False,
    **prior,
) -> CCVS:
    torch.manual_seed(0)
    config = replace(
        TINY,
        autoencoder=replace(TINY.autoencoder, **(coder or {})),
        autoencoder_stage=replace(TINY.autoencoder_stage, unconditional=unconditional),
        states=replace(TINY.states, names=("x", "y"), estimated=estimated),
        prior=replace(TINY.prior, **prior),
    )
    made = CCVS(config, INFO)
    with torch.no_grad():
        for parameter in made.prior.parameters():
            parameter.normal_(0, 0.4)
        if config.autoencoder.quantiser == "gradient":
            made.autoencoder.codebook.embeddings.normal_()  # type: ignore[union-attr]
        if config.prior.annotation == "audio":
            made.sound.codebook.embeddings.normal_(0, 0.005)  # as its latents are
    made.settings = CCVSSettings(**(settings or {}))
    return made.eval()


def generate(made: CCVS, *stories: Story) -> torch.Tensor:
    return torch.cat(list(made.generate(list(stories))), 2)


def codes(made: CCVS, *stories: Story) -> torch.Tensor:
    """All codes (B, frames, n) of stories that give no frames."""
    checked = [made.check(s) for s in stories]
    with torch.inference_mode():
        parts = rollout.code_frames(made, checked, Rng([s.seed for s in checked]), None, None)
        return torch.cat(list(parts), 1)


@pytest.fixture
def first(tmp_path) -> str:
    video.write_video(tmp_path / "first.mp4", [moving_square(1, 3)], FPS, crf=0, pixel_format="yuv444p")
    return str(tmp_path / "first.mp4")


@pytest.fixture
def last(tmp_path) -> str:
    video.write_png(tmp_path / "last.png", moving_square(2, 1)[0])
    return str(tmp_path / "last.png")


def trajectory(path: Path, frames: int, seed: int = 0) -> str:
    np.save(path, np.random.default_rng(seed).random((frames, 2), np.float32))
    return str(path)


@pytest.mark.parametrize("new", [1, 3])
def test_windows_hold_the_last_frames_at_the_first_places(new, monkeypatch):
    made, seen = system({"new": new}), []
    sampler = made.sampler(1)
    original = sampler.window

    def window(opening, held, states, code_noise, state_noise):
        found = original(opening, held, states, code_noise, state_noise)
        seen.append((held.clone(), found[0]))
        return found

    monkeypatch.setattr(made, "sampler", lambda batch: sampler)
    monkeypatch.setattr(sampler, "window", window)
    found = codes(made, Story(frames=14, seed=3))
    assert found.shape == (1, 14, 16)
    assert [(h.shape[1], n.shape[1]) for h, n in seen[:2]] == [(0, 6), (6 - new, new)]
    done = 6
    for held, fresh in seen[1:]:
        assert torch.equal(held, found[:, done - (6 - new) : done])
        done += fresh.shape[1]
    assert done == 14


def test_a_frame_is_decoded_from_its_codes_and_the_frames_before():
    """The newest first, at most as many as the model has context for, each as it was made."""
    made = system({"context": 2})
    story = Story(frames=9, seed=1)
    frames, tokens, held = generate(made, story), codes(made, story), []
    with torch.inference_mode():
        for t in range(9):
            z = made.autoencoder.latents(tokens[:, t], made.config.grid)
            frame = made.autoencoder.decode(z, held[::-1][:2]).frames
            torch.testing.assert_close(frames[:, :, t], frame.clamp(-1, 1), rtol=0, atol=1e-5)
            held.append(made.autoencoder.encode(frame)[1])


def test_fewer_context_frames_and_none():
    story = Story(frames=6, seed=1)
    free = generate(system({"context": 0}), story)
    made = system({"context": 0})
    with torch.inference_mode():
        tokens = codes(made, story)
        alone = [made.autoencoder.decode(made.autoencoder.latents(t, (4, 4)), []).frames for t in tokens.unbind(1)]
    torch.testing.assert_close(free, torch.stack(alone, 2).clamp(-1, 1), rtol=0, atol=1e-5)
    assert not torch.allclose(free, generate(system({"context": 1}), story))


@pytest.mark.parametrize("keep_first", [0, 1])
def test_given_frames_are_encoded_one_by_one(keep_first, tmp_path, monkeypatch):
    """A window's codes and the context frames are kept of them, whatever their number."""
    made, seen, held = system({"keep_first": keep_first}), [], []
    encode, push = made.autoencoder.encode, ImageSpace.push

    def recorded(frames):
        seen.append(frames.clone())
        return encode(frames)

    def pushed(self, features):
        push(self, features)
        held.append(len(self.held))

    path = tmp_path / "long.mp4"
    video.write_video(path, [moving_square(1, 20)], FPS, crf=0, pixel_format="yuv444p")
    given = to_float(video.read_frames(path, range(20)))[None]
    with torch.no_grad():
        expected, features = made.tokenize(given), [encode(f)[1] for f in given.unbind(2)]
    space = ImageSpace(made.autoencoder, (4, 4), 3, keep_first)
    monkeypatch.setattr(made.autoencoder, "encode", recorded)
    monkeypatch.setattr(ImageSpace, "push", pushed)
    with torch.no_grad():
        known = rollout.take_in(made, space, given)
    assert torch.equal(known, expected[:, -6:])
    assert all(len(frames) == 1 for frames in seen)
    assert len(seen) == 6 + keep_first
    assert max(held) == 3
    kept = [0, 18, 19] if keep_first else [17, 18, 19]
    assert all(torch.equal(a[0], features[t][0]) for a, t in zip(space.held, kept, strict=True))
    story = made.check(Story(frames=23, first_frames=str(path)))
    with torch.inference_mode():
        parts = [rollout.code_frames(made, [story], Rng([0]), codes, None) for codes in (known, expected)]
        one, two = (torch.cat(list(part), 1) for part in parts)
    assert torch.equal(one, two)  # frame numbers and noise are those of the whole video
    assert one.shape[1] == 3


def test_the_first_frames_can_stay_in_context():
    """keep_first freezes the oldest slots and slides the others."""
    made = system()
    space = ImageSpace(made.autoencoder, (4, 4), memory=3, keep_first=1)
    for i in range(6):
        space.push([torch.full((1, 1, 1, 1), float(i))])
    assert [int(f[0]) for f in space.held] == [0, 4, 5]
    plain = ImageSpace(made.autoencoder, (4, 4), memory=3)
    for i in range(6):
        plain.push([torch.full((1, 1, 1, 1), float(i))])
    assert [int(f[0]) for f in plain.held] == [3, 4, 5]


def test_given_frames_come_back_and_steer(first):
    made = system(unconditional=False)
    assert made.requires == {"first_frames"}
    with pytest.raises(UserError, match="needs --first-frames"):
        made.generate([Story(frames=9)])
    shown = generate(made, Story(frames=9, first_frames=first))
    given = to_float(video.read_frames(first, range(3)))[None]
    assert shown.shape[2] == 9
    assert torch.equal(shown[:, :, :3], given)
    with torch.inference_mode():
        story = made.check(Story(frames=9, first_frames=first))
        tokens = next(rollout.code_frames(made, [story], Rng([0]), made.tokenize(given), None))
        assert tokens.shape[1] == 3  # up to a full window
        contexts = [made.autoencoder.encode(f)[1] for f in given.unbind(2)]
        frame = made.autoencoder.decode(made.autoencoder.latents(tokens[:, 0], (4, 4)), contexts[::-1]).frames
    torch.testing.assert_close(shown[:, :, 3], frame, rtol=0, atol=1e-5)
    assert made.given_frames([story]) == 3


@pytest.mark.parametrize("frames", [4, 6, 15])
def test_a_video_ends_at_its_last_frame(frames, first, last, monkeypatch):
    made, seen = system(end_share=0.5), []
    sampler = made.sampler(1)
    original = sampler.window

    def window(opening, held, states, code_noise, state_noise):
        seen.append((opening.end is not None, opening.distance, held.shape[1], code_noise.shape[1]))
        return original(opening, held, states, code_noise, state_noise)

    monkeypatch.setattr(made, "sampler", lambda batch: sampler)
    monkeypatch.setattr(sampler, "window", window)
    shown = generate(made, Story(frames=frames, first_frames=first, last_frame=last))
    assert shown.shape[2] == frames
    picture = to_float(video.read_image(Path(last))[None])[None]
    assert torch.equal(shown[:, :, -1:], picture)
    assert [s[0] for s in seen] == [False] * (len(seen) - 1) + ([True] if frames > 4 else [])
    if frames > 4:
        _, distance, held, count = seen[-1]
        assert held + count == distance  # the end frame is the next one
        assert distance == min(frames, 6) - 1
        begin = max(3, end_from(frames, 6))
        assert count == frames - 1 - begin


@pytest.mark.parametrize("share", [0.5, 1.0])
@pytest.mark.parametrize("given", [0, 1])
def test_a_video_of_one_window_is_made_towards_its_end_from_the_start(share, given, last, tmp_path, monkeypatch):
    """A model that only knows clips with an end frame must never be asked for others."""
    made, seen, near = system(end_share=share), [], []
    sampler, decode = made.sampler(1), ImageSpace.decode
    original = sampler.window

    def window(opening, held, states, code_noise, state_noise):
        seen.append((opening.end is not None, opening.distance, held.shape[1], code_noise.shape[1]))
        return original(opening, held, states, code_noise, state_noise)

    def recorded(self, tokens, end=None):
        near.append(end is not None)
        return decode(self, tokens, end)

    monkeypatch.setattr(made, "sampler", lambda batch: sampler)
    monkeypatch.setattr(sampler, "window", window)
    monkeypatch.setattr(ImageSpace, "decode", recorded)
    video.write_png(tmp_path / "one.png", moving_square(1, 1)[0])
    first = str(tmp_path / "one.png") if given else None
    generate(made, Story(frames=6, first_frames=first, last_frame=last))
    assert seen == [(True, 5, given, 5 - given)]
    assert near == [True] * (5 - given)


def test_the_end_frame_is_context_of_the_final_window_only(first, last, monkeypatch):
    made, near = system(end_share=0.5), []
    decode = ImageSpace.decode

    def recorded(self, tokens, end=None):
        near.append(end is not None)
        return decode(self, tokens, end)

    monkeypatch.setattr(ImageSpace, "decode", recorded)
    generate(made, Story(frames=15, first_frames=first, last_frame=last))
    final = end_from(15, 6)
    assert near == [t >= final for t in range(3, 14)]


def test_states_are_followed_and_drawn_where_none_are_given(tmp_path):
    made = system({"top_k": 1}, annotation="states")
    drawn = codes(made, Story(frames=9, seed=2))
    assert drawn.shape == (1, 9, 16)
    one, two = (trajectory(tmp_path / f"{i}.npy", 9, i) for i in (1, 2))
    told = [codes(made, Story(frames=9, timeline=(Entry(states=path),))) for path in (one, two)]
    assert not torch.equal(*told)
    # Until a trajectory begins states are drawn: so the beginning is that of the story without one.
    late = codes(made, Story(frames=9, seed=2, timeline=(Entry(0.4, states=trajectory(tmp_path / "c.npy", 5)),)))
    assert torch.equal(late[:, :4], drawn[:, :4])
    assert not torch.equal(late, drawn)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["plain", "vectors", "states", "audio"])
def test_half_precision_weights_make_videos(kind, dtype, first, last, tmp_path):
    """`--dtype`: frames, trajectories and sound come in float32."""
    coder = {"quantiser": "none"} if kind == "vectors" else {}
    annotation = kind if kind in ("states", "audio") else "none"
    made = system(coder=coder, estimated=True, annotation=annotation, end_share=0.5, unconditional=True)
    made.to("cpu", dtype)
    video.write_audio(tmp_path / "a.wav", np.zeros(10 * SAMPLES, np.float32), int(FPS * SAMPLES))
    paths = {"states": trajectory(tmp_path / "a.npy", 10), "audio": str(tmp_path / "a.wav")}
    entry = Entry(**{annotation: paths[annotation]}) if annotation != "none" else Entry()  # type: ignore[arg-type]
    for story in (Story(frames=10, first_frames=first, last_frame=last, timeline=(entry,)), Story(frames=8)):
        shown = generate(made, story)
        assert shown.dtype == torch.float32
        assert shown.shape[2] == story.frames
        assert torch.isfinite(shown).all()


def test_given_trajectories_reach_the_window(tmp_path, monkeypatch):
    made, seen = system(annotation="states"), []
    sampler = made.sampler(1)
    original = sampler.window

    def window(opening, held, states, code_noise, state_noise):
        seen.append(states[:, held.shape[1] :].clone())
        return original(opening, held, states, code_noise, state_noise)

    monkeypatch.setattr(made, "sampler", lambda batch: sampler)
    monkeypatch.setattr(sampler, "window", window)
    path = trajectory(tmp_path / "a.npy", 12)
    codes(made, Story(frames=12, timeline=(Entry(states=path),)))
    rows = torch.from_numpy(np.load(path))
    assert torch.equal(torch.cat(seen, 1)[0], made.states.tokens(rows))
    values = made.states.codebook.embeddings[made.states.tokens(rows), 0]
    assert (values - rows).abs().max() <= 0.5 / 16 + 1e-6


def windows(made: CCVS, monkeypatch) -> list[torch.Tensor]:
    """Collects the annotations (1, m + t, s) that each window is told, -1 where nothing tells them."""
    told: list[torch.Tensor] = []
    sampler = made.sampler(1)
    original = sampler.window

    def window(opening, held, states, code_noise, state_noise):
        told.append(states.clone())
        return original(opening, held, states, code_noise, state_noise)

    monkeypatch.setattr(made, "sampler", lambda batch: sampler)
    monkeypatch.setattr(sampler, "window", window)
    return told


def test_states_of_given_frames_are_estimated(first, tmp_path, monkeypatch):
    """Where the model has an estimator and no trajectory tells them; those of new frames are drawn."""
    made = system(annotation="states", estimated=True)
    told = windows(made, monkeypatch)
    generate(made, Story(frames=8, first_frames=first))
    given = to_float(video.read_frames(first, range(3)))
    with torch.no_grad():
        seen = made.states.tokens(made.states.estimate(made.seen_latents(given.transpose(0, 1))))
    assert torch.equal(told[0][0, :3], seen)
    assert (told[0][0, 3:] == -1).all()
    path = trajectory(tmp_path / "a.npy", 7)
    generate(made, Story(frames=8, first_frames=first, timeline=(Entry(0.1, states=path),)))
    rows = made.states.tokens(torch.from_numpy(np.load(path)))
    assert torch.equal(told[-3][0], torch.cat([seen[:1], rows[:5]]))


def test_without_an_estimator_states_of_given_frames_are_drawn(first, monkeypatch):
    made = system(annotation="states")
    told = windows(made, monkeypatch)
    assert generate(made, Story(frames=8, first_frames=first)).shape[2] == 8
    assert (told[0] == -1).all()


@pytest.mark.parametrize("kind", ["states", "audio"])
def test_with_nothing_before_it_the_first_annotation_is_drawn_evenly(kind, first):
    """A model without class and start token that goes on from a picture: training never taught that token."""
    made = system(annotation=kind, start=False)

    assert generate(made, Story(frames=8, first_frames=first)).shape[2] == 8
    sampler = made.sampler(2)
    sampler._begin(Opening(torch.zeros(2, 0, dtype=torch.long)))
    states = torch.full((2, made.layout.states), -1)
    noise = torch.full((2, made.layout.states), 0.999999)
    noise[1] = 0
    sampler._draw_states(states, noise, made.layout.frame_places(0, 1))
    assert states[:, 0].tolist() == [made.layout.state_codes - 1, 0]


def test_a_trajectory_may_cover_the_given_frames_alone(first, tmp_path, monkeypatch):
    made = system(annotation="states")
    told = windows(made, monkeypatch)
    path = trajectory(tmp_path / "a.npy", 3)
    generate(made, Story(frames=8, first_frames=first, timeline=(Entry(states=path),)))
    assert torch.equal(told[0][0, :3], made.states.tokens(torch.from_numpy(np.load(path))))
    assert (told[0][0, 3:] == -1).all()
    short = Story(frames=8, first_frames=first, timeline=(Entry(states=trajectory(tmp_path / "b.npy", 2)),))
    with pytest.raises(UserError, match="has 2 rows and is to run for 8 frames"):
        generate(made, short)


def test_given_frames_have_their_own_sound(first, tmp_path, monkeypatch):
    """If the story tells none and the file they come from has some; that of new frames is drawn."""
    made = system(annotation="audio")
    told = windows(made, monkeypatch)
    generate(made, Story(frames=8, first_frames=first))
    assert (told[0] == -1).all()
    wave = np.random.default_rng(0).uniform(-1, 1, 3 * SAMPLES).astype(np.float32)
    frames, path = moving_square(1, 3), str(tmp_path / "heard.mp4")
    video.write_video(path, [frames], FPS, audio=wave, audio_rate=int(FPS * SAMPLES))
    told.clear()
    generate(made, Story(frames=8, first_frames=path))
    with torch.no_grad():
        heard = np.pad(video.read_audio(path, int(FPS * SAMPLES)), (0, SAMPLES))[: 3 * SAMPLES]
        track = torch.from_numpy(np.pad(heard, (0, SAMPLES))).view(1, 4, SAMPLES)
        own = made.sound.tokens(track)[:, :3]
    assert torch.equal(told[0][:, :3], own)
    assert (told[0][:, 3:] == -1).all()
    silent = Story(frames=8, first_frames=path, timeline=(Entry(audio=str(tmp_path / "a.wav")),))
    video.write_audio(tmp_path / "a.wav", np.zeros(8 * SAMPLES, np.float32), int(FPS * SAMPLES))
    told.clear()
    generate(made, silent)  # what the story tells comes first
    assert not torch.equal(told[0][:, :3], own)
    assert (told[0] >= 0).all()


def test_trajectory_files(tmp_path):
    names = ("x", "y")
    (tmp_path / "a.csv").write_text("x,y\n0.1,0.2\n0.3,1.0\n")
    np.testing.assert_allclose(read_states(tmp_path / "a.csv", names), [[0.1, 0.2], [0.3, 1.0]], rtol=1e-6)
    (tmp_path / "b.csv").write_text("0.5,0\n1e-1,0.25\n")
    assert read_states(tmp_path / "b.csv", names).shape == (2, 2)
    story = Story(
        frames=4,
        timeline=(Entry(0.1, states=str(tmp_path / "a.csv")), Entry(0.3, states=str(tmp_path / "b.csv"))),
    ).resolve(FPS, ())
    track = states_of(story, names)
    assert np.isnan(track[0]).all()
    np.testing.assert_allclose(track[1:], [[0.1, 0.2], [0.3, 1.0], [0.5, 0.0]], rtol=1e-6)
    for name, content, message in (
        ("c.csv", "0.1\n0.2\n", "the columns x, y are wanted"),
        ("d.csv", "0.1,2\n", r"numbers outside \[0, 1\]"),
        ("e.csv", "a,b\nc,d\n", "cannot read the trajectory"),
        ("f.txt", "1", "give a .npy or .csv file"),
    ):
        (tmp_path / name).write_text(content)
        with pytest.raises(UserError, match=message):
            read_states(tmp_path / name, names)
    with pytest.raises(UserError, match="cannot read the trajectory"):
        read_states(tmp_path / "missing.npy", names)
    assert np.isnan(states_of(Story(frames=3).resolve(FPS, ()), names)).all()
    short = Story(frames=9, timeline=(Entry(states=str(tmp_path / "a.csv")),)).resolve(FPS, ())
    with pytest.raises(UserError, match="has 2 rows and is to run for 9 frames"):
        states_of(short, names)


def test_frames_hear_their_own_sound(tmp_path):
    made = system(annotation="audio")
    noise = np.random.default_rng(0).uniform(-1, 1, 12 * SAMPLES).astype(np.float32)
    other = noise.copy()
    other[8 * SAMPLES :] *= 0.01
    for name, wave in (("a", noise), ("b", other)):
        video.write_audio(tmp_path / f"{name}.wav", wave, int(FPS * SAMPLES))

    def heard(name: str) -> torch.Tensor:
        return codes(made, Story(frames=12, timeline=(Entry(audio=str(tmp_path / f"{name}.wav")),)))

    one, two = heard("a"), heard("b")
    assert torch.equal(one[:, :7], two[:, :7])
    assert not torch.equal(one[:, 8:], two[:, 8:])
    assert codes(made, Story(frames=4)).shape == (1, 4, 16)  # without sound its tokens are drawn


def test_sound_tokens_do_not_depend_on_how_windows_fall(tmp_path):
    made = system(annotation="audio")
    wave = np.random.default_rng(0).uniform(-1, 1, 8 * SAMPLES).astype(np.float32)
    video.write_audio(tmp_path / "a.wav", wave, int(FPS * SAMPLES))
    story = made.check(Story(frames=8, timeline=(Entry(audio=str(tmp_path / "a.wav")),)))
    annotations = rollout.Annotations(made, [story])
    with torch.no_grad():
        whole = annotations.tokens(0, 8)
        parts = [annotations.tokens(*part) for part in ((0, 3), (3, 1), (4, 0), (4, 4))]
    assert torch.equal(torch.cat(parts, 1), whole)
    silent = made.check(Story(frames=8))
    both = rollout.Annotations(made, [story, silent])
    with torch.no_grad():
        assert torch.equal(both.tokens(0, 8)[:1], whole)
        assert (both.tokens(0, 8)[1] == -1).all()


def test_classes_are_drawn_or_told():
    made = system(label=True, start=False)
    one = codes(made, Story(frames=8, timeline=(Entry(label="a"),)))
    two = codes(made, Story(frames=8, timeline=(Entry(label="b"),)))
    assert not torch.equal(one, two)
    change = codes(made, Story(frames=12, timeline=(Entry(label="a"), Entry(0.8, label="b"))))
    assert torch.equal(change[:, :8], one)


def test_regressed_vectors_make_videos():
    made = system(coder={"quantiser": "none"})
    assert made.codebook_size == 0
    assert generate(made, Story(frames=14)).shape == (1, 3, 14, 16, 16)


def test_reconstruction_keeps_its_context_from_clip_to_clip():
    made = system()
    frames = to_float(moving_square(3, 12))[None]
    parts = list(made.reconstruct([(frames[:, :, :6], 6), (frames[:, :, 6:], 6)]))
    whole = torch.cat([made_frames for _, made_frames, _, _ in parts], 2)
    with torch.no_grad():
        tokens, space = made.tokenize(frames), ImageSpace(made.autoencoder, (4, 4), 3)
        space.show(frames[:, :, :1])
        expected = [made.autoencoder.decode(made.autoencoder.latents(tokens[:, 0], (4, 4)), space.held).frames]
        expected += [space.decode(tokens[:, t]) for t in range(1, 12)]
    torch.testing.assert_close(whole, torch.stack(expected, 2), rtol=0, atol=1e-4)
    assert torch.equal(torch.cat([t for _, _, t, _ in parts], 1), tokens)


@pytest.mark.parametrize("keep_first", [0, 2])
def test_memory_is_bounded_in_length(keep_first, monkeypatch):
    """Whatever the length, a window of codes and the context frames are held while a video is made."""
    made, held, window = system({"top_k": 1, "keep_first": keep_first}), [], set()
    push, sampler = ImageSpace.push, made.sampler(1)
    original = sampler.window

    def pushed(self, features):
        push(self, features)
        held.append(len(self.held))

    def recorded(opening, codes, states, code_noise, state_noise):
        window.add(codes.shape[1] + code_noise.shape[1])
        return original(opening, codes, states, code_noise, state_noise)

    monkeypatch.setattr(ImageSpace, "push", pushed)
    monkeypatch.setattr(made, "sampler", lambda batch: sampler)
    monkeypatch.setattr(sampler, "window", recorded)
    sizes = [chunk.shape[2] for chunk in made.generate([Story(frames=60)])]
    assert sum(sizes) == 60
    assert max(sizes) == 6
    assert held == [1, 2] + [3] * 58
    assert window == {6}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"new": 0}, "new=0 must be at least 1 and less than the 6 frames"),
        ({"new": 6}, "new=6 must be"),
        ({"context": 4}, "context=4 must lie between 0 and the 3 frames"),
        ({"keep_first": 3}, "keep_first=3 must be 0 or more, and less than the 3 context frames"),
    ],
)
def test_settings_that_do_not_fit(settings, message):
    with pytest.raises(UserError, match=message):
        generate(system(settings), Story(frames=4))


@pytest.mark.parametrize(
    "settings",
    [{"temperature": 0.5}, {"top_k": 5}, {"state_top_k": 5}, {"precision": "bfloat16"}, {"compile": True}],
)
def test_settings_that_do_nothing_without_a_codebook(settings):
    (name,) = settings
    with pytest.raises(UserError, match=f"^{name} does nothing in a model without codebook"):
        generate(system(settings, coder={"quantiser": "none"}), Story(frames=4))


def test_last_frames_that_cannot_be(first, last):
    made = system(end_share=0.5)
    with pytest.raises(UserError, match="is no picture"):
        generate(made, Story(frames=9, last_frame=first))
    with pytest.raises(UserError, match="one video ends at a given frame and another does not"):
        generate(made, Story(frames=9, last_frame=last), Story(frames=9))
    with pytest.raises(UserError, match="needs 2 frames or more"):
        generate(made, Story(frames=1, last_frame=last))
