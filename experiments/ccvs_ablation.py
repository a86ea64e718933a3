"""The ablations of CCVS at small scale: context, flow, sampling, controls (paper Tables 1, 2, 3 and 6, Figure 3).

Models at 32 pixels on one Atari library with states and sound (steering and reconstruction also on a pusher
library), trained whole or in part:

* plain: an autoencoder without flow module and context (Table 1, row 4);
* base: context of up to 15 frames, and a transformer that predicts;
* end, states, sound, estimator: base's autoencoder with other transformers, and a state estimator.

Measured, each with held-out clips. The bundled classifier r3d-atari stands in for VGG-19 as a loss and for I3D as
the judge of FVD: arms can be compared with one another in FVD, but not with the baselines, which were not trained
on it. FVD is of whole clips, given frames included; PSNR and DIV are not. Clips are drawn from the test videos of
--held-out: a library of the same games with many short shots, or --data itself, whose few test videos then give
clips that are no independent ones.

1. reconstruction: PSNR and FVD of 16-frame clips from their codes, decoded with 0, 1, 8 and 15 context frames;
2. sampling: FVD and DIV of 16-frame predictions from one frame with top-k 1, 10 and 100;
3. controls: SSIM at the middle and last but one frame of predictions, with an end frame, with states;
4. sound: SSIM and PSNR at frames 16, 30 and 45, sound on and off, 15 frames given, sampled as the paper's;
5. steering: from a clip's first frame along the trajectory of another clip of the game: distance in pixels of the
   estimated place in made frames from the one asked for, and from the clip's own, in games where the estimator
   finds the place in real frames;
6. long: 512 frames with and without context, FVD and motion a window;
7. speed: frames a second against running the whole window again for every token.

    longtake data sample atari -o data/atari32 --minutes 30 --size 32
    longtake data sample atari -o data/atari32-test --minutes 10 --size 32 --seed 1 --test 0.9
    python experiments/ccvs_ablation.py --data data/atari32 --held-out data/atari32-test --output runs/ccvs-ablation
    python experiments/ccvs_ablation.py --output runs/ccvs-ablation --table     # only rewrite docs/results

Runs resume; what is done is not done again. --arms adds rows to 1 and 2: codebook sizes and none at all (Table 5),
codes a frame (Figure 3), layers and heads (Table 2), and a "longer prior" of thrice the updates, which 6 takes too.
A table whose reference row does not beat its baselines (a frozen frame, the mean of all clips) says so.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ccvs_models import SIZE, Clip, another, arms, held_out, options, predict, towards, train
from records import once, publish

from longtake.data.batch import to_float, to_uint8
from longtake.data.library import Library
from longtake.files import write_text
from longtake.metrics.diversity import diversity
from longtake.metrics.extractors.registry import make_extractor
from longtake.metrics.frechet import frechet_distance
from longtake.metrics.images import psnr, ssim
from longtake.story import Story
from longtake.systems.ccvs.system import CCVS

RESULTS = Path(__file__).parents[1] / "docs" / "results"
PREDICTED = 16
CONTEXTS, TOP_K, SAMPLES = (0, 1, 8, 15), (1, 10, 100), 4
BASELINES = ("last given frame frozen", "mean video", "first place held", "told nothing")
"""Rows that say nothing of a model."""
WHOLE = ("plain", "base")
"""Arms that train an autoencoder of their own; the others take base's."""


def fvd(made: np.ndarray, real: np.ndarray) -> float:
    """Frechet distance of r3d-atari features, clips (N, T, H, W, 3) each."""
    extractor = make_extractor("r3d-atari", torch.device("cpu"))
    return frechet_distance(extractor(made).features, extractor(real).features)


def frozen_and_mean(clips: list[Clip], given: int, frames: int) -> dict[str, np.ndarray]:
    """The baselines: the last given frame for good, and the mean of all clips; (N, frames, H, W, 3) each."""
    real = np.stack([clip.frames[:frames] for clip in clips])
    frozen, mean = real.copy(), np.empty_like(real)
    frozen[:, given:] = real[:, given - 1 : given]
    mean[:] = real.mean(0).astype(np.uint8)
    return {BASELINES[0]: frozen, BASELINES[1]: mean}


