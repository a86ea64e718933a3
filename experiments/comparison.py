"""Every system on the same footage, under the same compute, by one protocol.

For each recipe in `recipes/compare`: all its numbers of updates are scaled until the FLOPs of its stages together
meet `--pflop`, counted as `longtake train --dry-run` does (the stages of one system share it as its recipe
says). It is trained, measured under longtake-1 over `--frames` frames, and the time and the memory of a rollout are
taken. Training memory is the largest anonymous memory of the training process, which leaves out files that the
kernel keeps. Two baselines stand beside them.

    longtake data sample atari -o data/atari32 --minutes 100 --size 32 --games enduro freeway riverraid seaquest
    python experiments/comparison.py --data data/atari32 --output runs/compare --pflop 0.02
    python experiments/comparison.py --output runs/compare --table --results docs/results

The queue resumes: what is trained, measured or timed is not done again, and several processes may each take some
of the systems (`--systems`); times count only from a process that runs alone. Figures go to comparison.json, curves
to comparison.png, the page of `longtake compare` to comparison.html.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml
from baselines import NAMES, baseline
from records import publish

from longtake.config import read_yaml
from longtake.data.library import Library
from longtake.metrics.evaluate import evaluate
from longtake.metrics.extractors.registry import make_extractor
from longtake.metrics.protocol import PROTOCOLS
from longtake.metrics.sources import write_first
from longtake.systems.folder import load
from longtake.train.dryrun import count_flops
from longtake.train.recipe import read_recipe

ROOT = Path(__file__).parents[1]
RECIPES = ROOT / "recipes" / "compare"
EXTRACTOR, PROTOCOL = "r3d-atari", "longtake-1"
SHORT = 16


@dataclass(frozen=True)
class Entry:
    """One system of the comparison."""

    title: str
    told: str
    """What its videos are given: they are comparable only with others that are given as much."""
    settings: tuple[str, ...] = ()
    """Settings that differ from the system's own."""
    given: int = 0
    """First frames of a test video that it is given."""
    most: int = 10**9
    """Frames of its longest video."""
    period: int = 4
    """Updates whose FLOPs are averaged: what is not in every update returns within so many (CCVS's penalty, a small
    thing every 16th, is left out)."""


SYSTEMS = {
    "tats": Entry("TATS-base", "game"),
    "tats-hierarchical": Entry("TATS-hierarchical", "game"),
    "tats-zeros": Entry("vanilla VQGAN", "game"),
    "stylegan_v": Entry("StyleGAN-V", "game", period=16),
    "mocogan_sg2": Entry("MoCoGAN-SG2", "game", period=16),
    "ccvs": Entry("CCVS", "game, first frame", ("new=8",), given=1),
    "loong": Entry("Loong", "game", ("guidance_scale=2",)),
    "ar2": Entry("AR2", "nothing", ("candidates=1",)),
    "r3": Entry("R3", "16 frames", ("rollout=faster", "candidates=1"), given=16),
    "encgan3": Entry("EncGAN3", "nothing", most=SHORT),
    "lencgan": Entry("LEncGAN", "source video"),
    "r2": Entry("R2", "source video"),
    "r2-improved": Entry("improved R2", "source video", ("candidates=1",)),
}
COUNTED_IN_UPDATES = {
    "steps",
    "warmup",
    "kl_warmup",
    "quantise_start",
    "discriminator_start",
    "gan_start",
    "context_start",
}
"""Fields of the recipes that are scaled."""


def scaled(config: dict, factor: float) -> dict:
    """A recipe's configuration with all numbers of updates times a factor; what was not 0 stays at least 1, and
    what starts in a stage starts before its end."""

    def change(name: str, value):
        if isinstance(value, dict):
            return scaled(value, factor)
        if name not in COUNTED_IN_UPDATES:
            return value
        if isinstance(value, list):
            return [change(name, v) for v in value]
        return max(1, round(value * factor)) if value else 0

    made = {name: change(name, value) for name, value in config.items()}
    if isinstance(made.get("steps"), int):
        made |= {k: min(v, max(0, made["steps"] - 1)) for k, v in made.items() if k.endswith("_start")}
    return made


