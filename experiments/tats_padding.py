"""The central claim of TATS (section 2.2, Fig. 2 and 4) at small scale: padding and long rollouts.

VQGANs at 32 pixels that differ in nothing but padding, each with a prior of its own. For every arm:

1. tokens: how many tokens of the same real frames change when the frames move to another place in the window
   (0 for a time-agnostic tokenizer);
2. reconstruction: PSNR on the test split;
3. rollout: 16-frame windows of 320-frame videos against real ones, by a Frechet distance on plain pixel
   statistics (FD[pixels], named so because it is no FVD), and motion, over time.

    longtake data sample atari -o data/two-games --minutes 30 --size 32 --games freeway riverraid
    python experiments/tats_padding.py --data data/two-games --output runs/padding
    python experiments/tats_padding.py --output runs/padding --table     # only rewrite docs/results

Runs resume; an arm that is done is not run again.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import numpy as np
import torch
from records import once, publish, read

from longtake.data.batch import to_float
from longtake.data.cache import FrameCache
from longtake.data.clips import ClipPicker, ClipSpec
from longtake.data.library import Library
from longtake.metrics.frechet import frechet_distance
from longtake.metrics.motion import frame_differences
from longtake.nn.conv import Padding
from longtake.story import Entry, Story
from longtake.systems.folder import load
from longtake.systems.tats.config import (
    DiscriminatorConfig,
    PriorConfig,
    PriorStageConfig,
    TATSConfig,
    VQGANStageConfig,
)
from longtake.systems.tats.system import TATS
from longtake.systems.tats.vqgan import VQGANConfig
from longtake.train.loop import Trainer
from longtake.train.recipe import LoopSettings, Recipe

ARMS = {
    "zeros everywhere (vanilla)": Padding("zeros", "zeros"),
    "replicate on time only": Padding("replicate", "zeros"),
    "real frames": Padding("none", "zeros"),
    "replicate everywhere (TATS)": Padding("replicate", "replicate"),
    "reflect on time only": Padding("reflect", "zeros"),
}
SIZE = (32, 32)
FRAMES, VIDEOS = 320, 32
MARGIN = 32
"""Frames of context that every arm's held-out windows have on both sides."""
RESULTS = Path(__file__).parents[1] / "docs" / "results"


def config(padding: Padding, vqgan_steps: int, prior_steps: int) -> TATSConfig:
    """The same small model for every arm."""
    return TATSConfig(
        size=SIZE,
        vqgan=VQGANConfig(
            hidden=8,
            embedding=32,
            codes=256,
            compression=(4, 4, 4),
            norm="frame",
            groups=4,
            padding=padding,
            restart=0.5,
        ),
        discriminator=DiscriminatorConfig(width=8, layers=2),
        prior=PriorConfig(layers=3, heads=4, width=128, condition="label"),
        vqgan_stage=VQGANStageConfig(
            steps=vqgan_steps,
            batch=4,
            lr=1e-3,
            betas=(0.9, 0.99),
            warmup=50,
            decay=True,
            quantise_start=200,
            discriminator_start=10**9,
            ema=0.99,
        ),
        prior_stage=PriorStageConfig(
            steps=prior_steps, batch=8, lr=1e-3, warmup=100, decay=True, clip=1.0, ema=0.99
        ),
    )


def train(arm: str, args: argparse.Namespace) -> Path:
    """Train one arm; the same clips in the same order for all."""
    name = f"{arm.split(' (')[0].replace(' ', '-')}-seed{args.seed}"
    settings = LoopSettings(
        precision=args.precision, log_every=100, validate_every=500, preview_every=10**9, checkpoint_every=500
    )
    made = config(ARMS[arm], args.vqgan_steps, args.prior_steps)
    recipe = Recipe("tats", "small", made, args.data, str(Path(args.output) / name), args.seed, loop=settings)
    return Trainer(recipe).run()


