"""The claims of Loong (sections 3 and 4.2) at small scale, as numbers where the paper shows pictures.

On one trained model (`--model`), in long videos of held-out captions:

* extend: the last frames encoded again (the paper), the last tokens as they are, positions that grow (Fig. 6):
  the jump at the joins, and distance from real clips, motion and the asked game over time
* sampling: greedy, top-k, all tokens (Fig. 7): motion against distance
* guidance: the scale against the game that r3d-atari sees
* speed: tokens a second, both branches of guidance in one cached pass, in two, and without a cache

By training (`--data`, three seeds), small models on one tokenizer (`--tokenizer`) or tokenizers alone:

* training: long clips at once or short to long, with and without more weight on early frames (Fig. 3 and 5), about
  as many tokens each: loss by range of frames, distance by time
* size: width of the language model (Table 1)
* quantiser: clustering VQ, plain VQ, moving averages with restarts: codes used and PSNR

    python experiments/loong_ablation.py --data data/atari48 --model runs/loong --output runs/loong-ablation
    python experiments/loong_ablation.py --data data/atari48 --output runs/loong-ablation --tokenizer runs/loong \
        --parts training size quantiser
    python experiments/loong_ablation.py --output runs/loong-ablation --table

Every arm leaves a record when it is done and is not run again; trainings resume. Distances are Frechet distances of
r3d-atari's features over equally many clips, not FVD; they can be compared within one table only. Baselines stand
beside them: real clips against real ones, real first frames frozen, and the mean real clip.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from records import once, publish, read

from longtake.config import from_dict
from longtake.data.batch import Batch, to_uint8
from longtake.data.cache import FrameCache
from longtake.data.clips import ClipPicker, ClipSpec
from longtake.data.library import Library
from longtake.data.loader import Loader
from longtake.metrics.extractors.registry import make_extractor
from longtake.metrics.frechet import frechet_distance
from longtake.metrics.motion import MotionMeter
from longtake.metrics.seam import seam_ratio
from longtake.rollout.llama import LlamaDecoder
from longtake.story import Entry, Story
from longtake.systems.folder import find, load, read_config
from longtake.systems.loong.config import SIZES, LoongConfig
from longtake.systems.loong.rollout import Writer
from longtake.systems.loong.stages import LMStage
from longtake.systems.loong.system import Loong
from longtake.train.loop import Trainer
from longtake.train.recipe import LoopSettings, Recipe

CLIP = 16
RESULTS = Path(__file__).parents[1] / "docs" / "results"
ROLLOUTS = {
    "extend": {"encoded again": {}, "last tokens": {"extend": "raw"}, "growing positions": {"extend": "grow"}},
    "sampling": {f"top {k}" if k else "all tokens": {"top_k": k} for k in (1, 10, 50, 200, 0)},
    "guidance": {f"scale {s:g}": {"guidance_scale": s} for s in (1.0, 1.5, 2.0, 3.0, 5.0, 7.5)},
}
"""Arms by what they change of the settings."""
TRAININGS = {
    "direct": ((1, 0, 1), 0.0),
    "direct, early frames weigh more": ((1, 0, 1), 1.0),
    "short to long": ((1, 1, 1), 0.0),
    "short to long, early frames weigh more (Loong)": ((1, 1, 1), 1.0),
}
"""Arms by which stages they have and lambda; all begin with pictures, as the paper's do."""
WIDTHS = (64, 128, 192)
QUANTISERS = ("cvq", "vq", "ema")


class Judge:
    """Real clips and the network that looks at clips."""

    def __init__(self, library: Library, count: int):
        self.library, self.extractor = library, make_extractor("r3d-atari")
        picker = ClipPicker(library, ClipSpec(CLIP, library.header.size), "test", 0, "ablation")
        cache = FrameCache(library, library.header.size, 1 << 32)
        clips = np.stack([cache.frames((c := picker.pick(i)).row, c.indices) for i in range(2 * count)])
        self.real, self.other = clips[:count], clips[count:]
        self.reference = self.extractor(self.other).features

    def distance(self, clips: np.ndarray) -> float:
        """Of clips (N, 16, H, W, 3) uint8 from real ones."""
        return float(frechet_distance(self.extractor(clips).features, self.reference))

    def games(self, clips: np.ndarray) -> list[str]:
        """What is seen in each clip."""
        probabilities = self.extractor(clips).probabilities
        assert probabilities is not None
        return [self.extractor.classes[i] for i in probabilities.argmax(1)]

    def baselines(self) -> dict[str, float]:
        """Distances of what needs no model; they depend on how many clips there are."""
        frozen = self.real[:, :1].repeat(CLIP, 1)
        mean = self.real.mean(0, keepdims=True).round().astype(np.uint8).repeat(len(self.real), 0)
        shown = {"real": self.real, "first frame frozen": frozen, "mean clip": mean}
        what = f"{len(self.real)} clips of {self.real.shape[2]} pixels, library {self.library.hash[:8]}"
        return {f"{name}, {what}": self.distance(clips) for name, clips in shown.items()}


