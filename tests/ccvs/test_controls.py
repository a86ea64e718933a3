"""Training with everything that annotates, from a library that has it, through the loop."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from ccvs_parts import part, release
from conftest import moving_square
from goldens import Golden

from longtake.data import video
from longtake.data.library import Library, LibraryWriter, Row
from longtake.data.loader import Loader
from longtake.story import Entry, Story
from longtake.systems import folder
from longtake.systems.base import ModelInfo
from longtake.systems.ccvs.config import SIZES, CCVSConfig, DiscriminatorConfig
from longtake.systems.ccvs.convert import convert
from longtake.systems.ccvs.names import image_discriminator_state, video_discriminator_state
from longtake.systems.ccvs.rollout import Annotations
from longtake.systems.ccvs.system import CCVS
from longtake.train.loop import Trainer, build
from longtake.train.recipe import LoopSettings, Recipe

FPS, SAMPLES, FRAMES = 10.0, 1600, 20
LOOP = LoopSettings(log_every=1, validate_every=2, validate_batches=1, preview_every=100, checkpoint_every=2)


def place(frame: np.ndarray) -> np.ndarray:
    """The bright square's centre (x, y) in [0, 1]."""
    y, x = np.nonzero(frame.sum(2) > frame.sum(2).mean() + 1)
    return np.array([x.mean(), y.mean()], np.float32) / 15


@pytest.fixture(scope="module")
def annotated(tmp_path_factory) -> Path:
    """Six videos with sound and the place of their square."""
    path = tmp_path_factory.mktemp("annotated") / "library"
    with LibraryWriter(path, (16, 16), FPS, samples_per_frame=SAMPLES, state_names=("x", "y")) as writer:
        for i in range(6):
            files = {kind: writer.media(kind, f"v{i}") for kind in ("video", "audio", "states")}
            frames = moving_square(i, FRAMES)
            video.write_video(files["video"], [frames], FPS, crf=10, pixel_format="yuv444p")
            tone = np.sin(np.arange(FRAMES * SAMPLES) * 0.05 * (i + 1)).astype(np.float32) / 2
            video.write_audio(files["audio"], tone, int(FPS * SAMPLES))
            np.save(files["states"], np.stack([place(f) for f in frames]))
            names = {kind: writer.relative(file) for kind, file in files.items()}
            split = "test" if i > 3 else "train"
            row = Row(f"v{i}", names["video"], FRAMES, FRAMES / FPS, split)
            writer.add(replace(row, audio=names["audio"], states=names["states"]))
    return path


def tiny(annotation: str, estimated: bool = False) -> CCVSConfig:
    config = SIZES["tiny"]
    return replace(
        config,
        autoencoder_stage=replace(config.autoencoder_stage, steps=3, image_batch=2, video_batch=1),
        states=replace(config.states, steps=4, estimated=estimated),
        sound=replace(config.sound, steps=4, ema=0.9),
        prior=replace(config.prior, annotation=annotation),
        prior_stage=replace(config.prior_stage, steps=3, batch=2),
    )


def train(config: CCVSConfig, library: Path, output: Path, **fields) -> CCVS:
    run = Trainer(Recipe("ccvs", "tiny", config, str(library), str(output), loop=LOOP, **fields)).run()
    return cast(CCVS, folder.load(run))


def test_states_of_the_library(annotated, tmp_path):
    made = train(tiny("states"), annotated, tmp_path / "run")
    assert [s.name for s in made.stages()] == ["autoencoder", "prior"]
    assert made.inference == ("autoencoder", "states", "prior")
    np.save(tmp_path / "a.npy", np.linspace(0, 1, 24, dtype=np.float32).reshape(12, 2))
    story = Story(frames=12, timeline=(Entry(states=str(tmp_path / "a.npy")),))
    assert torch.cat(list(made.generate([story])), 2).shape == (1, 3, 12, 16, 16)


def test_estimated_states_need_them_only_for_the_estimator(annotated, library, tmp_path):
    """An estimator learned on a library with states annotates one without (paper section 4, BAIR)."""
    made = train(tiny("states", estimated=True), annotated, tmp_path / "one")
    assert [s.name for s in made.stages()] == ["autoencoder", "states", "prior"]
    config = replace(
        tiny("states", estimated=True),
        autoencoder_stage=replace(tiny("states").autoencoder_stage, steps=0),
        states=replace(made.config.states, steps=0, names=("x", "y")),
    )
    source = str(tmp_path / "one")
    other = train(config, library, tmp_path / "two", init={"autoencoder": source, "states": source})
    assert torch.equal(other.states.head.weight, made.states.head.weight)
    assert torch.cat(list(other.generate([Story(frames=8)])), 2).shape[2] == 8


def test_sound_of_the_library(annotated, tmp_path):
    made = train(tiny("audio"), annotated, tmp_path / "run")
    assert [s.name for s in made.stages()] == ["autoencoder", "sound", "prior"]
    tone = np.sin(np.arange(12 * SAMPLES) * 0.1).astype(np.float32)
    video.write_audio(tmp_path / "a.wav", tone, int(FPS * SAMPLES))
    story = Story(frames=12, timeline=(Entry(audio=str(tmp_path / "a.wav")),))
    assert torch.cat(list(made.generate([story])), 2).shape == (1, 3, 12, 16, 16)