def plan(name: str, args: argparse.Namespace) -> dict[str, float]:
    """Write the recipe that meets the budget beside the runs, unless it is there; PFLOP by stage."""
    path = Path(args.output) / f"{name}.yaml"
    kept = path.with_suffix(".pflop.json")
    if not kept.exists():
        raw = read_yaml((RECIPES / f"{name}.yaml").read_text(), name)
        raw["seed"] = args.seed
        cost = count_flops(read_recipe(RECIPES / f"{name}.yaml", data=args.data), SYSTEMS[name].period)
        factor = args.pflop * 1e15 / sum(steps * flops for steps, flops in cost.values())
        raw["config"] = scaled(raw["config"], factor)
        path.write_text(yaml.safe_dump(raw, sort_keys=False))
        kept.write_text(json.dumps({s: max(1, round(n * factor)) * f / 1e15 for s, (n, f) in cost.items()}))
    return json.loads(kept.read_text())


def watched(command: list[str], log: Path) -> float | None:
    """Run a command to its end; the largest anonymous memory it had in MiB, None where that is not told.

    Raises SystemExit if it fails.
    """
    peak = 0
    with log.open("a") as file:
        child = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)

        def look() -> None:
            nonlocal peak
            status = Path(f"/proc/{child.pid}/status")
            while child.poll() is None:
                try:
                    lines = status.read_text().splitlines()
                except OSError:
                    return
                peak = max(peak, *(int(line.split()[1]) for line in lines if line.startswith("RssAnon")), 0)
                time.sleep(0.1)

        thread = threading.Thread(target=look)
        thread.start()
        code = child.wait()
        thread.join()
    if code:
        raise SystemExit(f"{' '.join(command)} failed; see {log}")
    return peak / 1024 or None


def longtake(*words: str | Path) -> list[str]:
    return [sys.executable, "-m", "longtake", *map(str, words)]


def train(name: str, args: argparse.Namespace) -> dict:
    """Train what is left; PFLOP by stage, hours and peak memory in MiB."""
    pflop, out = plan(name, args), Path(args.output)
    peak = watched(longtake("train", out / f"{name}.yaml", "--data", args.data, "-o", out / name), out / "log")
    lines = [json.loads(line) for line in (out / name / "log.jsonl").read_text().splitlines()]
    seconds, last = 0.0, 0
    for line in lines:
        if "updates_per_second" in line:
            seconds += (line["total"] - last) / line["updates_per_second"]
            last = line["total"]
    return {"pflop": pflop, "hours": seconds / 3600, "peak_mib": peak}


def measure(name: str, args: argparse.Namespace) -> None:
    """Figures and curves, in an evaluation folder."""
    entry, folder = SYSTEMS[name], Path(args.output) / f"evaluation-{name}"
    more = ["--given", str(entry.given)] if entry.given else []
    more += ["--set", *entry.settings] if entry.settings else []
    frames = min(args.frames, entry.most)
    count = ["--videos", str(args.videos), "--frames", str(frames), "--keep", "4", "--extractor", EXTRACTOR]
    command = longtake("evaluate", Path(args.output) / name, "--data", args.data, "-o", folder, *count, *more)
    watched(command, Path(args.output) / "log")


def rollout(name: str, args: argparse.Namespace) -> dict | None:
    """Seconds for 1,000 frames of one video and peak memory, by benchmarks/memory.py; None for single clips."""
    entry, out = SYSTEMS[name], Path(args.output)
    if entry.most < args.long:
        return None
    library = Library(args.data)
    row = max(library.split("test"), key=lambda r: library.rows[r].frames)
    more = ["--set", *entry.settings] if entry.settings else []
    if entry.told == "source video":
        more = ["--source-video", str(library.path / library.rows[row].file), *more]
    elif entry.given:
        more = ["--first-frames", write_first(library, row, entry.given, library.header.size, out), *more]
    kept = out / f"memory-{name}.json"
    command = [sys.executable, str(ROOT / "benchmarks" / "memory.py"), str(out / name)]
    command += ["--frames", "64", str(args.long), "--output", str(kept), *more]
    watched(command, out / "log")
    short, long = json.loads(kept.read_text())["rows"]
    seconds = (long["seconds"] - short["seconds"]) / (args.long - 64) * 1000
    return {"seconds": seconds, "peak_mib": long["peak_rss_mib"], "at_64_mib": short["peak_rss_mib"]}


