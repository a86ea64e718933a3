"""The models of `ccvs_ablation.py` and `ccvs_pictures.py`, the clips they go on from, and what they are told."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import torch

from longtake.data import video
from longtake.data.batch import to_uint8
from longtake.data.clips import ClipPicker, ClipSpec
from longtake.data.library import Library
from longtake.story import Entry, Story
from longtake.systems.ccvs.config import SIZES, CCVSConfig
from longtake.systems.ccvs.system import CCVS
from longtake.systems.folder import load
from longtake.train.loop import Trainer
from longtake.train.recipe import LoopSettings, Recipe

SIZE = (32, 32)


def options(text: str) -> argparse.ArgumentParser:
    """What models are trained with, and on which clips they are looked at."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="an Atari library of 32 pixels")
    parser.add_argument("--held-out", help="a library whose test videos are measured on (default: --data)")
    parser.add_argument("--output", required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--clips", type=int, default=64, help="held-out clips of a measure")
    parser.add_argument("--autoencoder-steps", type=int, default=4000)
    parser.add_argument("--autoencoder-batch", type=int, nargs=2, default=[4, 2], help="pictures and clips")
    parser.add_argument("--prior-steps", type=int, default=3000)
    parser.add_argument("--prior-batch", type=int, default=4)
    parser.add_argument("--annotation-weight", type=float, default=1 / 32, help="of states or sound beside codes")
    parser.add_argument("--top-k", type=int, default=10, help="codes to choose from, but for the rows of top-k")
    parser.add_argument("--precision", default="bf16")
    return parser


def base_config(args: argparse.Namespace) -> CCVSConfig:
    """Three levels: 8x8 codes a frame, as in the paper."""
    small = SIZES["small"]
    coder = replace(small.autoencoder, multipliers=(1, 1, 2), codes=1024)
    images, clips = args.autoencoder_batch
    stage = replace(small.autoencoder_stage, image_batch=images, video_batch=clips)
    steps = args.autoencoder_steps
    stage = replace(
        stage, steps=steps, quantise_start=steps // 4, context_start=7 * steps // 10, gan_start=9 * steps // 10
    )
    games = bool(Library(args.data).classes)  # the pusher has none, and r3d-atari has not seen it
    return replace(
        small,
        size=SIZE,
        autoencoder=coder,
        autoencoder_stage=replace(stage, perceptual="r3d-atari" if games else None),
        discriminator=replace(small.discriminator, multipliers=(1, 1, 2)),
        states=replace(small.states, names=("x", "y")),
        prior=replace(small.prior, layers=3, width=128, label=games, start=not games),
        prior_stage=replace(small.prior_stage, steps=args.prior_steps, batch=args.prior_batch),
    )


def arms(args: argparse.Namespace) -> dict[str, CCVSConfig]:
    """Every arm's configuration."""
    base = base_config(args)
    reused = replace(base, autoencoder_stage=replace(base.autoencoder_stage, steps=0))

    def coder(**fields: Any) -> CCVSConfig:
        return replace(base, autoencoder=replace(base.autoencoder, **fields))

    def prior(**fields: Any) -> CCVSConfig:
        return replace(reused, prior=replace(reused.prior, **fields))

    def annotated(kind: Literal["states", "audio"]) -> CCVSConfig:
        stage = replace(base.prior_stage, annotation_weight=args.annotation_weight)
        return replace(prior(annotation=kind), prior_stage=stage)

    estimator = prior(layers=0, annotation="states")
    return {
        # Without context every decoding is "unconditional": it would only be trained twice.
        "plain": replace(
            coder(context=0),
            autoencoder_stage=replace(base.autoencoder_stage, unconditional=False),
            prior=replace(base.prior, layers=0),
        ),
        "base": base,
        "end": prior(end_share=0.5),
        "states": annotated("states"),
        "sound": replace(annotated("audio"), sound=replace(base.sound, steps=args.prior_steps)),
        "estimator": replace(estimator, states=replace(base.states, estimated=True)),
        "codes-64": coder(codes=64),
        "codes-256": coder(codes=256),
        "no codebook": coder(quantiser="none"),
        "16 codes a frame": coder(multipliers=(1, 1, 2, 2)),
        "256 codes a frame": coder(multipliers=(1, 1)),
        "1 layer, 2 heads": prior(layers=1, heads=2),
        "6 layers, 8 heads": prior(layers=6, heads=8),
        "longer prior": replace(reused, prior_stage=replace(base.prior_stage, steps=3 * args.prior_steps)),
    }


def train(arm: str, args: argparse.Namespace) -> CCVS:
    """The arm's model, trained if it is not yet; what it takes from base is trained first."""
    config, folder = arms(args)[arm], Path(args.output) / f"{arm.replace(' ', '-')}-seed{args.seed}"
    init: dict[str, str] = {}
    if not config.autoencoder_stage.steps:
        train("base", args)
        init = {"autoencoder": str(Path(args.output) / f"base-seed{args.seed}")}
    settings = LoopSettings(precision=args.precision, log_every=100, validate_every=500, preview_every=1000)
    recipe = Recipe("ccvs", "small", config, args.data, str(folder), args.seed, init, settings)
    system = cast(CCVS, load(Trainer(recipe).run()))
    if system.layout.codes:
        system.settings = replace(system.settings, top_k=args.top_k)
    return system


class Clip(NamedTuple):
    """A held-out clip and what annotates it."""

    frames: np.ndarray
    """uint8 (T, H, W, 3)"""
    label: str | None
    states: np.ndarray
    """(T, 2)"""
    sound: np.ndarray
    """(T, samples), without samples where there is none"""


def held_out(args: argparse.Namespace, frames: int, stream: int, count: int | None = None) -> list[Clip]:
    """The same clips for every arm: --clips of them, or `count`."""
    library, clips = Library(args.held_out or args.data), []
    picker = ClipPicker(library, ClipSpec(frames, SIZE), "test", stream, "experiment")
    for clip in (picker.pick(i) for i in range(count or args.clips)):
        shown = video.resize(library.frames(clip.row, clip.indices), SIZE, "crop")
        row, states = library.rows[clip.row], library.states(clip.row)[clip.indices, :2]
        sound = np.zeros((frames, 0)) if row.audio is None else library.audio(clip.row)[clip.indices]
        clips.append(Clip(shown, row.label, states, sound))
    return clips


def predict(
    system: CCVS, clips: list[Clip], given: int, frames: int, scratch: Path, seed: int = 0, **told: bool
) -> np.ndarray:
    """Videos (N, frames, H, W, 3) that go on from the clips' first frames, told their end, states or sound."""
    stories = []
    for i, clip in enumerate(clips):
        first, last = scratch / f"first{i}.mp4", scratch / f"last{i}.png"
        entry, rate = Entry(label=clip.label), system.info.fps
        hertz = round(clip.sound.shape[1] * rate)
        heard = {"audio": clip.sound[:given].reshape(-1), "audio_rate": hertz} if hertz else {}
        video.write_video(first, [clip.frames[:given]], rate, crf=0, pixel_format="yuv444p", **heard)
        if told.get("states"):
            np.save(scratch / f"{i}.npy", clip.states[:frames])
            entry = replace(entry, states=str(scratch / f"{i}.npy"))
        if told.get("sound"):
            wave = clip.sound[:frames].reshape(-1)
            video.write_audio(scratch / f"{i}.wav", wave, hertz)
            entry = replace(entry, audio=str(scratch / f"{i}.wav"))
        if told.get("end"):
            video.write_png(last, clip.frames[frames - 1])
        end = str(last) if told.get("end") else None
        stories.append(
            Story(frames=frames, seed=seed + i, first_frames=str(first), last_frame=end, timeline=(entry,))
        )
    batches = [torch.cat(list(system.generate(stories[i : i + 8])), 2) for i in range(0, len(stories), 8)]
    return np.stack([to_uint8(one) for one in torch.cat(batches)])


def another(clips: list[Clip], i: int) -> int:
    """The next clip of the same class; itself if there is none."""
    order = [*range(i + 1, len(clips)), *range(i)]
    return next((j for j in order if clips[j].label == clips[i].label), i)


def towards(own: np.ndarray, other: np.ndarray) -> np.ndarray:
    """A trajectory (T, 2) that leaves the first place of `own` and follows `other` from the eighth frame on."""
    share = np.minimum(np.arange(len(own)) / 8, 1)[:, None]
    return own[:1] + (other - own[:1]) * share