def held_out_windows(library: Library, count: int, seed: int, before: int = 0, after: int = 0) -> torch.Tensor:
    """Real test windows (count, 3, before + 16 + after, 32, 32): the same 16 frames in the middle for every arm."""
    picker = ClipPicker(library, ClipSpec(MARGIN + 16 + MARGIN, SIZE), "test", seed, "experiment")
    cache = FrameCache(library, SIZE, 1 << 31)
    part = slice(MARGIN - before, MARGIN + 16 + after)
    clips = [picker.pick(i) for i in range(count)]
    return torch.stack([to_float(cache.frames(c.row, c.indices[part])) for c in clips])


@torch.no_grad()
def token_change(system: TATS, library: Library, count: int = 64) -> list[list[float]]:
    """Share of tokens of the same four frames that differ between places i and j of the window: (t, t)."""
    before, after = system.vqgan.extra_frames()
    t, factor = system.config.grid[0], system.config.vqgan.compression[0]
    reach = (t - 1) * factor
    video = held_out_windows(library, count, 0, before + reach, after)
    placed = []
    for place in range(t):  # the middle window's first slice can stand at every place
        start = reach - place * factor
        clip = video[:, :, start : start + before + after + system.config.frames]
        placed.append(torch.cat([system.vqgan.tokenize(part) for part in clip.split(8)])[:, place])
    return [[float((a != b).float().mean()) for b in placed] for a in placed]


@torch.no_grad()
def reconstruction(system: TATS, library: Library, count: int = 128) -> tuple[float, float]:
    """Mean and standard error of the PSNR over held-out clips."""
    before, after = system.vqgan.extra_frames()
    clips = held_out_windows(library, count, 1, before, after)
    values = []
    for part in clips.split(8):
        error = (system.vqgan(part).video.clamp(-1, 1) - system.vqgan.core(part)).pow(2).flatten(1).mean(1)
        values += (10 * torch.log10(4 / error)).tolist()
    return float(np.mean(values)), float(np.std(values) / len(values) ** 0.5)


def features(clips: torch.Tensor) -> np.ndarray:
    """Plain statistics of clips (N, 3, 16, 32, 32): mean colour and temporal spread on a 2x2 grid, (N, 16)."""
    colour = torch.nn.functional.adaptive_avg_pool2d(clips.mean(2), 2).flatten(1)
    spread = torch.nn.functional.adaptive_avg_pool2d(clips.mean(1).std(1)[:, None], 2).flatten(1)
    return torch.cat([colour, spread], 1).double().numpy()


def rollout(system: TATS, library: Library, videos: int) -> dict:
    """FD[pixels] to real windows and motion, a value for each 16-frame window of the rollouts."""
    rows = library.split("test")
    labels = [library.rows[rows[i % len(rows)]].label for i in range(videos)]
    stories = [Story(frames=FRAMES, seed=i, timeline=(Entry(label=label),)) for i, label in enumerate(labels)]
    parts = [torch.cat(list(system.generate(stories[i : i + 16])), 2).clamp(-1, 1) for i in range(0, videos, 16)]
    made = torch.cat(parts)
    real = held_out_windows(library, 512, 2)
    still = real[:256, :, :1].expand(-1, -1, 16, -1, -1)
    mean = real[:256].mean(0, keepdim=True) + 0 * real[:256]
    motion_real = float(frame_differences(real).mean())
    windows = made.split(16, 2)
    # Two neighbouring windows are pooled, so that 16 features have 64 samples.
    pooled = [torch.cat([windows[i], windows[i + 1]]) for i in range(0, len(windows) - 1, 2)]
    return {
        "fd": [frechet_distance(features(w), features(real)) for w in pooled],
        "fd_real_halves": frechet_distance(features(real[:256]), features(real[256:])),
        "fd_frozen_first_frame": frechet_distance(features(still), features(real[256:])),
        "fd_mean_video": frechet_distance(features(mean), features(real[256:])),
        "motion_ratio": [float(frame_differences(w).mean()) / motion_real for w in pooled],
    }