def reconstruction(args: argparse.Namespace, scratch: Path, rows: dict) -> None:
    """Table 1, "Reconstruction", and Table 5 and Figure 3 by --arms: the first frame is given, so it does not
    count."""
    clips = held_out(args, PREDICTED, 0)
    real = np.stack([clip.frames for clip in clips])

    def measured(made: np.ndarray) -> dict:
        quality = np.mean([psnr(a[1:], b[1:]).clip(max=60).mean() for a, b in zip(real, made, strict=True)])
        return {"psnr": float(quality), "fvd": fvd(made, real)}

    own = [arm for arm in args.arms if arm not in WHOLE and arms(args)[arm].autoencoder_stage.steps]
    for arm in (*WHOLE, *own):
        system = train(arm, args)
        for context in CONTEXTS if arm == "base" else (system.config.autoencoder.context,):
            name = f"{arm}, context {context}"
            if name not in rows:
                begun = time.perf_counter()
                made = np.stack([to_uint8(decoded(system, to_float(clip)[None], context)[0]) for clip in real])
                rate = (real.shape[0] * (real.shape[1] - 1)) / (time.perf_counter() - begun)
                rows[name] = {**measured(made), "frames_a_second": rate}
    for name, made in frozen_and_mean(clips, 1, PREDICTED).items():
        rows[name] = measured(made)


@torch.no_grad()
def decoded(system: CCVS, clip: torch.Tensor, context: int) -> torch.Tensor:
    """A clip (1, 3, T, H, W) from its codes, with so many frames of context."""
    from longtake.systems.ccvs.rollout import ImageSpace

    space = ImageSpace(system.autoencoder, system.config.grid, context)
    space.show(clip[:, :, :1])
    made = [space.decode(codes) for codes in system.tokenize(clip)[:, 1:].unbind(1)]
    return torch.cat([clip[:, :, :1], torch.stack(made, 2)], 2)


def sampling(args: argparse.Namespace, scratch: Path, rows: dict) -> None:
    """Table 2, top-k, and the rows of --arms: prediction from one frame; DIV over four samples a clip."""
    clips = held_out(args, PREDICTED, 1)
    real = np.stack([clip.frames for clip in clips])
    variants = [("base", {"top_k": k}, f"top-k {k}") for k in TOP_K]
    variants += [(arm, {}, arm) for arm in args.arms if arm != "base" and arms(args)[arm].prior.layers]
    for arm, settings, name in variants:
        if name not in rows:
            system = train(arm, args)
            system.settings = replace(system.settings, **settings)
            begun = time.perf_counter()
            samples = [predict(system, clips, 1, PREDICTED, scratch, 1000 * i) for i in range(SAMPLES)]
            rate = SAMPLES * len(clips) * (PREDICTED - 1) / (time.perf_counter() - begun)
            spread = [diversity(np.stack(own)[:, 1:] / 255) for own in zip(*samples, strict=True)]
            rows[name] = {"fvd": fvd(samples[0], real), "div": float(np.mean(spread)), "frames_a_second": rate}
    for name, made in frozen_and_mean(clips, 1, PREDICTED).items():
        rows[name] = {"fvd": fvd(made, real), "div": 0.0}


def controls(args: argparse.Namespace, scratch: Path, rows: dict) -> None:
    """Table 3, bottom: one frame given; the middle and the last but one frame."""
    clips = held_out(args, PREDICTED, 2)

    def measured(made: np.ndarray) -> dict:
        like = [ssim(a.frames, b) for a, b in zip(clips, made, strict=True)]
        return {f"ssim_{t}": float(np.mean([s[t - 1] for s in like])) for t in (8, 15)}

    for arm, told in (("base", {}), ("end", {"end": True}), ("states", {"states": True})):
        rows[arm] = measured(predict(train(arm, args), clips, 1, PREDICTED, scratch, **told))
    rows |= {name: measured(made) for name, made in frozen_and_mean(clips, 1, PREDICTED).items()}


def sound(args: argparse.Namespace, scratch: Path, rows: dict) -> None:
    """Table 6: 15 frames given of 45, with their sound."""
    system, clips = train("sound", args), held_out(args, 45, 3)
    system.settings = replace(system.settings, state_top_k=100, keep_first=8)  # of the released scripts

    def measured(made: np.ndarray) -> dict:
        def mean(metric: Callable, t: int) -> float:
            pairs = zip(clips, made, strict=True)
            return float(np.mean([metric(a.frames[t - 1 : t], b[t - 1 : t]).clip(max=60) for a, b in pairs]))

        return {f"{metric.__name__}_{t}": mean(metric, t) for metric in (ssim, psnr) for t in (16, 30, 45)}

    for name, told in (("on", {"sound": True}), ("off", {})):
        rows[f"sound {name}"] = measured(predict(system, clips, 15, 45, scratch, **told))
    rows |= {name: measured(made) for name, made in frozen_and_mean(clips, 15, 45).items()}


