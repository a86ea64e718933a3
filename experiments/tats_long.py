"""TATS-base against TATS-hierarchical and against vanilla padding over 1,024 frames (TATS Fig. 5, section 3.3).

Three arms on one Atari library, all priors of one size and trained for equally many updates:

* base: sliding window over every latent slice;
* hierarchical: sliding window over every 4th, the rest interpolated;
* vanilla: base on a VQGAN that is padded with zeros everywhere.

Base and hierarchical share their VQGAN. For each arm: FVD to real clips and CCS and ICS over the 16-frame windows
of the rollouts (features and classes of r3d-atari). `--cost` then measures the time and the peak memory of one
video of each arm, one after the other.

    python experiments/tats_long.py --data data/atari48 --output runs/tats-long --vqgan runs/mine --vqgan-steps 4000
    python experiments/tats_long.py --output runs/tats-long --cost

Runs resume; an arm that is done is not run again. The vanilla arm trains a VQGAN of its own: give --vqgan-steps as
many updates as that of the other arms had. Two baselines, first frames that stay and the mean video, say whether
the base arm is trained enough for comparisons.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

from baselines import NAMES, baseline
from records import once, publish, read

from longtake.config import from_dict
from longtake.data.library import Library
from longtake.metrics.evaluate import evaluate
from longtake.metrics.extractors.registry import make_extractor
from longtake.metrics.protocol import PROTOCOLS
from longtake.metrics.sources import ModelSource
from longtake.nn.conv import Padding
from longtake.systems.folder import find, load, read_config
from longtake.systems.tats.config import InterpolatorConfig, PriorConfig, PriorStageConfig, TATSConfig
from longtake.train.loop import Trainer
from longtake.train.recipe import LoopSettings, Recipe

ARMS = ("base", "hierarchical", "vanilla")
EVERY, FRAMES = 4, 1024
RESULTS = Path(__file__).parents[1] / "docs" / "results"
CURVES = ("FVD-window[r3d-atari]", "FVD-change[r3d-atari]", "CCS[r3d-atari]", "ICS[r3d-atari]", "motion")


def config(arm: str, args: argparse.Namespace) -> TATSConfig:
    """The given model's VQGAN with a prior, or two, of one size."""
    raw = read_config(find(args.vqgan))
    start = from_dict(TATSConfig, raw["config"], args.vqgan)
    stage = PriorStageConfig(args.prior_steps, batch=8, lr=1e-3, warmup=100, decay=True, clip=1.0, ema=0.998)
    made = replace(
        start,
        prior=PriorConfig(layers=4, heads=4, width=192, condition="label", dropout=0.1),
        prior_stage=stage,
        vqgan_stage=replace(start.vqgan_stage, steps=0),
    )
    if arm == "hierarchical":
        made = replace(made, every=EVERY, interpolator=InterpolatorConfig(4, 4, 192, dropout=0.1, stage=stage))
    if arm == "vanilla":
        vqgan = replace(start.vqgan, padding=Padding("zeros", "zeros"))
        made = replace(made, vqgan=vqgan, vqgan_stage=replace(start.vqgan_stage, steps=args.vqgan_steps))
    return made


def train(arm: str, args: argparse.Namespace) -> Path:
    """Train one arm's networks that are not given."""
    init = {} if arm == "vanilla" else {"vqgan": args.vqgan}
    settings = LoopSettings(precision="bf16", log_every=100, validate_every=500, preview_every=10**9)
    output = Path(args.output) / f"{arm}-seed{args.seed}"
    recipe = Recipe("tats", "small", config(arm, args), args.data, str(output), args.seed, init, settings)
    return Trainer(recipe).run()


def measure(arm: str, run: Path, args: argparse.Namespace) -> dict:
    """Figures and curves of an arm's rollouts."""
    library, system = Library(args.data), load(run)
    protocol, extractor = PROTOCOLS["longtake-1"], make_extractor("r3d-atari")
    source = ModelSource(system, library, args.videos, FRAMES, 0, protocol.to_bytes)
    folder = Path(args.output) / f"evaluation-{arm}-seed{args.seed}"
    result = evaluate(source, library, folder, protocol, [extractor], batch=8)
    assert result is not None
    return {
        "arm": arm,
        "seed": args.seed,
        "videos": args.videos,
        "library": library.hash,
        "prior_steps": args.prior_steps,
        "figures": {name: figure.value for name, figure in result.figures.items()},
        "curves": {name: [result.curves[name].x, result.curves[name].y] for name in CURVES},
    }