def test_sound_that_begins_later_is_predicted_until_then(annotated, tmp_path):
    """And given frames are heard as their file sounds, whatever comes after them."""
    torch.manual_seed(0)
    made = CCVS(tiny("audio"), ModelInfo.of(Library(annotated), (16, 16))).eval()
    tone = np.sin(np.arange(12 * SAMPLES) * 0.1).astype(np.float32)
    video.write_audio(tmp_path / "a.wav", tone, int(FPS * SAMPLES))
    frames = np.zeros((4, 16, 16, 3), np.uint8)
    heard = {"audio": tone[: 4 * SAMPLES], "audio_rate": int(FPS * SAMPLES)}
    video.write_video(tmp_path / "first.mp4", [frames], FPS, **heard)
    later = (Entry(), Entry(start=6 / FPS, audio=str(tmp_path / "a.wav")))

    def told(**fields) -> list[bool]:
        story = made.check(Story(frames=12, timeline=later, **fields))
        return (Annotations(made, [story]).tokens(0, 12)[0, :, 0] >= 0).tolist()

    assert told() == [False] * 6 + [True] * 6
    assert told(first_frames=str(tmp_path / "first.mp4")) == [True] * 4 + [False] * 2 + [True] * 6


def test_stages_learn(annotated):
    """The estimator finds the square from latents of an autoencoder, the sound autoencoder its patches."""
    torch.manual_seed(0)
    info = ModelInfo.of(Library(annotated), (16, 16))
    for kind in ("states", "audio"):
        config = tiny(kind, estimated=True)
        made = CCVS(config, info)
        stage = made.stages()[1]
        (optimiser,) = stage.optimisers().values()
        batches = Loader(Library(annotated), stage.clips).batches(0)
        with torch.no_grad():  # codes that tell frames apart, as those of a trained autoencoder do
            vectors = made.autoencoder.encode(next(iter(batches.values()))["frames"][:, :, 0])[0]
            flat = vectors.movedim(1, -1).flatten(0, 2)
            chosen = flat[torch.randperm(len(flat))[:24]]
            made.autoencoder.codebook.embeddings.copy_(chosen)  # type: ignore[operator, union-attr]
        losses = []
        for _ in range(60):
            found = stage._loss(next(iter(batches.values())))  # type: ignore[attr-defined]
            found["loss"].backward()
            optimiser.step()
            optimiser.zero_grad()
            losses.append(float(found["state_error" if kind == "states" else "sound_error"].detach()))
        assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("kind", ["states", "audio"])
def test_tokens_that_annotate_are_made_once_and_in_full_precision(kind, annotated, tmp_path):
    """They come with the codes, whether kept or made anew, so the loss under autocast has none to make."""
    library = Library(shutil.copytree(annotated, tmp_path / "own", ignore=shutil.ignore_patterns("cache")))
    torch.manual_seed(0)
    made = CCVS(tiny(kind), ModelInfo.of(library, (16, 16))).eval()
    stage = made.stages()[-1]
    assert stage.derive is not None
    loader = Loader(library, stage.clips, derive=(torch.no_grad()(stage.derive), {"weights": "w"}))
    for _ in range(2):
        for batches in loader.stream(0, 5):
            batch = batches["clips"]
            with torch.no_grad():
                if kind == "audio":  # heard with the neighbours, as in a rollout
                    expected = made.sound.tokens(batch["audio"])[:, 1:-1]
                    assert batch["codes"].shape[1] == expected.shape[1] == made.config.frames
                else:
                    expected = made.states.tokens(made.chosen_states(batch["states"]))
            assert torch.equal(batch["annotation"].long(), expected)
    for network in (made.networks["sound" if kind == "audio" else "states"], made.autoencoder):
        network.forward = network.tokens = None  # type: ignore[assignment, method-assign]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.isfinite(stage._losses(batch, None)["loss"])  # type: ignore[attr-defined]


def test_a_converted_autoencoder_can_be_fine_tuned(tmp_path):
    from conftest import write_library

    golden = Golden("ccvs_autoencoder_k4")
    networks = {f"qvid_{x}_ema_latest_net_1": part(golden, f"qvid_{x}") for x in "egq"}
    critics = Golden("ccvs_discriminators")
    networks |= {f"qvid_{x}_latest_net_1": part(critics, f"qvid_{x}") for x in ("di", "dv")}
    source = folder.save(convert([release(tmp_path / "coder", networks, max_dim=32)], FPS), tmp_path / "model")
    converted = folder.load(source).config
    assert converted.discriminator == DiscriminatorConfig(6, (1, 1, 2, 2))
    config = replace(
        tiny("none"), size=(32, 32), autoencoder=converted.autoencoder, discriminator=converted.discriminator
    )
    config = replace(
        config,
        autoencoder_stage=replace(config.autoencoder_stage, lr=1e-6, steps=1, ema=None),
        prior=replace(config.prior, layers=0),
    )
    library = write_library(tmp_path / "library", size=32)
    names = ["autoencoder", "image_discriminator", "video_discriminator"]
    init = dict.fromkeys(names, str(source))
    begun = build(Recipe("ccvs", "tiny", config, str(library), "", init=init), Library(library))
    for name, official in (
        ("image_discriminator", image_discriminator_state(part(critics, "qvid_di"))),
        ("video_discriminator", video_discriminator_state(part(critics, "qvid_dv"))),
    ):
        own = begun.networks[name].state_dict()
        assert all(torch.equal(own[key], value) for key, value in official.items())
    made = train(config, library, tmp_path / "run", init=init)
    before, after = folder.read_state(source), made.autoencoder.state_dict()
    own = {k.removeprefix("autoencoder."): v for k, v in before.items() if k.startswith("autoencoder.")}
    change = max(float((after[k] - v).abs().max()) for k, v in own.items())
    assert 0 < change < 1e-4
