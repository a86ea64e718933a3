"""The ablations of StyleGAN-V (Tab. 2 and 3) at small scale.

Arms that differ from the reference in one thing, equally many updates of equally many frames each:

* Tab. 2: default, lstm-1 and lstm-16 (codes of an LSTM, tokens so many frames apart), no-time (no time conditioning
  of the discriminator); by name also ours-without-G, ours-without-D and mocogan (both replaced).
* Tab. 3: k2, default (k = 3), k8; by name also k1 (an image StyleGAN2), k4, k16.

For every arm and seed: FVD16 and FVD128 (features of r3d-atari) and motion against real clips; for arms of our
generator also how smooth frames at four times the rate are, as second differences at motion tokens over those
elsewhere. Two baselines, first frames that stay and the mean video, say whether the reference arm is trained enough
to compare anything.

    longtake data sample atari -o data/atari32 --minutes 60 --size 32
    python experiments/stylegan_v_ablation.py --data data/atari32 --output runs/stylegan-v
    python experiments/stylegan_v_ablation.py --output runs/stylegan-v --table

Runs resume; an arm that is done is not run again. The published rows are those of `--released --steps 3600
--seeds 0`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from baselines import NAMES, baseline
from records import alike, once, publish, read

from longtake.config import to_dict
from longtake.data.library import Library
from longtake.metrics.evaluate import evaluate
from longtake.metrics.extractors.registry import make_extractor
from longtake.metrics.protocol import PROTOCOLS
from longtake.metrics.sources import ModelSource
from longtake.systems.folder import load
from longtake.systems.stylegan_v.config import SIZES, StyleGANVConfig, as_mocogan
from longtake.systems.stylegan_v.rollout import Film
from longtake.systems.stylegan_v.system import StyleGANV
from longtake.train.loop import Trainer
from longtake.train.recipe import LoopSettings, Recipe

RESULTS = Path(__file__).parents[1] / "docs" / "results"
FRAMES, RATE = 128, 4
PAPER = {
    "default": (47.41, 89.34),
    "ours-without-G": (65.88, 41.77),
    "ours-without-D": (154.0, 139.1),
    "no-time": (95.4, 236.0),
    "lstm-1": (131.9, 159.1),
    "lstm-16": (180.3, 94.55),
    "k2": (60.41, 93.5),
    "k4": (51.84, 114.9),
    "k8": (101.9, 211.4),
    "k16": (92.52, 192.8),
    "mocogan": (55.62, 309.3),
}
"""FVD16 and FVD128 on FaceForensics at 256 pixels (Tab. 1, 2 and 3)."""
CORE = ("default", "lstm-1", "lstm-16", "no-time", "k2", "k8")


def reference(size: tuple[int, int], steps: int, released: bool = False) -> StyleGANVConfig:
    """The arm from which all others differ in one thing: told the class, augmented at a fixed probability; or, as
    `released`, with the published weight of R1, the class among the gaps, and no augmentation."""
    small = SIZES["small"]
    critic, stage = replace(small.discriminator, base=32 * size[0], most=96), replace(small.stage, batch=16)
    if released:
        critic = replace(critic, labels="joined")
        stage = replace(stage, gamma=None, augment=replace(stage.augment, start=0.0))
    return replace(
        small,
        size=size,
        horizon=256,
        synthesis=replace(small.synthesis, base=32 * size[0], most=96),
        discriminator=critic,
        stage=replace(stage, steps=steps),
    )


def with_frames(config: StyleGANVConfig, frames: int) -> StyleGANVConfig:
    """k frames a clip, so that an update sees as many frames as with 3 of them."""
    batch = max(1, round(config.stage.batch * config.frames / frames))
    return replace(config, frames=frames, stage=replace(config.stage, batch=batch))


def with_lstm(config: StyleGANVConfig, spacing: float) -> StyleGANVConfig:
    return replace(config, motion=replace(config.motion, codes="lstm", spacing=spacing))


def without_discriminator(config: StyleGANVConfig) -> StyleGANVConfig:
    critic = replace(config.discriminator, kind="image+video", video_width=32)
    return replace(with_frames(config, 16), sampling="consecutive", discriminator=critic)


def mocogan(config: StyleGANVConfig) -> StyleGANVConfig:
    made = as_mocogan(without_discriminator(config))
    return replace(made, stage=without_discriminator(config).stage, horizon=64)


ARMS: dict[str, Callable[[StyleGANVConfig], StyleGANVConfig]] = {
    "default": lambda c: c,
    "lstm-1": lambda c: with_lstm(c, 1.0),
    "lstm-16": lambda c: with_lstm(c, 16.0),
    "no-time": lambda c: replace(c, discriminator=replace(c.discriminator, time=False)),
    "ours-without-G": lambda c: replace(c, motion=replace(c.motion, codes="lstm", into="styles", spacing=1.0)),
    "ours-without-D": without_discriminator,
    "mocogan": mocogan,
    **{f"k{k}": (lambda c, k=k: with_frames(c, k)) for k in (1, 2, 4, 8, 16)},
}


def config_of(arm: str, args: argparse.Namespace) -> StyleGANVConfig:
    """An arm at the size of the library and the length that the options say."""
    return ARMS[arm](reference(Library(args.data).header.size, args.steps, args.released))


def train(arm: str, seed: int, args: argparse.Namespace) -> Path:
    """Train one arm, or take it up where it was stopped."""
    config = config_of(arm, args)
    loop = LoopSettings(precision="bf16", log_every=100, validate_every=1000, preview_every=1000, threads=1)
    name = "mocogan_sg2" if arm == "mocogan" else "stylegan_v"
    output = Path(args.output) / f"{arm}-seed{seed}"
    return Trainer(Recipe(name, "small", config, args.data, str(output), seed, {}, loop)).run()


def figures(source, library: Library, folder: Path) -> dict[str, float]:
    extractor = make_extractor("r3d-atari")
    result = evaluate(source, library, folder, PROTOCOLS["longtake-1"], [extractor], batch=4)
    assert result is not None
    return {name: figure.value for name, figure in result.figures.items()}


@torch.inference_mode()
def roughness(system: StyleGANV, videos: int = 8, tokens: int = 6) -> float:
    """Mean second difference of frames at `RATE` times the rate, at motion tokens over elsewhere; 1: no seams."""
    spacing = system.config.motion.spacing
    times = torch.arange(0, tokens * spacing + 1, 1 / RATE, dtype=torch.float64)
    on_token = (times[1:-1] % spacing == 0).numpy()
    at, elsewhere = [], []
    for seed in range(videos):
        frames = Film(system, seed).frames(times, [seed % max(1, system.classes)] * len(times))
        second = (frames[:, 2:] - 2 * frames[:, 1:-1] + frames[:, :-2]).abs().mean((0, 2, 3)).numpy()
        at.append(second[on_token].mean())
        elsewhere.append(second[~on_token].mean())
    return float(np.mean(at) / np.mean(elsewhere))


def measure(arm: str, seed: int, run: Path, args: argparse.Namespace) -> dict:
    """The figures of a trained arm."""
    library, system = Library(args.data), load(run)
    assert isinstance(system, StyleGANV)
    source = ModelSource(system, library, args.videos, FRAMES, 0, PROTOCOLS["longtake-1"].to_bytes)
    folder = Path(args.output) / f"evaluation-{arm}-seed{seed}"
    record: dict = {"arm": arm, "seed": seed, "figures": figures(source, library, folder)}
    if system.config.motion.spacing > 1:
        record["roughness_at_tokens"] = roughness(system)
    return record


def baselines(args: argparse.Namespace) -> dict:
    """Figures of test videos whose first frame stays, and of the mean of training videos."""
    library, output = Library(args.data), Path(args.output)
    made = {}
    for name in NAMES:
        source = baseline(name, library, output / f"baseline-{name}", args.videos, FRAMES)
        made[name] = figures(source, library, output / f"evaluation-{name}")
    return {"arm": "baselines", "seed": 0, "figures": made}


def table(records: list[dict]) -> str:
    """Markdown: a row an arm, means and spreads over seeds, the paper's figures beside them."""
    keys = ("FVD16[r3d-atari]", "FVD128[r3d-atari]")
    done = {arm: alike([r for r in records if r["arm"] == arm]) for arm in ARMS}
    ground = next((r["figures"] for r in records if r["arm"] == "baselines"), {})
    lines = [
        "| arm | seeds | FVD16 | FVD128 | at tokens / elsewhere | paper (FFS 256): FVD16, FVD128 |",
        "|---" * 6 + "|",
    ]

    def cell(values: list[float]) -> str:
        spread = f" ± {np.std(values, ddof=1):.0f}" if len(values) > 1 else ""
        return f"{np.mean(values):.0f}{spread}" if values else "-"

    for arm, runs in done.items():
        cells = [cell([r["figures"][key] for r in runs if key in r["figures"]]) for key in keys]
        rough = [r["roughness_at_tokens"] for r in runs if "roughness_at_tokens" in r]
        cells.append(f"{np.mean(rough):.2f}" if rough else "-")
        paper = ", ".join(f"{v:g}" for v in PAPER[arm]) if arm in PAPER else "-"
        shown = " | ".join(cells) if runs else "not run | |"
        lines.append(f"| {arm} | {len(runs)} | {shown} | {paper} |")
    for name, own in ground.items():
        lines.append(
            f"| baseline: {name} | | " + " | ".join(cell([own[k]] if k in own else []) for k in keys) + " | | |"
        )
    if done["default"] and ground:
        mine = np.mean([r["figures"].get(keys[0], np.inf) for r in done["default"]])
        beaten = all(mine < own.get(keys[0], np.inf) for own in ground.values())
        lines += ["", "The reference arm beats both baselines." if beaten else "Not trained enough to tell."]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="an Atari library")
    parser.add_argument("--output", required=True)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(CORE))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--videos", type=int, default=64)
    parser.add_argument("--released", action="store_true", help="with R1's published weight, without augmentation")
    parser.add_argument("--table", action="store_true", help="only print the table and write docs/results")
    args = parser.parse_args()
    folder = Path(args.output)
    folder.mkdir(parents=True, exist_ok=True)
    if not args.table:
        library = Library(args.data)
        options = {"videos": args.videos, "library": library.hash}
        once(folder / "baselines-seed0.json", options, lambda: baselines(args))
        for seed in args.seeds:
            for arm in args.arms:
                own = options | {"config": to_dict(config_of(arm, args))}
                made = partial(lambda arm, seed: measure(arm, seed, train(arm, seed, args), args), arm, seed)
                once(folder / f"{arm}-seed{seed}.json", own, made)
    records = read(folder, "*-seed*.json")
    print(table(records))
    if args.table:
        publish(RESULTS / "stylegan_v_ablation.json", records)


if __name__ == "__main__":
    main()
