"""What each metric notices: real videos against real videos that were spoiled, gently and badly.

The videos of a library are divided into two halves, class by class. Clips of one half stand for real ones; those of
the other are spoiled in one way and to one degree, and measured against them. "nothing" is the two halves as they
are: the level that every figure has to be read against. The same run decides whether a classifier may be bundled:
the Frechet distance on its features must rise under freezing, shuffling, reversal and double speed.

    longtake data sample atari -o data/atari-held-out --minutes 60 --size 48 --seed 1
    python experiments/metric_responses.py --data data/atari-held-out --extractor runs/r3d-atari --name atari
    python experiments/metric_responses.py --table     # docs/results/metric_responses.md from all runs

The classifier must not have seen the library. Writes docs/results/metric_responses_NAME_FRAMES.json.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from longtake.data.library import Library
from longtake.metrics.estimate import frechet_interval
from longtake.metrics.extractors.base import Extractor
from longtake.metrics.extractors.registry import make_extractor
from longtake.metrics.frechet import Moments, frechet_distance
from longtake.metrics.images import histogram_correlation, psnr, ssim
from longtake.metrics.mmd import polynomial_mmd
from longtake.metrics.motion import MotionMeter, longest_repeat, longest_still
from longtake.metrics.real import clip_of
from longtake.metrics.records import MOST_DECIBEL
from longtake.metrics.scores import coherence, inception_score
from longtake.metrics.seam import strongest_period

RESULTS = Path(__file__).parents[1] / "docs" / "results"
WINDOW = 16
Clips = np.ndarray
"""uint8 (N, T, H, W, 3)"""


def as_tensor(clips: Clips) -> torch.Tensor:
    return torch.from_numpy(clips).float()


def as_bytes(values: torch.Tensor) -> Clips:
    return values.round().clamp(0, 255).to(torch.uint8).numpy()


def noise(clips: Clips, deviation: float) -> Clips:
    """Gaussian noise on every pixel, of that standard deviation in grey levels."""
    drawn = torch.randn(clips.shape, generator=torch.Generator().manual_seed(0))
    return as_bytes(as_tensor(clips) + deviation * drawn)


def blur(clips: Clips, deviation: float) -> Clips:
    """Gaussian blur of every frame, of that standard deviation in pixels."""
    reach = max(1, round(3 * deviation))
    taps = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / deviation) ** 2)
    taps = (taps / taps.sum()).view(1, 1, -1)
    x = as_tensor(clips).movedim(-1, 2).flatten(0, 2)[:, None]
    x = F.conv2d(F.pad(x, (reach, reach, 0, 0), mode="replicate"), taps[:, :, None])
    x = F.conv2d(F.pad(x, (0, 0, reach, reach), mode="replicate"), taps[..., None])
    n, t, h, w, c = clips.shape
    return as_bytes(x.view(n, t, c, h, w).movedim(2, -1))


def freeze(clips: Clips, share: float) -> Clips:
    """The last share of each clip is one still."""
    frames = clips.shape[1]
    last = min(frames - 1, round((1 - share) * frames))
    return clips[:, np.minimum(np.arange(frames), last)]


def shuffle(clips: Clips, reach: int) -> Clips:
    """Frames are shuffled within stretches of that many."""
    rng, frames = np.random.default_rng(0), clips.shape[1]
    stretch = np.arange(frames) // reach
    order = [np.lexsort((rng.random(frames), stretch)) for _ in clips]
    return np.stack([clip[o] for clip, o in zip(clips, order, strict=True)])


def loop(clips: Clips, period: int) -> Clips:
    """The first frames over and over."""
    return clips[:, np.arange(clips.shape[1]) % period]


def reverse(clips: Clips, _) -> Clips:
    return clips[:, ::-1]


def spoilings(frames: int) -> list[tuple[str, Callable, list]]:
    """What is done to clips of so many frames, from gently to badly."""
    return [
        ("noise", noise, [5, 10, 20, 40]),
        ("blur", blur, [0.5, 1, 2, 4]),
        ("frozen", freeze, [0.25, 0.5, 0.75, 1]),
        ("shuffled within", shuffle, [2, 4, 8, 16] if frames == 16 else [2, 8, 32, 128]),
        ("looped every", loop, [8, 4, 2] if frames == 16 else [64, 32, 16]),
        ("reversed", reverse, [""]),
    ]


def halves(library: Library) -> tuple[list[int], list[int]]:
    """Rows of all videos, every second one of each class to either side; a single one gives a half of itself."""
    rows = sorted(range(len(library.rows)), key=lambda i: library.rows[i].label or "")
    sides: tuple[list[int], list[int]] = ([], [])
    for _, group in groupby(rows, key=lambda i: library.rows[i].label):
        for place, row in enumerate(group):
            sides[place % 2].append(row)
    return sides


def clips_of(
    library: Library, rows: list[int], frames: int, each: int, size: tuple[int, int], step: int = 1
) -> tuple[Clips, np.ndarray]:
    """Up to `each` evenly spread clips a video, and the video of each."""
    clips, of = [], []
    for row in rows:
        room = library.rows[row].frames - frames * step
        if room < 0:
            continue
        count = min(each, 1 + room // (frames * step))
        for i in range(count):
            start = round(i * room / max(1, count - 1))
            clips.append(clip_of(library, row, range(start, start + frames * step, step), size))
            of.append(row)
    return np.stack(clips), np.array(of)


def features(extractor: Extractor, clips: Clips) -> tuple[np.ndarray, np.ndarray | None]:
    """(N, D), and class probabilities (N, K) where there are any."""
    parts = [extractor(clips[i : i + 32]) for i in range(0, len(clips), 32)]
    found = [p.probabilities for p in parts if p.probabilities is not None]
    return np.concatenate([p.features for p in parts]), np.concatenate(found) if found else None


def per_video(clips: Clips, untouched: Clips | None) -> dict[str, float]:
    """Figures that need no features, mean over clips."""
    meters = []
    for part in np.array_split(clips, max(1, len(clips) // 32)):
        meter = MotionMeter()
        meter.push(as_tensor(part).movedim(-1, 1).div_(127.5).sub_(1))
        meters.append(meter)
    differences = np.concatenate([m.differences for m in meters])
    signature = np.concatenate([m.signature for m in meters])
    found = {
        "motion": differences.mean(),
        "still": np.mean([longest_still(d) for d in differences]),
        "repeat": np.mean([longest_repeat(s) for s in signature]),
        "seam_any_period": np.mean([strongest_period(d)[1] for d in differences]),
        "histogram_correlation": np.mean([histogram_correlation(c[:1], c[-1:])[0] for c in clips]),
    }
    if untouched is not None:
        few = 64 * WINDOW // clips.shape[1]
        pairs = list(zip(clips[:few], untouched[:few], strict=True))
        found["PSNR"] = np.mean([psnr(a, b).clip(max=MOST_DECIBEL).mean() for a, b in pairs])
        found["SSIM"] = np.mean([ssim(a, b).mean() for a, b in pairs])
    return {name: float(value) for name, value in found.items()}


def over_windows(extractor: Extractor, clips: Clips) -> dict[str, float]:
    """Coherence over the 16-frame windows of long clips."""
    n, t = clips.shape[:2]
    windows = clips[:, : t - t % WINDOW].reshape(n * (t // WINDOW), WINDOW, *clips.shape[2:])
    probabilities = features(extractor, windows)[1]
    if probabilities is None:
        return {}
    found = coherence(probabilities.reshape(n, t // WINDOW, -1).swapaxes(0, 1))
    return {"CCS-area": found.ccs_area, "ICS-last": float(found.ics[-1])}


def rise(real, plain, spoiled, resamples: int = 60) -> tuple[float, float]:
    """95 % bootstrap interval of how much farther the spoiled set is from real clips than the plain one, each
    resample drawing the same videos for both."""
    rng, sides = np.random.default_rng(0), []
    for features_, of in (real, plain, spoiled):
        sides.append({v: features_[of == v] for v in np.unique(of)})
    values = []
    for _ in range(resamples):
        left = rng.choice(list(sides[0]), len(sides[0]))
        right = rng.choice(sorted(sides[1].keys() & sides[2].keys()), len(sides[2]))
        target = Moments.of(np.concatenate([sides[0][v] for v in left]))
        near, far = (
            frechet_distance(np.concatenate([side[v] for v in right]), target) for side in (sides[1], sides[2])
        )
        values.append(far - near)
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


def measure(extractor: Extractor, real, made: Clips, of: np.ndarray, untouched: Clips | None, plain=None) -> dict:
    """Every figure of one spoiled set; `plain` are the features of the set before it was spoiled."""
    real_features, of_real = real
    fake, probabilities = features(extractor, made)
    interval = frechet_interval(fake, real_features, of, of_real, 1, 30)
    assert interval is not None
    found = {
        "FVD": frechet_distance(fake, real_features),
        "FVD_half_width": (interval[1] - interval[0]) / 2,
        "FVD_rise": rise(real, plain or (fake, of), (fake, of)),
        "KVD": polynomial_mmd(fake, real_features),
        **per_video(made, untouched),
    }
    if probabilities is not None:
        order = np.random.default_rng(42).permutation(len(probabilities))
        score = inception_score(probabilities[order], min(10, len(order)))
        found |= {"IS": score.mean, "H(y)": score.inter_entropy, "H(y|x)": score.intra_entropy}
    if made.shape[1] >= 4 * WINDOW:
        found |= over_windows(extractor, made)
    return found


def run(args: argparse.Namespace, frames: int) -> dict:
    """All spoilings of one library at one length."""
    library, extractor = Library(args.data), make_extractor(args.extractor)
    size = library.header.size
    left, right = halves(library)
    clips, of_real = clips_of(library, left, frames, args.each, size)
    real = (features(extractor, clips)[0], of_real)
    del clips
    made, of = clips_of(library, right, frames, args.each, size)
    plain = (features(extractor, made)[0], of)
    rows = [{"spoiling": "nothing", "degree": "", **measure(extractor, real, made, of, None)}]
    for name, spoil, degrees in spoilings(frames):
        for degree in degrees:
            spoiled = np.ascontiguousarray(spoil(made, degree))
            rows.append({"spoiling": name, "degree": degree, **measure(extractor, real, spoiled, of, made, plain)})
            print(f"{frames} frames, {name} {degree}: FVD {rows[-1]['FVD']:.4g}", flush=True)
    fast, of_fast = clips_of(library, right, frames, args.each, size, step=2)
    # A fast clip takes twice the time, so a video has fewer of them; fewer clips are further off by themselves.
    alike = np.concatenate([np.flatnonzero(of == row)[: (of_fast == row).sum()] for row in np.unique(of_fast)])
    plain = (plain[0][alike], of[alike])
    rows.append({"spoiling": "double speed", "degree": "", **measure(extractor, real, fast, of_fast, None, plain)})
    return {
        "name": args.name,
        "frames": frames,
        "library": library.hash,
        "videos": [len(set(of_real.tolist())), len(set(of.tolist()))],
        "clips": [len(of_real), len(of)],
        "size": list(size),
        "extractor": {"name": extractor.name, "hash": extractor.hash},
        "rows": rows,
        "accepted": accepted(rows),
    }


def accepted(rows: list[dict]) -> dict[str, bool]:
    """Whether the distance rises, at the worst degree, under what a still cannot show."""
    worst = {row["spoiling"]: row["FVD_rise"][0] > 0 for row in rows}
    return {name: worst[name] for name in ("frozen", "shuffled within", "reversed", "double speed")}


COLUMNS = (
    ("FVD", "{:.3g}"),
    ("FVD_rise", "{0[0]:.3g} to {0[1]:.3g}"),
    ("KVD", "{:.2g}"),
    ("IS", "{:.2f}"),
    ("H(y|x)", "{:.3f}"),
    ("CCS-area", "{:.3f}"),
    ("ICS-last", "{:.3g}"),
    ("motion", "{:.4f}"),
    ("still", "{:.1f}"),
    ("repeat", "{:.1f}"),
    ("seam_any_period", "{:.2f}"),
    ("histogram_correlation", "{:.3f}"),
    ("PSNR", "{:.1f}"),
    ("SSIM", "{:.3f}"),
)


def table(record: dict) -> str:
    """One run as Markdown."""
    rows = record["rows"]
    columns = [(name, form) for name, form in COLUMNS if any(name in row for row in rows)]
    title = f"## {record['name']}, clips of {record['frames']} frames"
    said = ", ".join(f"{name}: {'yes' if ok else 'no'}" for name, ok in record["accepted"].items())
    lines = [
        title,
        "",
        f"{record['clips'][0]} real clips of {record['videos'][0]} videos against {record['clips'][1]} of "
        f"{record['videos'][1]} others, {record['size'][0]}x{record['size'][1]}, extractor "
        f"{record['extractor']['name']}. FVD rises (beyond chance) under {said}.",
        "",
        "| spoiled | " + " | ".join(name.replace("|", "&#124;") for name, _ in columns) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for row in rows:
        cells = [form.format(row[name]) if name in row else "" for name, form in columns]
        cells[0] += f" ± {row['FVD_half_width']:.2g}"
        lines.append(f"| {row['spoiling']} {row['degree']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


HEAD = """# What each metric notices