def stories(library: Library, frames: int, count: int, seed: int) -> tuple[list[Story], list[str]]:
    """One held-out caption a video, and its game."""
    rows = [library.rows[i] for i in library.split("test")]
    told, games = [], []
    for i in range(count):
        row = rows[i % len(rows)]
        spans = row.captions
        text = spans[(i // len(rows) * 7 + seed) % len(spans)][2]
        told.append(Story(frames=frames, seed=1000 * seed + i, timeline=(Entry(prompt=text),)))
        games.append(row.label or "")
    return told, games


def study(system: Loong, judge: Judge, args: argparse.Namespace, seed: int) -> dict:
    """Long videos: distance and game at several times, motion, and the jump at the joins."""
    told, games = stories(judge.library, args.frames, args.videos, seed)
    starts = np.linspace(0, args.frames - CLIP, args.times).astype(int)
    clips: list[list[np.ndarray]] = [[] for _ in starts]
    motion, seams = [], []
    window, context = system.config.frames, system.settings.context
    for i in range(0, len(told), args.batch):
        meter, video = MotionMeter(), []
        for chunk in system.generate(told[i : i + args.batch]):
            meter.push(chunk)
            video.append(np.stack([to_uint8(v) for v in chunk]))
        whole = np.concatenate(video, 1)
        for kept, start in zip(clips, starts, strict=True):
            kept += list(whole[:, start : start + CLIP])
        motion += [[float(d[s : s + CLIP - 1].mean()) for s in starts] for d in meter.differences]
        seams += [seam_ratio(d, window - context, window) for d in meter.differences]
    stacked = [np.stack(own) for own in clips]
    seen = [judge.games(own) for own in stacked]
    return {
        "first frame of each clip": starts.tolist(),
        "distance": [judge.distance(own) for own in stacked],
        "motion": np.mean(motion, 0).tolist(),
        "asked game seen": [float(np.mean([a == b for a, b in zip(own, games, strict=True)])) for own in seen],
        "jump at joins": float(np.mean(seams)),
    }


def rollouts(part: str, arm: str, seed: int, args: argparse.Namespace, judge: Judge) -> dict:
    """One arm of what can be chosen at generation time."""
    system = load(args.model)
    assert isinstance(system, Loong)
    system.settings = replace(system.settings, **{"guidance_scale": args.guidance, **ROLLOUTS[part][arm]})
    return study(system, judge, args, seed)


def start_config(args: argparse.Namespace) -> LoongConfig:
    """The configuration of the model whose tokenizer is used; its stages of the tokenizer are left out."""
    made = from_dict(LoongConfig, read_config(find(args.tokenizer))["config"], args.tokenizer)
    idle = replace(made.tokenizer_stage, steps=(0,) * len(made.lengths))
    return replace(made, tokenizer_stage=idle)


def trained(name: str, config: LoongConfig, seed: int, args: argparse.Namespace, init: dict[str, str]) -> Path:
    settings = LoopSettings(
        precision="bf16", log_every=50, validate_every=250, preview_every=10**9, checkpoint_every=250
    )
    folder = str(Path(args.output) / "runs" / f"{name}-{seed}")
    return Trainer(Recipe("loong", "small", config, args.data, folder, seed, init, settings)).run()


def last_figures(run: Path) -> dict[str, float]:
    """The last validation of the last stage."""
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    held = [e for e in lines if any(k.startswith("val/") for k in e)]
    return {k: v for k, v in held[-1].items() if k.startswith("val/")}


@torch.inference_mode()
def held_out(system: Loong, library: Library, clips: int = 48) -> dict[str, float]:
    """Figures of the last stage's validation, means over the same held-out clips for all models."""
    stage = system.stages()[-1]
    assert isinstance(stage, LMStage)
    loader = Loader(
        library, {"clips": replace(stage.clips["clips"], share=None, batch=1)}, "test", cache_bytes=1 << 32
    )
    found: dict[str, list[float]] = {}
    for batches in loader.stream(0, clips):
        batch = batches["clips"]
        for name, value in stage.validate({"clips": Batch(**{**batch, **stage.derive(batch)})}).items():
            found.setdefault(name, []).append(value)
    return {name: float(np.mean(values)) for name, values in found.items()}


def trainings(part: str, arm: str, seed: int, args: argparse.Namespace, judge: Judge) -> dict:
    """One arm of the training of the language model, for an equal number of tokens."""
    start = start_config(args)
    stages, weight = (
        TRAININGS[arm] if part == "training" else TRAININGS["short to long, early frames weigh more (Loong)"]
    )
    lm, stage = start.lm, start.lm_stage
    if part == "size":
        width = int(arm.removeprefix("width "))
        lm = replace(lm, width=width, heads=width // 32)
    # An update of any stage sees about as many tokens (the batches of SIZES), so equal updates are equal cost.
    budget = [args.updates // 4, 0, args.updates - args.updates // 4]
    if stages[1]:
        budget = [args.updates // 4, args.updates // 2, args.updates - args.updates // 4 - args.updates // 2]
    batch = SIZES["small"].lm_stage.batch
    stage = replace(stage, steps=tuple(budget), batch=batch, early_weight=weight, warmup=args.updates // 20)
    name = f"{part}-{list(TRAININGS).index(arm) if part == 'training' else width}"
    run = trained(name, replace(start, lm=lm, lm_stage=stage), seed, args, {"tokenizer": args.tokenizer})
    system = load(run)
    assert isinstance(system, Loong)
    system.settings = replace(system.settings, guidance_scale=args.guidance)
    size = sum(p.numel() for p in system.lm.parameters())
    return {"parameters": size, "held out": held_out(system, judge.library), **study(system, judge, args, seed)}


def quantisers(part: str, arm: str, seed: int, args: argparse.Namespace, judge: Judge) -> dict:
    """A tokenizer alone, on pictures and then on 17 frames."""
    small = SIZES["small"]
    stage = replace(
        small.tokenizer_stage, steps=(args.updates // 2, args.updates // 2, 0), discriminator_start=10**9
    )
    config = replace(
        small,
        size=judge.library.header.size,
        tokenizer=replace(small.tokenizer, quantiser=arm),
        tokenizer_stage=stage,
        lm_stage=replace(small.lm_stage, steps=(0, 0, 0)),
    )
    return {"validation": last_figures(trained(f"{part}-{arm}", config, seed, args, {}))}


@torch.inference_mode()
def speed(part: str, arm: str, seed: int, args: argparse.Namespace, judge: Judge) -> dict:
    """Tokens a second of one video's first slices under guidance; and reading the weights, which bounds them."""
    system = load(args.model)
    assert isinstance(system, Loong)
    system.settings = replace(system.settings, guidance_scale=args.guidance)
    _, h, w = system.tokenizer.grid(system.config.frames, *system.config.size)
    text, context = judge.library.rows[0].captions[0][2], torch.zeros(1, 0, h, w, dtype=torch.long)
    count, ids = 2 * h * w, system.vocabulary.video
    begun = time.perf_counter()
    if arm == "one cached pass":
        Writer(system, 1)([text], context, torch.full((1, count), 0.5))
    elif arm == "two cached passes":
        for dropped in ([False], [True]):
            rows = system.vocabulary.aligned(system.prefixes([text], dropped))[0]
            decoder = LlamaDecoder(system.lm, 1, rows.shape[1] + count, ids=ids)
            for _ in range(count):
                decoder.extend(rows, torch.arange(rows.shape[1]) + decoder.cache.length)
                rows = rows[:, -1:]
    elif arm == "two passes without a cache":
        rows = [system.prefixes([text], dropped)[0] for dropped in ([False], [True])]
        for _ in range(count):
            for row in rows:
                system.lm(torch.tensor([row]), last_only=True, ids=ids)
                row.append(ids.start)
    else:  # the weights, read once a token
        parameters = [p.view(-1) for p in system.lm.blocks.parameters()]
        for _ in range(count):
            for parameter in parameters:
                parameter.sum()
    return {"tokens a second": count / (time.perf_counter() - begun), "threads": torch.get_num_threads()}


ARMS: dict[str, tuple[Callable, list[str]]] = {
    **{part: (rollouts, list(arms)) for part, arms in ROLLOUTS.items()},
    "speed": (speed, ["one cached pass", "two cached passes", "two passes without a cache", "weights read"]),
    "training": (trainings, list(TRAININGS)),
    "size": (trainings, [f"width {w}" for w in WIDTHS]),
    "quantiser": (quantisers, list(QUANTISERS)),
}


def table(records: list[dict]) -> str:
    """Markdown: a row an arm and length, means over seeds; lists over time as first to last."""
    lines = ["| part | arm | frames | videos | seeds | figures |", "|---|---|---|---|---|---|"]
    for part, (_, arms) in ARMS.items():
        for arm in arms:
            found = [r for r in records if (r["part"], r["arm"]) == (part, arm)]
            for frames, videos in sorted({(r["frames"], r["videos"]) for r in found}):
                own = [r["figures"] for r in found if (r["frames"], r["videos"]) == (frames, videos)]
                shown = "; ".join(filter(None, (_shown(name, [f[name] for f in own]) for name in own[0])))
                lines.append(f"| {part} | {arm} | {frames} | {videos} | {len(own)} | {shown} |")
            if not found:
                lines.append(f"| {part} | {arm} | | | 0 | not run |")
    return "\n".join(lines)


def _shown(name: str, values: list) -> str:
    if isinstance(values[0], dict):
        shared = [k for k in values[0] if all(k in v for v in values)]
        return "; ".join(_shown(k, [v[k] for v in values]) for k in shared)
    if isinstance(values[0], list):
        return f"{name} {' > '.join(f'{v:.3g}' for v in np.mean(values, 0))}"
    return f"{name} {np.mean(values):.4g}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", required=True)
    parser.add_argument("--data", help="an Atari library of the model's size, with captions")
    parser.add_argument("--model", help="a trained Loong, for the parts at generation time")
    parser.add_argument("--tokenizer", help="a Loong whose tokenizer the trainings use")
    parser.add_argument("--parts", nargs="+", choices=list(ARMS), default=[*ROLLOUTS, "speed"])
    parser.add_argument("--arms", nargs="+", help="only these of the parts' arms")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--frames", type=int, default=905, help="of each long video; 905 are a minute")
    parser.add_argument("--times", type=int, default=8, help="clips looked at in each")
    parser.add_argument("--videos", type=int, default=48)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--guidance", type=float, default=3.0, help="scale, but where it is the question")
    parser.add_argument("--updates", type=int, default=3000, help="of each training")
    parser.add_argument("--table", action="store_true", help="only rewrite docs/results")
    args = parser.parse_args()
    folder = Path(args.output)
    folder.mkdir(parents=True, exist_ok=True)
    if not args.table:
        judge = Judge(Library(args.data), args.videos)
        once(folder / f"baselines-{args.videos}-{judge.library.hash[:8]}.json", {}, judge.baselines)
        for seed in args.seeds:
            for part in args.parts:
                run, arms = ARMS[part]
                for arm in arms if args.arms is None else [a for a in arms if a in args.arms]:
                    told = {"part": part, "arm": arm, "seed": seed, "library": judge.library.hash}
                    told |= {k: getattr(args, k) for k in ("frames", "videos", "guidance", "updates")}
                    told["model"] = Path(args.model or args.tokenizer or "").name
                    made = partial(_record, told, partial(run, part, arm, seed, args, judge))
                    once(folder / f"record-{part}-{arms.index(arm)}-{seed}.json", told, made)
    records = read(folder, "record-*.json")
    grounds = read(folder, "baselines-*.json")
    baselines = {name: value for ground in grounds for name, value in ground.items() if name != "made_with"}
    if args.table:
        publish(RESULTS / "loong_ablation.json", records and {"baselines": baselines, "records": records})
    print("distance of " + ", ".join(f"{k}: {v:.4g}" for k, v in baselines.items()))
    print(table(records))


def _record(told: dict, run: Callable[[], dict]) -> dict:
    return {**told, "figures": run()}


if __name__ == "__main__":
    main()
