"""The ablation tables of the recall family (Yang's thesis, chapters 3 to 5) at a size that fits.

An arm is a system, what its configuration changes, and the settings it generates with; arms of one configuration
share a training. Each is measured on test footage by FVD of 16 and 128 frames and their ratio (features of
r3d-atari), the longest repetition, and the time a 1,000-frame video takes. Two baselines stand beside them: test
videos whose first frame is frozen, and the mean of training videos. A table whose reference arm does not beat both
says so.

    longtake data sample atari -o data/atari32 --minutes 60 --size 32
    python experiments/recall_ablation.py --data data/atari32 --output runs/recall          # the core tables
    python experiments/recall_ablation.py --data data/atari32 --output runs/recall --tables 4.3 5.6 --seeds 0 1 2
    python experiments/recall_ablation.py --output runs/recall --table                      # rewrite docs/results

Tab. 4.2 over three seeds has a file of its own, recall_ablation_seeds.json (--results), made with --steps 500
--width 10 --lr 6e-4 --tables 4.2 --seeds 0 1 2.

Runs resume, and what is measured already is not measured again; records made with other --steps, --plan-steps,
--width, --lr or --videos are refused. Tab. 4.8 (sampling step 4) is Tab. 4.2's last arm
on a library prepared at a quarter of the rate. The thesis's figures are on other footage with another extractor:
only directions can be compared.
"""

from __future__ import annotations

import argparse
import glob
import time
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
from baselines import NAMES, baseline
from records import alike, once, publish, read

from longtake.api import configure
from longtake.config import from_dict, to_dict
from longtake.data import video
from longtake.data.library import Library
from longtake.metrics.evaluate import evaluate
from longtake.metrics.extractors.registry import make_extractor
from longtake.metrics.protocol import PROTOCOLS
from longtake.metrics.sources import FolderSource, ModelSource
from longtake.systems import system_class
from longtake.systems.base import System
from longtake.systems.folder import load
from longtake.train.loop import Trainer
from longtake.train.recipe import LoopSettings, Recipe

RESULTS = Path(__file__).parents[1] / "docs" / "results"
FRAMES, GIVEN, LONG = 128, 16, 1000
EXTRACTOR = "r3d-atari"
R2_NETWORKS = ("encoder", "generator", "video_discriminator")


@dataclass(frozen=True)
class Arm:
    """One row of a table."""

    name: str
    system: str
    change: dict = field(default_factory=dict)
    """What differs from the system's small configuration."""
    settings: dict = field(default_factory=dict)
    """What differs from its settings."""
    thesis: tuple[float | None, float | None] = (None, None)
    """FVD of 16 and 128 frames as the thesis prints them; video FID first, in tables of single clips."""
    from_clips: bool = False
    """Whether EncGAN3 encodes test clips, not noise."""
    given: bool = False
    """Whether AR2 goes on from frames of test clips, as R3 has to, not from noise."""

    @property
    def training(self) -> str:
        """Name of the training it needs: the same for arms that differ in settings only."""
        flat = "-".join(f"{k}={v}" for k, v in sorted(_flat(self.change).items()))
        return f"{self.system}-{flat}" if flat else self.system


def _flat(change: dict, prefix: str = "") -> dict:
    found = {}
    for key, value in change.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