def steering(args: argparse.Namespace, scratch: Path, rows: dict) -> None:
    """The place that the estimator finds in made frames against the trajectory asked for, which is not the clip's
    own: that one also a model follows that is told nothing. In games where the estimator finds the place in real
    frames, with half the error against another trajectory or less."""
    judge, clips = train("estimator", args), held_out(args, 32, 4, 4 * args.clips)

    @torch.no_grad()
    def places(frames: np.ndarray) -> np.ndarray:
        latents = judge.seen_latents(to_float(frames).transpose(0, 1))
        return judge.states.estimate(latents).numpy() * SIZE[0]

    def error(a: Any, b: Any) -> dict:
        return {"pixels": float(np.linalg.norm(np.stack(a)[:, 1:] - np.stack(b)[:, 1:], axis=-1).mean())}

    def asked_of(some: list[Clip]) -> list[np.ndarray]:
        return [towards(clip.states, some[another(some, i)].states) for i, clip in enumerate(some)]

    read = []
    for game in sorted({str(clip.label) for clip in clips}):
        some = [clip for clip in clips if str(clip.label) == game]
        found = [places(clip.frames) for clip in some]
        own = error(found, [clip.states * SIZE[0] for clip in some])
        far = error(found, [track * SIZE[0] for track in asked_of(some)])
        rows[f"real frames, {game}"] = own | {"pixels_from_another": far["pixels"]}
        if own["pixels"] < far["pixels"] / 2:
            read.append(game)
    clips = [clip for clip in clips if str(clip.label) in read][: args.clips]
    if not clips:
        return
    asked = asked_of(clips)
    told = [clip._replace(states=states) for clip, states in zip(clips, asked, strict=True)]
    made, free = (
        predict(train(arm, args), told, 1, 32, scratch, states=arm == "states") for arm in ("states", "base")
    )
    found, unled = ([places(video) for video in videos] for videos in (made, free))
    wanted, own = ([track * SIZE[0] for track in tracks] for tracks in (asked, [clip.states for clip in clips]))
    rows["asked for"] = error(found, wanted)
    rows["the clip's own"] = error(found, own)
    rows["first place held"] = error([np.broadcast_to(track[:1], track.shape) for track in own], wanted)
    rows["told nothing"] = error(unled, wanted)
    rows["clips"] = {game: float(sum(str(clip.label) == game for clip in clips)) for game in read}


def long(args: argparse.Namespace, scratch: Path, rows: dict) -> None:
    """FVD to real clips and motion, a value for each 16 frames of 512; with the longer prior where it is an arm."""
    arm = "longer prior" if "longer prior" in args.arms else "base"
    system, clips = train(arm, args), held_out(args, PREDICTED, 5)
    real = np.stack([clip.frames for clip in clips])
    for context in (0, 15):
        system.settings = replace(system.settings, context=context)
        made = predict(system, clips, 1, 512, scratch)
        windows = [made[:, t : t + PREDICTED] for t in range(0, 512, PREDICTED)]
        motion = [float(np.abs(np.diff(w / 255, axis=1)).mean()) for w in windows]
        rows[f"{arm}, context {context}"] = {"fvd": [fvd(w, real) for w in windows], "motion": motion}
    for name, made in {"real": real, **frozen_and_mean(clips, 1, PREDICTED)}.items():
        rows[name] = {"fvd": fvd(made, real), "motion": float(np.abs(np.diff(made / 255, axis=1)).mean())}


def speed(args: argparse.Namespace, scratch: Path, rows: dict) -> None:
    """One video of 16 frames; the released way runs the whole sequence again for every token."""
    system = train("base", args)
    system.eval()
    begun = time.perf_counter()
    torch.cat(list(system.generate([Story(frames=PREDICTED)])), 2)
    rows["cached, decoding included"] = {"frames_a_second": PREDICTED / (time.perf_counter() - begun)}
    layout, device = system.layout, system.device
    ids = layout.prefix(torch.zeros(1, dtype=torch.long), 1).to(device)
    places = torch.cat([torch.zeros(ids.shape[1], dtype=torch.long), layout.frame_places(0, PREDICTED)]).to(device)
    begun = time.perf_counter()
    with torch.inference_mode():
        while ids.shape[1] < len(places):
            logits = system.prior.predict(ids, places[: ids.shape[1]])[:, -1]
            ids = torch.cat([ids, logits.argmax(1, keepdim=True)], 1)
    rows["run again for every token, codes only"] = {"frames_a_second": PREDICTED / (time.perf_counter() - begun)}


MEASURES: dict[str, Callable[[argparse.Namespace, Path, dict], None]] = {
    f.__name__: f for f in (reconstruction, sampling, controls, sound, steering, long, speed)
}
GROWING = ("reconstruction", "sampling")
"""Measures to which --arms adds rows."""
REFERENCE = {
    "reconstruction": ("base, context 15", "psnr", 1),
    "controls": ("base", "ssim_15", 1),
    "sound": ("sound on", "ssim_45", 1),
    "steering": ("asked for", "pixels", -1),
}
"""A row of each measure that must beat its baselines: which, by what, and 1 if more of it is better. None by FVD,
for whose features the autoencoders were trained."""


