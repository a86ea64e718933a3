"""Every system on the same footage, under the same compute, by one protocol.

For each recipe in `recipes/compare`: all its numbers of updates are scaled until the FLOPs of its stages together
meet `--pflop` (the stages of one system share it as its recipe says), and what the scaled recipe takes is counted
again. It is trained, measured under longtake-1 over `--frames` frames, and at the end, one system after the other,
the time and the memory of a rollout are taken. Training memory is the largest anonymous memory of the training
process, which leaves out files that the kernel keeps; a rollout's is the resident set. Two baselines stand beside
them. The footage is not that of which r3d-atari, the judge, was trained (seed 0), and has many test videos.

    longtake data sample atari -o data/compare --minutes 100 --size 32 --seed 1 --test 0.4 \\
      --games enduro freeway riverraid seaquest
    python experiments/comparison.py --data data/compare --output runs/compare --pflop 0.02
    python experiments/comparison.py --output runs/compare --table --results docs/results

The queue resumes: what is trained, measured or timed is not done again; a system that fails is named at the end and
the others go on. Several processes may each train and measure some of the systems (`--systems ... --parts train
measure`); then one that runs alone times them (`--parts time`). Figures go to comparison.json, curves to
comparison.png, the page of `longtake compare`, with clips, to comparison.html.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import yaml
from baselines import NAMES, baseline
from comparison_tables import CURVES, EXTRACTOR, ICS, plot, tables
from records import alike, once, publish

from longtake.config import read_yaml
from longtake.data.library import Library
from longtake.errors import UserError
from longtake.metrics.evaluate import evaluate
from longtake.metrics.extractors.registry import make_extractor
from longtake.metrics.protocol import PROTOCOLS
from longtake.metrics.sources import write_first
from longtake.systems.folder import load
from longtake.train.dryrun import count_flops
from longtake.train.recipe import read_recipe

ROOT = Path(__file__).parents[1]
RECIPES = ROOT / "recipes" / "compare"
PROTOCOL = "longtake-1"
SHORT = 16
PARTS = ["train", "measure", "time"]


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
    "loong": Entry("Loong", "game", ("guidance_scale=2",), period=16),
    "ar2": Entry("AR2", "nothing", ("candidates=1",)),
    "encgan3": Entry("EncGAN3", "nothing", most=SHORT),
    "ccvs": Entry("CCVS", "game, first frame", ("new=8",), given=1),
    "r3": Entry("R3", "16 frames", ("rollout=faster", "candidates=1"), given=16),
    "lencgan": Entry("LEncGAN", "source video"),
    "r2": Entry("R2", "source video"),
    "r2-improved": Entry("improved R2", "source video", ("candidates=1",)),
}
GIVEN = dict(zip(NAMES, ("a frame of the video", "nothing"), strict=True))
"""What the baselines are given."""
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


def budget(args: argparse.Namespace) -> dict[str, object]:
    """What a training depends on beside its recipe."""
    return {"pflop": args.pflop, "seed": args.seed, "library": Library(args.data).hash}


def protocol(args: argparse.Namespace) -> dict[str, object]:
    """What figures depend on beside the model."""
    return {"videos": args.videos, "frames": args.frames, "library": Library(args.data).hash}


def plan(name: str, args: argparse.Namespace) -> dict[str, float]:
    """Write the recipe that meets the budget beside the runs, unless it is there; PFLOP by stage."""
    source, path = RECIPES / f"{name}.yaml", Path(args.output) / f"{name}.yaml"
    raw, period = read_yaml(source.read_text(), name), SYSTEMS[name].period

    def make() -> dict:
        cost = count_flops(read_recipe(source, data=args.data), period)
        factor = args.pflop * 1e15 / sum(steps * flops for steps, flops in cost.values())
        path.write_text(yaml.safe_dump(raw | {"config": scaled(raw["config"], factor), "seed": args.seed}))
        taken = count_flops(read_recipe(path, data=args.data), period)
        return {"pflop": {stage: steps * flops / 1e15 for stage, (steps, flops) in taken.items()}}

    options = budget(args) | {"recipe": hashlib.sha256(json.dumps(raw).encode()).hexdigest()[:12]}
    return once(Path(args.output) / f"plan-{name}.json", options, make)["pflop"]


def watched(command: list[str], log: Path, peak: Path | None = None) -> None:
    """Run a command to its end.

    Args:
        command: what is run; its output is added to `log`.
        peak: a file of the largest anonymous memory in MiB, of this run and of those before that it resumes; not
            written where the system does not tell.

    Raises:
        SystemExit: it fails.
    """
    most = float(peak.read_text()) if peak and peak.exists() else 0.0
    with log.open("a") as file:
        child = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
        status = Path(f"/proc/{child.pid}/status")
        while child.poll() is None:
            try:
                lines = status.read_text().splitlines() if peak else []
            except OSError:
                lines = []
            held = max((int(line.split()[1]) / 1024 for line in lines if line.startswith("RssAnon")), default=0.0)
            if peak and held > most:
                most = held
                peak.write_text(f"{most:.1f}")
            time.sleep(0.1)
    if child.returncode:
        raise SystemExit(f"{' '.join(command)} failed; see {log}")


def longtake(*words: str | Path) -> list[str]:
    return [sys.executable, "-m", "longtake", *map(str, words)]


def train(name: str, args: argparse.Namespace) -> dict:
    """Train what is left; PFLOP by stage, hours, peak memory in MiB, and the size of what makes videos."""
    pflop, out = plan(name, args), Path(args.output)
    peak = out / f"{name}.peak"
    watched(longtake("train", out / f"{name}.yaml", "--data", args.data, "-o", out / name), out / "log", peak)
    lines = [json.loads(line) for line in (out / name / "log.jsonl").read_text().splitlines()]
    seconds, last = 0.0, 0
    for line in lines:
        if "updates_per_second" in line:
            seconds += (line["total"] - last) / line["updates_per_second"]
            last = line["total"]
    held = float(peak.read_text()) if peak.exists() else None
    return {"pflop": pflop, "hours": seconds / 3600, "peak_mib": held, "weights": weights(out / name)}


def measure(name: str, args: argparse.Namespace) -> dict:
    """Figures, with what must be said of them, and curves."""
    entry, folder = SYSTEMS[name], Path(args.output) / f"evaluation-{name}"
    more = ["--given", str(entry.given)] if entry.given else []
    more += ["--set", *entry.settings] if entry.settings else []
    frames = min(args.frames, entry.most)
    count = ["--videos", str(args.videos), "--frames", str(frames), "--keep", "4", "--extractor", EXTRACTOR]
    command = longtake("evaluate", Path(args.output) / name, "--data", args.data, "-o", folder, *count, *more)
    watched(command, Path(args.output) / "log")
    return result(folder)


def measure_baseline(name: str, args: argparse.Namespace) -> dict:
    """Figures of a baseline."""
    folder, library = Path(args.output), Library(args.data)
    source = baseline(name, library, folder / f"baseline-{name}", args.videos, args.frames)
    where, extractor = folder / f"evaluation-{name}", make_extractor(EXTRACTOR)
    evaluate(source, library, where, PROTOCOLS[PROTOCOL], [extractor], keep=4)
    return result(where)


def result(folder: Path) -> dict:
    """What an evaluation found."""
    whole = json.loads((folder / "result.json").read_text())
    curves = {k: [v["x"], v["y"]] for k, v in whole["curves"].items() if k in (*CURVES, ICS)}
    kept = ("value", "interval", "note")
    figures = {k: {part: v[part] for part in kept if v.get(part) is not None} for k, v in whole["figures"].items()}
    return {"figures": figures, "curves": curves}


def rollout(name: str, args: argparse.Namespace) -> dict:
    """Seconds for 1,000 frames of one video and peak memory, by benchmarks/memory.py; nothing for single clips."""
    entry, out = SYSTEMS[name], Path(args.output)
    if entry.most < args.long:
        return {}
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
    busy = os.getloadavg()[0]
    watched(command, out / "log")
    short, long = json.loads(kept.read_text())["rows"]
    seconds = (long["seconds"] - short["seconds"]) / (args.long - 64) * 1000
    peaks = {"peak_mib": long["peak_rss_mib"], "at_64_mib": short["peak_rss_mib"]}
    return {"seconds": seconds, **peaks, "load_before": busy}


def weights(folder: Path) -> int:
    """Numbers in the networks that make the videos, codebooks included."""
    system = load(folder)
    return sum(w.numel() for name in system.inference for w in system.networks[name].state_dict().values())


def work(args: argparse.Namespace) -> list[str]:
    """All that is not done yet; what failed."""
    out, failed = Path(args.output), []

    def attempt(part: str, name: str, options: dict, make: Callable[[str, argparse.Namespace], dict]) -> None:
        try:
            once(out / f"{part}-{name}.json", options, lambda: make(name, args))
            print(f"{name}: {part} done", flush=True)
        except (SystemExit, UserError) as error:
            failed.append(f"{name}: {part}: {error}")
            print(failed[-1], flush=True)

    for name in args.systems:
        if "train" in args.parts:
            attempt("trained", name, budget(args), train)
        if "measure" in args.parts and (out / f"trained-{name}.json").exists():
            attempt("measured", name, protocol(args), measure)
    for name in NAMES if "measure" in args.parts else ():
        attempt("measured", name, protocol(args), measure_baseline)
    for name in args.systems if "time" in args.parts else ():
        if (out / f"trained-{name}.json").exists():
            attempt("timed", name, {"long": args.long}, rollout)
    return failed


def collect(output: Path) -> dict[str, dict]:
    """Records of all that is measured, in the order of the table.

    Raises:
        SystemExit: they were made with different options.
    """
    found: dict[str, dict] = {}
    for part in ("trained", "measured", "timed"):
        records = {name: output / f"{part}-{name}.json" for name in [*SYSTEMS, *NAMES]}
        held = {name: json.loads(path.read_text()) for name, path in records.items() if path.exists()}
        alike(list(held.values()))
        for name, record in held.items():
            found.setdefault(name, {})[part] = record
    return {name: record for name, record in found.items() if "measured" in record}


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
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="of the work (default: all)")
    parser.add_argument("--results", help="where the results are written (default: --output)")
    parser.add_argument("--table", action="store_true", help="only rewrite the results")
    args = parser.parse_args()
    out = Path(args.output)
    out.mkdir(parents=True, exist_ok=True)
    if not args.table and args.data is None:
        parser.error("--data is missing; give the library to train and measure on")
    if args.long <= 64:
        parser.error(
            f"--long is {args.long} but must be above 64, the frames of the shorter video it is timed against"
        )
    failed = [] if args.table else work(args)
    records = collect(out)
    if records:
        results = Path(args.results or out)
        publish(results / "comparison.json", records)
        rows = {name: [e.title, e.told, ", ".join(e.settings)] for name, e in SYSTEMS.items()}
        rows |= {name: [f"*{name}*", told, ""] for name, told in GIVEN.items() if name in records}
        plot(records, rows, results / "comparison.png")
        folders = [out / f"evaluation-{name}" for name in records]
        subprocess.run(longtake("compare", *folders, "-o", results / "comparison.html"), check=True)
        print(tables(records, rows))
    if failed:
        sys.exit("\n".join(["what failed, and is tried again by the same command:", *failed]))


if __name__ == "__main__":
    main()