def measure(arm: str, run: Path, args: argparse.Namespace) -> dict:
    """All figures of a trained arm."""
    library, system = Library(args.data), load(run)
    assert isinstance(system, TATS)
    change = token_change(system, library)
    off = [change[i][j] for i in range(len(change)) for j in range(len(change)) if i != j]
    psnr, error = reconstruction(system, library)
    return {
        "arm": arm,
        "seed": args.seed,
        "vqgan_steps": args.vqgan_steps,
        "prior_steps": args.prior_steps,
        "token_change": change,
        "token_change_mean": float(np.mean(off)),
        "psnr": psnr,
        "psnr_standard_error": error,
        "videos": VIDEOS,
        "library": library.hash,
        **rollout(system, library, VIDEOS),
    }


def table(records: list[dict]) -> str:
    """Markdown table, a row an arm, mean over seeds with the range."""
    lines = [
        "| padding | seeds | tokens that change with their place | PSNR (dB) | FD[pixels] frames 0-31 "
        "| FD[pixels] last 32 | motion, last 32 (of real) |",
        "|---|---|---|---|---|---|---|",
    ]
    for arm in ARMS:
        own = [r for r in records if r["arm"] == arm]
        if not own:
            lines.append(f"| {arm} | not run | | | | | |")
            continue

        def cell(values, form: str) -> str:
            mean, low, high = np.mean(values), min(values), max(values)
            return form.format(mean) + (f" ({form.format(low)}-{form.format(high)})" if len(values) > 1 else "")

        cells = [
            cell([100 * r["token_change_mean"] for r in own], "{:.1f} %"),
            cell([r["psnr"] for r in own], "{:.2f}"),
            cell([r["fd"][0] for r in own], "{:.3f}"),
            cell([r["fd"][-1] for r in own], "{:.3f}"),
            cell([r["motion_ratio"][-1] for r in own], "{:.2f}"),
        ]
        lines.append(f"| {arm} | {len(own)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def plot(records: list[dict], path: Path) -> None:
    """Token change by distance, and FD[pixels] over the rollout."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4))
    for arm in ARMS:
        own = [r for r in records if r["arm"] == arm]
        if not own:
            continue
        change = np.mean([r["token_change"] for r in own], 0)
        left.plot(range(len(change)), 100 * change[:, len(change) // 2], marker="o", label=arm)
        curve = np.mean([r["fd"] for r in own], 0)
        right.plot(32 * np.arange(len(curve)) + 16, curve, label=arm)
    left.set(xlabel="place in the window (slice)", ylabel="% of tokens unlike those at the middle place")
    right.set(xlabel="frame of the rollout", ylabel="FD[pixels] to real windows", yscale="log")
    left.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="an Atari library")
    parser.add_argument("--output", required=True)
    parser.add_argument("--arms", type=int, nargs="+", default=list(range(len(ARMS))), help="which, in their order")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--vqgan-steps", type=int, default=800)
    parser.add_argument("--prior-steps", type=int, default=700)
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--table", action="store_true", help="only rewrite docs/results")
    args = parser.parse_args()
    folder = Path(args.output)
    for arm in [] if args.table else [list(ARMS)[i] for i in args.arms]:
        options = {name: getattr(args, name) for name in ("vqgan_steps", "prior_steps", "precision")}
        options["library"] = Library(args.data).hash
        made = partial(lambda arm: measure(arm, train(arm, args), args), arm)
        once(folder / f"{list(ARMS).index(arm)}-seed{args.seed}.json", options, made)
    records = read(folder, "*-seed*.json")
    if args.table:
        publish(RESULTS / "tats_padding.json", records)
        plot(records, RESULTS / "tats_padding.png")
    print(table(records))


if __name__ == "__main__":
    main()
