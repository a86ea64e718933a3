"""Peak memory of training and generating with the recall family (thesis Tab. 3.7, sections 4.1, 4.4.5 and 5.3.2).

* EncGAN3 at its published widths: 64 pixels against 128, batch 1 against 3 and 10
* R2 with the same networks: batch 1; source videos of 100, 400 and 1,000 frames
* the generator and its gradients alone for 16 and for 20 frames; the encoder and the video discriminator take 16
* rollouts of R2, AR2 and R3 (`small`, untrained) of 256 and 1,024 frames

    python benchmarks/recall_memory.py --output docs/results/recall_memory.json

Each row runs in a process of its own; the figure is its peak resident set, less that of a process that has only
imported the package.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from longtake import api
from longtake.data import video
from longtake.data.library import LibraryWriter, Row
from longtake.systems import folder, system_class
from longtake.systems.base import ModelInfo
from longtake.systems.recall.config import ENCGAN3_SIZES, R2_SIZES, EncGAN3Config, R2Config
from longtake.systems.recall.generator import Generator
from longtake.train.loop import Trainer
from longtake.train.recipe import LoopSettings, Recipe

UPDATES = 3
ROWS = {
    "idle": {},
    "EncGAN3, 64 px, batch 1": {"train": "encgan3", "pixels": 64, "batch": 1},
    "EncGAN3, 64 px, batch 3": {"train": "encgan3", "pixels": 64, "batch": 3},
    "EncGAN3, 64 px, batch 10": {"train": "encgan3", "pixels": 64, "batch": 10},
    "EncGAN3, 128 px, batch 1": {"train": "encgan3", "pixels": 128, "batch": 1},
    "R2, 64 px, batch 1, videos of 100 frames": {"train": "r2", "pixels": 64, "batch": 1, "frames": 100},
    "R2, 64 px, batch 1, videos of 400 frames": {"train": "r2", "pixels": 64, "batch": 1, "frames": 400},
    "R2, 64 px, batch 1, videos of 1000 frames": {"train": "r2", "pixels": 64, "batch": 1, "frames": 1000},
    "generator, 64 px, 16 frames": {"generate": 16},
    "generator, 64 px, 20 frames": {"generate": 20},
    "R2 rollout, 256 frames": {"roll": "r2", "frames": 256},
    "R2 rollout, 1024 frames": {"roll": "r2", "frames": 1024},
    "AR2 rollout, 256 frames": {"roll": "ar2", "frames": 256},
    "AR2 rollout, 1024 frames": {"roll": "ar2", "frames": 1024},
    "R3 rollout, 256 frames": {"roll": "r3", "frames": 256},
    "R3 rollout, 1024 frames": {"roll": "r3", "frames": 1024},
}


def noise(frames: int, size: int, seed: int = 0) -> np.ndarray:
    """uint8 (frames, size, size, 3): a coarse pattern that shifts."""
    coarse = np.random.default_rng(seed).integers(0, 255, (size // 8, size // 8, 3), np.uint8)
    still = coarse.repeat(8, 0).repeat(8, 1)
    return np.stack([np.roll(still, t, 1) for t in range(frames)])


def library(path: Path, frames: int, size: int) -> Path:
    with LibraryWriter(path, (size, size), 15.0) as writer:
        for i, split in enumerate(("train", "train", "test")):
            file = writer.media("video", f"v{i}")
            video.write_video(file, [noise(frames, size, i)], 15.0, crf=20, pixel_format="yuv444p")
            writer.add(Row(f"v{i}", writer.relative(file), frames, frames / 15, split))
    return path


def train(work: Path, system: str, pixels: int, batch: int, frames: int = 100) -> None:
    start = ENCGAN3_SIZES["paper"] if pixels == 64 else R2_SIZES["paper"]
    made = {"encgan3": EncGAN3Config, "r2": R2Config}[system]
    encoder = replace(start.encoder, norm="layer")  # batch norm cannot learn from one clip
    config = made(start.size, encoder, start.generator, start.critics, start.stage)
    config = replace(config, stage=replace(config.stage, steps=UPDATES, batch=batch))
    data = library(work / "library", frames, pixels)
    settings = LoopSettings(validate_every=10**9, preview_every=10**9, checkpoint_every=10**9, cache_gb=0.0)
    Trainer(Recipe(system, "paper", config, str(data), str(work / "run"), 0, {}, settings), "cpu").run()


def generate(frames: int) -> None:
    """The generator's forward and backward pass for one clip."""
    config = ENCGAN3_SIZES["paper"]
    made = Generator(config.generator, config.size)
    code = torch.randn(1, config.generator.motion, frames // 4 - 3)
    clips = made(torch.randn(1, config.generator.content), code)
    assert clips.shape[2] == frames
    clips.square().mean().backward()


def roll(work: Path, system: str, frames: int) -> None:
    cls = system_class(system)
    model = folder.save(cls(cls.sizes["small"], ModelInfo(15.0, (48, 48))), work / "model")
    source = work / "source.mp4"
    video.write_video(source, [noise(frames if system == "r2" else 16, 48)], 15.0)
    given = {"r2": {"source_video": source}, "ar2": {}, "r3": {"first_frames": source}}[system]
    api.generate(api.configure(api.load(model), {"candidates": 1}), frames, **given).save(work / "out.mp4")


def child(name: str) -> None:
    row = dict(ROWS[name])
    with tempfile.TemporaryDirectory() as work:
        if "train" in row:
            train(Path(work), row.pop("train"), **row)
        elif "generate" in row:
            generate(row["generate"])
        elif "roll" in row:
            roll(Path(work), row["roll"], row["frames"])
    unit = 1024 if sys.platform != "darwin" else 1024**2
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--output")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        return child(args.child)
    figures, idle = {}, 0.0
    for name in dict.fromkeys(["idle", *args.rows]):
        command = [sys.executable, __file__, "--child", name]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        peak = float(done.stdout.split()[-1])
        idle = peak if name == "idle" else idle
        figures[name] = round(peak - (0 if name == "idle" else idle), 1)
        print(f"{name:45s} {figures[name]:8.1f} MiB", flush=True)
        if args.output:
            Path(args.output).write_text(json.dumps({"mib_above_idle": figures}, indent=1) + "\n")


if __name__ == "__main__":
    main()