NO_CONTENT, NO_MOTION = {"content_stream": False}, {"motion_stream": False}
TABLES = {
    "4.2": [
        Arm("R_Enc", "r2", {"r_3vd": False, "loss": "v1"}, thesis=(2452.0, 2717.7)),
        Arm("R_3VD", "r2", {"r_enc": False, "loss": "v1"}, thesis=(359.6, 326.8)),
        Arm("both", "r2", {"loss": "v1"}, thesis=(230.3, 252.5)),
    ],
    "5.8": [
        Arm("mean", "ar2", settings={"latent": "mean"}, thesis=(1353.5, 2013.1)),
        Arm("sample", "ar2", settings={"candidates": 1}, thesis=(1266.8, 2087.1)),
        Arm("sample+VDrej", "ar2", thesis=(1258.5, 1986.3)),
    ],
    "5.8 for improved R2": [
        Arm("mean", "r2-improved", settings={"latent": "mean"}),
        Arm("sample", "r2-improved", settings={"candidates": 1}),
        Arm("sample+VDrej", "r2-improved", thesis=(101.1, 108.9)),
    ],
    "5.11": [
        Arm("faster, mean", "r3", settings={"rollout": "faster", "latent": "mean"}, thesis=(301.7, 1311.5)),
        Arm("faster, VDrej", "r3", settings={"rollout": "faster"}, thesis=(291.2, 1287.7)),
        Arm("robust", "r3", thesis=(160.4, 385.1)),
    ],
    "repetition": [
        Arm("AR2", "ar2", thesis=(1258.5, 1986.3)),
        Arm("AR2, 16 frames given", "ar2", given=True),
        Arm("R3", "r3", thesis=(160.4, 385.1)),
    ],
    "3.4": [
        Arm(
            "no G_C, no G_T",
            "encgan3",
            {"generator": NO_CONTENT | NO_MOTION},
            thesis=(95.50, None),
            from_clips=True,
        ),
        Arm("no G_C", "encgan3", {"generator": NO_CONTENT}, thesis=(88.06, None), from_clips=True),
        Arm("no G_T", "encgan3", {"generator": NO_MOTION}, thesis=(90.71, None), from_clips=True),
        Arm("no F-SA", "encgan3", {"generator": {"attention": None}}, thesis=(87.53, None), from_clips=True),
        Arm("no Enc", "encgan3", {"encode": False}, thesis=(93.26, None)),
        Arm("full", "encgan3", thesis=(86.21, None), from_clips=True),
    ],
    "3.5": [
        Arm("none, no F-SA", "encgan3", {"encode": False, "generator": {"attention": None}}, thesis=(95.47, None)),
        Arm("none, F-SA", "encgan3", {"encode": False}, thesis=(91.77, None)),
        Arm("train, no F-SA", "encgan3", {"generator": {"attention": None}}, thesis=(89.46, None)),
        Arm("train, F-SA", "encgan3", thesis=(93.65, None)),
        Arm("train and test, no F-SA", "encgan3", {"generator": {"attention": None}}, {}, (87.52, None), True),
        Arm("train and test, F-SA", "encgan3", thesis=(86.21, None), from_clips=True),
    ],
    "3.6": [
        Arm("L_Enc,v", "encgan3", {"encoder_target": "motion"}, thesis=(90.77, None), from_clips=True),
        Arm(
            "L_Enc,v + L_G,v",
            "encgan3",
            {"encoder_target": "motion", "generator_target": "motion"},
            thesis=(95.02, None),
            from_clips=True,
        ),
        Arm(
            "L_Enc,v + L_G,v, 4e-5",
            "encgan3",
            {"encoder_target": "motion", "generator_target": "motion", "stage": {"lr": 4e-5}},
            thesis=(89.71, None),
            from_clips=True,
        ),
        Arm("baseline, 4e-5", "encgan3", {"stage": {"lr": 4e-5}}, thesis=(88.68, None), from_clips=True),
        Arm("baseline", "encgan3", thesis=(86.21, None), from_clips=True),
    ],
    "3.12": [
        Arm("bins, no encoder", "encgan3", {"sampling": "bins", "encode": False}),
        Arm("bins", "encgan3", {"sampling": "bins"}, from_clips=True),
        Arm("step, no encoder", "encgan3", {"step": [1, 3], "encode": False}),
        Arm("step", "encgan3", {"step": [1, 3]}, from_clips=True),
    ],
    "4.3": [
        Arm("v1", "r2", {"loss": "v1"}, thesis=(230.3, 252.5)),
        Arm("v2", "r2", {"loss": "v2"}, thesis=(111.9, 149.3)),
        Arm("v3", "r2", {"loss": "v3"}, thesis=(107.5, 128.1)),
        Arm("v5", "r2", {"loss": "v5"}, thesis=(2522.8, 3299.6)),
        Arm("v4", "r2", thesis=(81.7, 101.3)),
    ],
    "4.6": [
        Arm("R2", "r2", thesis=(70.14, None)),
        Arm("EncGAN3", "encgan3", thesis=(86.21, None), from_clips=True),
    ],
    "5.6": [
        Arm("1p2d", "r2-improved", {"generator": {"video": "1p2d"}}, thesis=(113.5, 145.9)),
        Arm("3d", "r2-improved", thesis=(101.1, 108.9)),
    ],
    "5.7": [
        Arm("noise", "r2-improved", {"noise": True}, thesis=(766.9, 1004.5)),
        Arm("no noise", "r2-improved", thesis=(101.1, 108.9)),
    ],
    "5.9": [
        Arm("other sequences", "r3", {"planner": {"format": "sequence"}}, thesis=(731.3, 935.6)),
        Arm("discrete and continuous", "r3", {"planner": {"format": "mixed"}}, thesis=(2093.1, 3929.2)),
        Arm("zeros", "r3", thesis=(160.4, 385.1)),
    ],
    "LEncGAN": [
        Arm("inherits nothing", "lencgan", {"inherit": "none"}),
        Arm("inherits the middle output", "lencgan", {"inherit": "output", "inherit_at": "middle"}),
        Arm("inherits the middle state", "lencgan", {"inherit_at": "middle"}),
        Arm("target: first frame", "lencgan", {"reference": "first"}),
        Arm("target: none", "lencgan", {"reference": "none"}),
        Arm("default (Algorithm 4)", "lencgan"),
    ],
}
"""The last arm of each table is its reference. Tab. 4.2 has loss v1, as in the thesis, where it came before v4."""
GIVEN_NOTE = (
    "R3 in the thesis: FVD of 16 frames counts the 8 real ones that a video begins with; here they are left out."
)
CORE = ("4.2", "5.8", "5.8 for improved R2", "5.11", "repetition")