def values_of(records: list[dict], row: str, key: str) -> list[float]:
    """A cell's value in each record that has it."""
    return [float(np.mean(r["rows"][row][key])) for r in records if key in r["rows"].get(row, {})]


def trained_enough(name: str, records: list[dict]) -> bool:
    """Whether a measure's reference row beats all its baselines, on the mean over seeds."""
    if name not in REFERENCE:
        return True
    row, key, sign = REFERENCE[name]
    if not (own := values_of(records, row, key)):
        return False
    others = [np.mean(found) for name in BASELINES if (found := values_of(records, name, key))]
    return all(sign * np.mean(own) > sign * other for other in others)


def measured(folder: Path, name: str) -> dict[str, dict]:
    """The records of a measure, by file, that have rows already."""
    records = {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob(f"{name}-seed*.json"))}
    return {stem: record for stem, record in records.items() if record["rows"]}


def table(folder: Path) -> str:
    """Markdown: a table a measure, mean over seeds."""
    lines = []
    for name in MEASURES:
        records = list(measured(folder, name).values())
        lines += [f"\n**{name}** ({len(records)} seeds)" if records else f"\n**{name}**: not run"]
        rows = dict.fromkeys(row for record in records for row in record["rows"])
        for row in rows:
            cells = []
            for key in next(r["rows"][row] for r in records if row in r["rows"]):
                values = values_of(records, row, key)
                spread = f" ({min(values):.4g}-{max(values):.4g})" if len(values) > 1 else ""
                cells.append(f"{key} {np.mean(values):.4g}{spread}")
            lines.append(f"- {row}: " + ", ".join(cells))
        if records and not trained_enough(name, records):
            lines.append(f"\nNot trained enough to tell: {REFERENCE[name][0]} does not beat the baselines.")
    return "\n".join(lines)


def plot(records: list[dict], path: Path) -> None:
    """Curves of the measure "long", baselines dotted."""
    if not records:
        return
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(11, 4))
    for axis, key, title in zip(axes, ("fvd", "motion"), ("distance to real clips", "motion"), strict=True):
        for row in records[0]:
            curve = np.mean([np.atleast_1d(rows[row][key]) for rows in records], 0)
            frames = np.arange(len(curve)) * PREDICTED
            if len(curve) > 1:
                axis.plot(frames, curve, label=row)
            else:
                axis.axhline(curve[0], ls=":", color="grey")
                axis.annotate(row, (0, curve[0]), fontsize=8)
        axis.set(title=title, xlabel="frame")
    axes[0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=100)


def run(name: str, args: argparse.Namespace) -> None:
    """One measure: what its record lacks, then the record anew."""
    path = Path(args.output) / f"{name}-seed{args.seed}.json"
    trained = (
        "autoencoder_steps",
        "autoencoder_batch",
        "prior_steps",
        "prior_batch",
        "annotation_weight",
        "precision",
    )
    options = {n: getattr(args, n) for n in ("seed", "clips", "top_k", *trained)} | {
        "library": Library(args.data).hash
    }
    options["held_out"] = Library(args.held_out or args.data).hash
    rows = once(path, options, lambda: {"rows": {}})["rows"]
    if rows and name not in GROWING:
        return
    with tempfile.TemporaryDirectory() as scratch:
        MEASURES[name](args, Path(scratch), rows)
    write_text(path, json.dumps({"rows": rows, "made_with": options}, indent=1) + "\n")


def main() -> None:
    parser = options(__doc__ or "")
    parser.add_argument("--arms", nargs="+", default=[], help="more arms to train and to measure")
    parser.add_argument("--measures", nargs="+", choices=list(MEASURES), default=list(MEASURES))
    parser.add_argument("--table", action="store_true", help="only rewrite docs/results")
    parser.add_argument("--name", default="ccvs_ablation", help="of the files in docs/results")
    args = parser.parse_args()
    folder = Path(args.output)
    if not args.table:
        for arm in args.arms:
            if arm not in arms(args):
                parser.error(f"unknown arm {arm!r}; known: {', '.join(arms(args))}")
            train(arm, args)
        for name in args.measures:
            run(name, args)
    if args.table:
        known = [measured(folder, name) for name in MEASURES]
        publish(RESULTS / f"{args.name}.json", {stem: record for one in known for stem, record in one.items()})
        plot([r["rows"] for r in measured(folder, "long").values()], RESULTS / f"{args.name}_long.png")
    print(table(folder))


if __name__ == "__main__":
    main()