def measure_baseline(name: str, args: argparse.Namespace) -> dict:
    """The same figures of a baseline."""
    library, folder = Library(args.data), Path(args.output)
    source = baseline(name, library, folder / f"baseline-{name}", args.videos, FRAMES)
    extractor = make_extractor("r3d-atari")
    result = evaluate(source, library, folder / f"evaluation-{name}", PROTOCOLS["longtake-1"], [extractor])
    assert result is not None
    return {
        "arm": name,
        "seed": args.seed,
        "videos": args.videos,
        "library": library.hash,
        "figures": {key: figure.value for key, figure in result.figures.items()},
        "curves": {key: [result.curves[key].x, result.curves[key].y] for key in CURVES},
    }


def cost(run: Path) -> dict:
    """Seconds and peak memory of `longtake generate` for one video, in a process of its own."""
    script = Path(__file__).parents[1] / "benchmarks" / "memory.py"
    kept = run / "cost.json"
    subprocess.run([sys.executable, script, str(run), "--frames", str(FRAMES), "--output", kept], check=True)
    row = json.loads(kept.read_text())["rows"][0]
    return {"seconds": row["seconds"], "peak_rss_mib": row["peak_rss_mib"]}


def table(records: list[dict]) -> str:
    """Markdown, a row an arm and seed."""
    figures = (
        "FVD16[r3d-atari]",
        "FVD128[r3d-atari]",
        "CCS-area[r3d-atari]",
        "motion_ratio_last_128",
        "longest_repeat",
    )
    lines = [
        "| arm | seed | " + " | ".join(figures) + " | FVD, last window | seconds a video | peak MiB |",
        "|---" * (len(figures) + 5) + "|",
    ]
    for record in records:
        cells = [f"{record['figures'][name]:.3g}" for name in figures]
        last = record["curves"]["FVD-window[r3d-atari]"][1][-1]
        spent = record.get("cost", {"seconds": "not run", "peak_rss_mib": "not run"})
        tail = f"{last:.3g} | {spent['seconds']} | {spent['peak_rss_mib']}"
        lines.append(f"| {record['arm']} | {record['seed']} | " + " | ".join(cells) + f" | {tail} |")
    return "\n".join(lines)


def plot(records: list[dict], path: Path) -> None:
    """The curves over time."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 4, figsize=(16, 3.5))
    for axis, name in zip(
        axes, ("FVD-window[r3d-atari]", "CCS[r3d-atari]", "ICS[r3d-atari]", "motion"), strict=True
    ):
        for record in records:
            axis.plot(*record["curves"][name], label=f"{record['arm']} {record['seed']}")
        axis.set(title=name, xlabel="frame")
    axes[0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="an Atari library of the model's size")
    parser.add_argument("--output", required=True)
    parser.add_argument("--vqgan", default="tats-atari", help="the model whose VQGAN is used")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--vqgan-steps", type=int, default=4000, help="of the vanilla arm")
    parser.add_argument("--prior-steps", type=int, default=3600)
    parser.add_argument("--videos", type=int, default=32)
    parser.add_argument("--cost", action="store_true", help="only measure the trained arms' time and memory")
    parser.add_argument("--table", action="store_true", help="only rewrite docs/results")
    args = parser.parse_args()
    folder = Path(args.output)
    for path in [p for arm in ARMS for p in sorted(folder.glob(f"{arm}-seed*.json"))] if args.cost else []:
        path.write_text(json.dumps(json.loads(path.read_text()) | {"cost": cost(folder / path.stem)}, indent=1))
    if not args.table and not args.cost:
        options = {"videos": args.videos, "library": Library(args.data).hash}
        trained = {name: getattr(args, name) for name in ("vqgan", "vqgan_steps", "prior_steps")}
        for arm in args.arms:
            made = partial(lambda arm: measure(arm, train(arm, args), args), arm)
            once(folder / f"{arm}-seed{args.seed}.json", options | trained, made)
        for name in NAMES:
            once(folder / f"{name}-seed{args.seed}.json", options, partial(measure_baseline, name, args))
    records = read(folder, "*-seed*.json")
    if args.table:
        publish(RESULTS / "tats_long.json", records)
        plot(records, RESULTS / "tats_long.png")
    print(table(records))


if __name__ == "__main__":
    main()