def recipe(arm: Arm, seed: int, args: argparse.Namespace) -> Recipe:
    """The small size at the library's frame size; R3 goes on from the R2 of the same seed."""
    size = Library(args.data).header.size
    cls = system_class(arm.system)
    base = replace(cls.sizes["small"], size=size)
    blocks, width = 4 if min(size) < 48 else 5, args.width or base.generator.width
    base = replace(base, generator=replace(base.generator, blocks=blocks, width=width))
    stage = replace(base.stage, steps=0 if arm.system == "r3" else args.steps, lr=args.lr or base.stage.lr)
    base = replace(base, stage=stage)
    init: dict[str, str] = {}
    if arm.system == "r3":
        base = replace(base, planner_stage=replace(base.planner_stage, steps=args.plan_steps))
        r2 = train(Arm("", "r2-improved"), seed, args)
        init = {name: str(r2) for name in R2_NETWORKS}
    made = from_dict(cls.config_class, arm.change, arm.name, base)
    output = Path(args.output) / f"{arm.training}-seed{seed}"
    loop = LoopSettings(precision="bf16", log_every=100, validate_every=500, preview_every=10**9)
    return Recipe(arm.system, "small", made, args.data, str(output), seed, init, loop)


def train(arm: Arm, seed: int, args: argparse.Namespace) -> Path:
    """The arm's model; a finished one is taken as it is, one of another recipe refused."""
    return Trainer(recipe(arm, seed, args)).run()


def measure(arm: Arm, run: Path, seed: int, args: argparse.Namespace) -> dict:
    """Figures of an arm's videos, and the time that a long one takes."""
    library, system = Library(args.data), configure(load(run), arm.settings)
    if arm.from_clips:
        vars(system)["requires"] = frozenset({"source_video"})  # so that every video is given a test clip
    given = GIVEN if arm.given or "first_frames" in system.requires else 0
    protocol = PROTOCOLS["longtake-1"]
    source = ModelSource(system, library, args.videos, FRAMES, 1000 * seed, protocol.to_bytes, given=given)
    if arm.system == "encgan3":
        source = ModelSource(system, library, args.videos, GIVEN, 1000 * seed, protocol.to_bytes)
    figures = _figures(source, library, Path(args.output) / f"evaluation-{_slug(arm, seed)}")
    seconds = None if arm.system == "encgan3" else _time(system, source)
    return {"figures": figures, "seconds_per_1000_frames": seconds}


def made_with(arm: Arm, args: argparse.Namespace) -> dict:
    """Options that a record depends on and its name does not tell."""
    planner = {"plan_steps": args.plan_steps} if arm.system == "r3" else {}
    changed = {name: getattr(args, name) for name in ("width", "lr") if getattr(args, name)}
    library = {"library": Library(args.data).hash}
    return {"steps": args.steps, **planner, **changed, "videos": args.videos, **library}


def records_of(arm: Arm, args: argparse.Namespace) -> list[dict]:
    """What is stored of an arm, a record a seed."""
    return alike(read(args.output, f"record-{glob.escape(_slug(arm, 0)[:-1])}*.json"))


def _slug(arm: Arm, seed: int) -> str:
    settings = "-".join(f"{k}={v}" for k, v in sorted(arm.settings.items()))
    return "-".join(
        x for x in (arm.training, settings, "clips" * arm.from_clips, "given" * arm.given, f"seed{seed}") if x
    )


def _figures(source: ModelSource | FolderSource, library: Library, folder: Path) -> dict:
    extractor = make_extractor(EXTRACTOR)
    result = evaluate(source, library, folder, PROTOCOLS["longtake-1"], [extractor], batch=4)
    assert result is not None
    return {name: figure.value for name, figure in result.figures.items()}