def done(record: Path, part: str, make: Callable[[], object]) -> None:
    """Add a part to a record unless it is there."""
    found = json.loads(record.read_text()) if record.exists() else {}
    if part not in found:
        made = make()
        record.write_text(json.dumps({**found, part: made}, indent=1))


def run(name: str, args: argparse.Namespace) -> None:
    """All of one system that is not done yet."""
    record = Path(args.output) / f"record-{name}.json"
    options = {k: getattr(args, k) for k in ("pflop", "videos", "frames", "long", "seed")}
    options["library"] = Library(args.data).hash
    done(record, "made_with", lambda: options)
    found = json.loads(record.read_text())["made_with"]
    if found != options:
        raise SystemExit(f"{record} was made with {found}, not {options}; choose another --output or remove it")
    done(record, "training", lambda: train(name, args))
    done(record, "weights", lambda: weights(Path(args.output) / name))
    done(record, "measured", lambda: measure(name, args))
    done(record, "rollout", lambda: rollout(name, args))
    print(f"{name}: done", flush=True)


def weights(folder: Path) -> int:
    """Numbers in the networks that make the videos, codebooks included."""
    system = load(folder)
    return sum(w.numel() for name in system.inference for w in system.networks[name].state_dict().values())


def run_baseline(name: str, args: argparse.Namespace) -> None:
    """Figures of a baseline."""
    folder = Path(args.output)
    if not (folder / f"evaluation-{name}" / "result.json").exists():
        library = Library(args.data)
        source = baseline(name, library, folder / f"baseline-{name}", args.videos, args.frames)
        where, extractor = folder / f"evaluation-{name}", make_extractor(EXTRACTOR)
        evaluate(source, library, where, PROTOCOLS[PROTOCOL], [extractor], keep=4)


def collect(args: argparse.Namespace) -> dict[str, dict]:
    """Records of all that is done, figures and curves in them."""
    found = {}
    for name in [*SYSTEMS, *NAMES]:
        record = Path(args.output) / f"record-{name}.json"
        result = Path(args.output) / f"evaluation-{name}" / "result.json"
        if result.exists():
            whole = json.loads(result.read_text())
            kept = {k: v["value"] for k, v in whole["figures"].items()}
            spread = {k: v["interval"] for k, v in whole["figures"].items()}
            curves = {k: [v["x"], v["y"]] for k, v in whole["curves"].items() if k in CURVES}
            more = json.loads(record.read_text()) if record.exists() else {}
            found[name] = {**more, "figures": kept, "intervals": spread, "curves": curves}
    return found


def _last(record: dict) -> float | None:
    curve = record["curves"].get(f"FVD-window[{EXTRACTOR}]")
    return curve[1][-1] if curve and len(curve[1]) > 1 else None


CURVES = {f"FVD-window[{EXTRACTOR}]": "FVD to real clips", f"CCS[{EXTRACTOR}]": "class kept", "motion": "motion"}
COLUMNS: dict[str, Callable[[dict], float | None]] = {
    "FVD16": lambda r: r["figures"].get(f"FVD16[{EXTRACTOR}]"),
    "FVD128": lambda r: r["figures"].get(f"FVD128[{EXTRACTOR}]"),
    "ratio": lambda r: r["figures"].get(f"FVD16/FVD128[{EXTRACTOR}]"),
    "last 16": _last,
    "CCS area": lambda r: r["figures"].get(f"CCS-area[{EXTRACTOR}]"),
    "motion, of real": lambda r: r["figures"].get("motion_ratio"),
    "seam": lambda r: r["figures"].get("seam"),
    "repeat": lambda r: r["figures"].get("longest_repeat"),
    "s per 1,000 frames": lambda r: (r.get("rollout") or {}).get("seconds"),
    "weights (M)": lambda r: r["weights"] / 1e6 if "weights" in r else None,
    "MiB": lambda r: (r.get("rollout") or {}).get("peak_mib"),
    "TFLOP": lambda r: 1e3 * sum(r["training"]["pflop"].values()) if "training" in r else None,
    "hours": lambda r: r["training"]["hours"] if "training" in r else None,
    "training MiB": lambda r: r["training"]["peak_mib"] if "training" in r else None,
}