Made by `experiments/metric_responses.py`: real clips against the other half of the same footage, as it is and
spoiled in one way at a time. Noise in grey levels (standard deviation), blur in pixels, frozen as the share of the
clip that is one still, shuffled within stretches of so many frames, looped every so many frames. FVD and KVD are on
the features of the named extractor; `±` is 1.96 bootstrap deviations over videos, and FVD_rise the 95 % interval of
FVD less that of "nothing", the same videos drawn for both; "rises" is judged at the strongest degree. PSNR and SSIM
compare a spoiled clip with itself, the first 64 clips of 16 frames or 8 of 128.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data")
    parser.add_argument("--extractor", default="r3d-atari")
    parser.add_argument("--name", help="of the footage")
    parser.add_argument("--frames", type=int, nargs="+", default=[16, 128])
    parser.add_argument("--each", type=int, default=16, help="clips a video at most")
    parser.add_argument("--table", action="store_true", help="only rewrite the table")
    args = parser.parse_args()
    RESULTS.mkdir(parents=True, exist_ok=True)
    for frames in [] if args.table else args.frames:
        record = run(args, frames)
        print(record["accepted"])
        file = RESULTS / f"metric_responses_{args.name}_{frames}.json"
        file.write_text(json.dumps(record, indent=1) + "\n")
    records = [json.loads(p.read_text()) for p in sorted(RESULTS.glob("metric_responses_*.json"))]
    text = "\n".join([HEAD, *(table(r) + "\n" for r in records)])
    (RESULTS / "metric_responses.md").write_text(text)


if __name__ == "__main__":
    main()