def _time(system: System, source: ModelSource) -> float:
    """Seconds for 1,000 frames of one video, from as many as its source allows."""
    story = replace(source.stories[0], frames=LONG)
    if story.source_video is not None:
        story = replace(story, frames=min(LONG, video.probe(story.source_video).frames // 16 * 16 - 16))
    begun = time.monotonic()
    for _ in system.generate([story]):
        pass
    assert story.frames is not None
    return (time.monotonic() - begun) * LONG / story.frames


def baselines(args: argparse.Namespace) -> dict:
    """Figures of test videos whose first frame stays, and of the mean of training videos."""
    library, folder = Library(args.data), Path(args.output)
    return {
        name: _figures(
            baseline(name, library, folder / f"baseline-{name}", args.videos, FRAMES),
            library,
            folder / f"evaluation-{name}",
        )
        for name in NAMES
    }


def fvd(figures: dict, frames: int) -> float | None:
    return figures.get(f"FVD{frames}[{EXTRACTOR}]")


def table(name: str, records: dict[str, list[dict]], base: dict) -> str:
    """Markdown, a row an arm: mean and spread over seeds, the thesis's figures beside them."""
    lines = [
        f"Table {name}",
        "",
        "| arm | seeds | FVD16 | FVD128 | 16/128 | longest repeat | s per 1,000 frames | thesis: 16, 128 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for arm in TABLES[name]:
        found, thesis = records.get(arm.name, []), ", ".join("-" if x is None else f"{x:g}" for x in arm.thesis)
        if not found:
            lines.append(f"| {arm.name} | not run | | | | | | {thesis} |")
            continue
        short, long = ([fvd(r["figures"], n) for r in found] for n in (16, 128))
        ratio = [a / b for a, b in zip(short, long, strict=True) if a is not None and b]
        repeat = [r["figures"].get("longest_repeat") for r in found]
        seconds = [r["seconds_per_1000_frames"] for r in found]
        cells = " | ".join(_spread(x) for x in (short, long, ratio, repeat, seconds))
        lines.append(f"| {arm.name} | {len(found)} | {cells} | {thesis} |")
    for kind, figures in base.items():
        cells = " | ".join(_spread([fvd(figures, n)]) for n in (16, 128))
        lines.append(f"| *{kind}* | | {cells} | | | | |")
    reference = records.get(TABLES[name][-1].name, [])
    if reference and base:
        own = np.mean([fvd(r["figures"], 16) or np.inf for r in reference])
        if own >= min(fvd(f, 16) or np.inf for f in base.values()):
            lines += ["", "Not trained enough to tell: the reference arm does not beat the baselines."]
    if any(arm.system == "r3" for arm in TABLES[name]):
        lines += ["", GIVEN_NOTE]
    return "\n".join(lines)


def _spread(values: list) -> str:
    known = [v for v in values if v is not None]
    if not known:
        return "-"
    return f"{np.mean(known):.3g}" + (f" ± {np.std(known, ddof=1):.2g}" if len(known) > 1 else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="an Atari library")
    parser.add_argument("--output", required=True)
    parser.add_argument("--tables", nargs="+", choices=list(TABLES), default=list(CORE))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--steps", type=int, default=6000, help="updates of encoder and generator")
    parser.add_argument("--plan-steps", type=int, default=3000, help="updates of R3's planner")
    parser.add_argument("--width", type=int, help="of the generators, if not that of the small size")
    parser.add_argument("--lr", type=float, help="of encoder, generator and critics, if not the small size's")
    parser.add_argument("--videos", type=int, default=32)
    parser.add_argument(
        "--results", default=str(RESULTS / "recall_ablation.json"), help="where records are gathered"
    )
    parser.add_argument("--table", action="store_true", help="only rewrite docs/results")
    args = parser.parse_args()
    folder = Path(args.output)
    folder.mkdir(parents=True, exist_ok=True)
    for name in [] if args.table else args.tables:
        for seed in args.seeds:
            for arm in TABLES[name]:
                made = partial(lambda arm, seed: measure(arm, train(arm, seed, args), seed, args), arm, seed)
                once(folder / f"record-{_slug(arm, seed)}.json", made_with(arm, args), made)
    if not args.table:
        options = {"videos": args.videos, "library": Library(args.data).hash}
        once(folder / "baselines.json", options, lambda: {"figures": baselines(args)})
    base = next((record["figures"] for record in read(folder, "baselines.json")), {})
    tables, texts = {}, []
    for name, arms in TABLES.items():
        found = {arm.name: records_of(arm, args) for arm in arms}
        tables[name] = {"arms": [to_dict(arm) for arm in arms], "records": found}
        texts.append(table(name, found, base))
    if args.table:
        known = any(records for one in tables.values() for records in one["records"].values())
        publish(Path(args.results), known and {"tables": tables, "baselines": base})
    print("\n\n".join(texts))


if __name__ == "__main__":
    main()