def table(records: dict[str, dict]) -> str:
    """Markdown, a row a system; systems that are given the same stand together."""
    lines = ["| system | given | set | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 3) + "|"]
    rows = [(name, e.title, e.told, ", ".join(e.settings)) for name, e in SYSTEMS.items()]
    for name, *words in [*rows, *((name, f"*{name}*", "", "") for name in NAMES if name in records)]:
        cells = [_cell(records.get(name), column) for column in COLUMNS]
        lines.append("| " + " | ".join([*words, *cells]) + " |")
    return "\n".join(lines)


def _cell(record: dict | None, column: str) -> str:
    """A value, with its interval where it is a distance."""
    value = COLUMNS[column](record) if record else None
    if value is None:
        return "-"
    spread = record["intervals"].get(f"{column}[{EXTRACTOR}]") if record else None
    text = f"{value:.3g}" if value < 1000 else f"{value:,.0f}"
    return f"{text} [{spread[0]:.0f}, {spread[1]:.0f}]" if spread and column.startswith("FVD") else text


def plot(records: dict[str, dict], path: Path) -> None:
    """The curves over time, smoothed over eight windows, or fewer of short videos."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(CURVES), figsize=(17, 4.5))
    colours = plt.get_cmap("tab20").colors  # pyright: ignore[reportAttributeAccessIssue]
    for axis, (curve, title) in zip(axes, CURVES.items(), strict=True):
        for i, name in enumerate(n for n in [*SYSTEMS, *NAMES] if n in records):
            x, y = records[name]["curves"].get(curve, ([], []))
            if len(x) < 2:
                continue
            width = max(1, min(8, len(y) // 4))
            label = SYSTEMS[name].title if name in SYSTEMS else name
            line = np.convolve(y, np.ones(width) / width, "valid")
            axis.plot(x[: len(line)], line, color=colours[i % 20], ls="-" if name in SYSTEMS else ":", label=label)
        axis.set(title=title, xlabel="frame")
    axes[-1].set_yscale("log")
    axes[-1].legend(fontsize=7, bbox_to_anchor=(1.02, 1), loc="upper left")
    figure.tight_layout()
    figure.savefig(path, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="an Atari library at 32 pixels")
    parser.add_argument("--output", required=True)
    parser.add_argument("--systems", nargs="+", choices=list(SYSTEMS), default=list(SYSTEMS))
    parser.add_argument("--pflop", type=float, default=0.02, help="of each system's training")
    parser.add_argument("--videos", type=int, default=32)
    parser.add_argument("--frames", type=int, default=1024, help="of each measured video")
    parser.add_argument("--long", type=int, default=1000, help="frames of the video that is timed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", help="where comparison.json and .png are written (default: --output)")
    parser.add_argument("--table", action="store_true", help="only rewrite the results")
    args = parser.parse_args()
    out = Path(args.output)
    out.mkdir(parents=True, exist_ok=True)
    if not args.table:
        for name in args.systems:
            run(name, args)
        for name in NAMES:
            run_baseline(name, args)
    records = collect(args)
    if records:
        results = Path(args.results or out)
        publish(results / "comparison.json", records)
        plot(records, results / "comparison.png")
        folders = [out / f"evaluation-{name}" for name in records]
        subprocess.run(longtake("compare", *folders, "-o", out / "comparison.html"), check=True)
        print(table(records))


if __name__ == "__main__":
    main()
