"""From records to figures and curves: a pure function, whoever made the records and in how many processes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from longtake.metrics.cuts import LEVEL, WINDOW
from longtake.metrics.diversity import change_as_flow, diversity, moving_parts, nearest_distances
from longtake.metrics.estimate import (
    RESAMPLES,
    extrapolate,
    frechet_interval,
    inception_interval,
    mean_interval,
    median_ratio_interval,
    percentiles,
)
from longtake.metrics.extractors.base import Extractor
from longtake.metrics.frechet import Moments, frechet_distance
from longtake.metrics.images import histogram_correlation
from longtake.metrics.mmd import video_mmd
from longtake.metrics.motion import longest_repeat, longest_still
from longtake.metrics.protocol import Protocol
from longtake.metrics.records import Record
from longtake.metrics.result import Curve, Figure
from longtake.metrics.scores import coherence, inception_score
from longtake.metrics.seam import joins, seam_ratio, strongest_period
from longtake.nn.perceptual import PerceptualDistance

TAIL = 128
"""Frames at the end of a video whose motion is reported on its own."""
LEAST_OF_CURVE = 8
"""Fewest videos for a distance at every window."""
LEAST_OF_SPLIT = 50
"""Fewest videos in a split of the inception score: with fewer than classes it is bounded by their number."""
ACCUMULATORS, BLOCK = 1 << 28, 64
"""Bytes that the covariances of windows may take at a time, and videos whose features are held meanwhile."""

Figures = dict[str, Figure]
Curves = dict[str, Curve]


def distances(protocol: Protocol, extractor: Extractor, records: Sequence[Record], real: Record) -> Figures:
    """FVD and KVD of every clip kind that both sides have enough of, and the ratio FVD16/FVD128."""
    name, found = extractor.name, {}
    for kind in protocol.clips:
        key = f"clip/{kind.name}"
        if len(real.get(key, ())) < protocol.least_videos or f"{name}/{key}" not in records[0]:
            continue
        fake = np.concatenate([r[f"{name}/{key}"] for r in records])
        of_fake, of_real = np.arange(len(fake)), real[f"of/{kind.name}"]
        found |= _distance(
            f"FVD{kind.name}[{name}]", f"KVD{kind.name}[{name}]", protocol, fake, real[key], of_fake, of_real
        )
    first, long = f"FVD16[{name}]", f"FVD128[{name}]"
    if first in found and long in found and found[long].value > 0:
        ratio = found[first].value / found[long].value
        note = "alone it rewards bad short clips: read it beside both"
        found[f"FVD16/FVD128[{name}]"] = Figure(ratio, None, "", found[long].samples, note)
    return found


def frame_distances(protocol: Protocol, extractor: Extractor, records: Sequence[Record], real: Record) -> Figures:
    """FID and KID over the frames of the first window; a video's frames are taken together wherever it is drawn."""
    name = extractor.name
    fake = [r[f"{name}/frames"] for r in records]
    of_fake = np.repeat(np.arange(len(fake)), [len(f) for f in fake])
    return _distance(
        f"FID[{name}]",
        f"KID[{name}]",
        protocol,
        np.concatenate(fake),
        real["frames"],
        of_fake,
        real["of/frames"],
    )


def _distance(frechet: str, kernel: str, protocol: Protocol, fake, real, of_fake, of_real) -> Figures:
    ddof = int(protocol.covariance == "unbiased")
    videos, real_videos = len(np.unique(of_fake)), len(np.unique(of_real))
    few = f"real clips of only {real_videos} videos" if real_videos < protocol.least_videos else ""
    interval = frechet_interval(fake, real, of_fake, of_real, ddof, protocol.bootstrap)
    value = frechet_distance(fake, real, ddof)
    notes = [*_bias_notes(protocol, fake, real, videos), few]
    found = {frechet: Figure(value, interval, "", videos, _joined(notes))}
    enough = protocol.name == "longtake-1" and videos >= 4 * protocol.least_videos
    if enough and (limit := extrapolate(fake, real, of_fake, ddof)):
        note = f"bias at N={videos}: {value - limit.value:+.4g}"
        found[f"{frechet}-infinity"] = Figure(limit.value, None, "", videos, note)
    if min(videos, real_videos) > 1:  # of one video there are no pairs but its own
        mmd = video_mmd(fake, real, of_fake, of_real, RESAMPLES if protocol.bootstrap else 0)
        note = _joined(["unbiased: all pairs but those within a video", few])
        found[kernel] = Figure(mmd.value, percentiles(mmd.resampled), "", videos, note)
    return found


def _joined(notes: list[str]) -> str:
    return "; ".join(note for note in notes if note)


def _bias_notes(protocol: Protocol, fake: np.ndarray, real: np.ndarray, videos: int) -> list[str]:
    notes = []
    if videos < protocol.trusted_videos:
        notes.append(f"biased upwards: {videos} generated videos, trusted from {protocol.trusted_videos}")
    if min(len(fake), len(real)) <= fake.shape[1]:
        notes.append(f"fewer clips than the {fake.shape[1]} features")
    return notes


def classes(protocol: Protocol, extractor: Extractor, records: Sequence[Record]) -> tuple[Figures, Curves]:
    """Inception score and entropies of the first windows, CCS and ICS over all."""
    key = f"{extractor.name}/classes"
    if key not in records[0]:
        return {}, {}
    p = np.stack([r[key] for r in records], 1)  # (W, N, K)
    n, name = p.shape[1], extractor.name
    splits = max(1, min(protocol.splits, n // LEAST_OF_SPLIT))
    order = np.random.default_rng(42).permutation(n)  # classes may come in turn
    score = inception_score(p[0][order], splits)
    interval = inception_interval(p[0][order], splits, protocol.bootstrap)
    bound = f"at most {p.shape[2]} (classes); {splits} {'splits' if splits > 1 else 'split'}"
    figures = {
        f"IS[{name}]": Figure(score.mean, interval, "", n, bound),
        f"H(y)[{name}]": Figure(score.inter_entropy, None, "nats", n, f"at most {np.log(p.shape[2]):.3f}"),
        f"H(y|x)[{name}]": Figure(score.intra_entropy, None, "nats", n),
    }
    if len(p) < 2:
        return figures, {}
    found = coherence(p)
    stays = (p.argmax(-1) == p[0].argmax(-1)).astype(float)  # (W, N)
    areas = np.trapezoid(stays, dx=1 / (len(p) - 1), axis=0)  # a video's own, of which CCS-area is the mean
    figures[f"CCS-area[{name}]"] = Figure(found.ccs_area, mean_interval(areas), "", n, "1 is perfect")
    figures[f"CCS-last[{name}]"] = Figure(float(found.ccs[-1]), None, "", n, "share of videos in the last window")
    x = [float(i * protocol.window) for i in range(len(p))]
    return figures, {
        f"CCS[{name}]": Curve(x, found.ccs.tolist(), "share of videos", n),
        f"ICS[{name}]": Curve(x, found.ics.tolist(), "nats", n),
    }


def window_curves(protocol: Protocol, extractor: Extractor, records: Sequence[Record], real: Record) -> Curves:
    """Frechet distance of every window: to the first windows of the same videos, and to real clips."""
    key, n = f"{extractor.name}/windows", len(records)
    if key not in records[0] or n < LEAST_OF_CURVE:
        return {}
    ddof = int(protocol.covariance == "unbiased")
    real_clips = f"clip/{protocol.window}"
    target = Moments.of(real[real_clips]) if real_clips in real else None
    first, change, quality = None, [], []
    for moments in _window_moments(key, records):
        first = first or moments
        change.append(frechet_distance(first, moments, ddof))
        if target:
            quality.append(frechet_distance(target, moments, ddof))
    x = [float(i * protocol.window) for i in range(len(change))]
    curves = {f"FVD-change[{extractor.name}]": Curve(x, change, "to the first window", n)}
    if target:
        curves[f"FVD-window[{extractor.name}]"] = Curve(x, quality, "to real clips", n)
    return curves


def _window_moments(key: str, records: Sequence[Record]) -> Iterator[Moments]:
    """Moments over videos of every window, without the features of all windows of all videos at a time."""
    count, dim = records[0][key].shape
    together = max(1, ACCUMULATORS // (8 * dim * dim))
    for start in range(0, count, together):
        part = [Moments(dim) for _ in range(start, min(start + together, count))]
        for i in range(0, len(records), BLOCK):
            block = np.stack([r[key][start : start + together] for r in records[i : i + BLOCK]], 1)
            for moments, features in zip(part, block, strict=True):
                moments.add(features)
        yield from part


def memorisation(extractor: Extractor, records: Sequence[Record], train: Record, test: Record) -> Figures:
    """How near the nearest training clip is, of how near it is to held-out real clips; far below 1: copies."""
    key = "clip/16"
    name = f"{extractor.name}/{key}"
    if key not in train or key not in test or name not in records[0]:
        return {}
    near = nearest_distances(np.concatenate([r[name] for r in records]), train[key])
    usual = nearest_distances(test[key], train[key])
    if np.median(usual) <= 0:
        return {}
    value, interval = np.median(near) / np.median(usual), median_ratio_interval(near, usual, test["of/16"])
    note = "of test clips' own, medians; far below 1 means copies"
    return {f"nearest-train[{extractor.name}]": Figure(float(value), interval, "", len(near), note)}


def over_time(
    records: Sequence[Record],
    real: Sequence[Record],
    seam_period: int | None,
    seam_first: int | None = None,
    given: int = 0,
) -> tuple[Figures, Curves]:
    """Motion, seams, stills and repeats, first frame against last; needs no extractor. Records begin after `given`
    frames of the videos."""
    figures: Figures = {}
    sides = {"": records, "_real": real}
    for suffix, side in sides.items():
        if not side:
            continue
        n, differences = len(side), [r["differences"] for r in side]
        motion = np.array([d.mean() for d in differences])
        figures[f"motion{suffix}"] = Figure(
            float(motion.mean()), mean_interval(motion), "mean |frame difference| on [-1, 1]", n
        )
        for name, longest in (
            ("still", [longest_still(d) for d in differences]),
            ("repeat", [longest_repeat(r["signature"]) for r in side]),
        ):
            figures[f"longest_{name}{suffix}"] = Figure(float(max(longest)), None, "frames", n)
        blind = np.array([strongest_period(d)[1] for d in differences])
        note = "largest over all periods, so above 1 by chance too"
        figures[f"seam_any_period{suffix}"] = Figure(float(blind.mean()), mean_interval(blind), "", n, note)
        if seam_period:
            seam = np.array([seam_ratio(d, seam_period, seam_first) for d in differences])
            since = f" from frame {seam_first} on" if seam_first else ""
            note = f"joins every {seam_period} frames{since}; 1 means none to be seen"
            figures[f"seam{suffix}"] = Figure(float(seam.mean()), mean_interval(seam), "", n, note)
    if real and records:
        level = max(figures["motion_real"].value, 1e-9)
        ratios = np.array([r["differences"].mean() for r in records]) / level
        figures["motion_ratio"] = Figure(float(ratios.mean()), mean_interval(ratios), "of real", len(records))
        if len(records[0]["differences"]) > TAIL:
            tail = np.array([r["differences"][-TAIL:].mean() for r in records]) / level
            figures[f"motion_ratio_last_{TAIL}"] = Figure(
                float(tail.mean()), mean_interval(tail), "of real", len(records)
            )
    figures |= _reference(records, given)
    histogram = np.array([histogram_correlation(r["first"][None], r["last"][None])[0] for r in records])
    figures["histogram_correlation"] = Figure(
        float(histogram.mean()), mean_interval(histogram), "first to last frame, 64 bins", len(records)
    )
    return figures, _motion_curve(records) | reference_curves(records)


def perceptual(name: str, distance: PerceptualDistance, records: Sequence[Record]) -> Figures:
    """LPIPS between the first and the last frame (TATS Tab. 2)."""
    with torch.no_grad():
        pairs = (
            torch.from_numpy(np.stack([r["first"], r["last"]])).permute(0, 3, 1, 2) / 127.5 - 1 for r in records
        )
        values = np.array([float(distance(p[:1], p[1:])) for p in pairs])
    return {f"LPIPS-first-last[{name}]": Figure(float(values.mean()), mean_interval(values), "", len(values))}


def text_match(name: str, records: Sequence[Record]) -> Figures:
    """CLIPSIM and Loong's VTM over evenly spread frames, each with the text that holds at its time."""
    values = np.array([np.nanmean(r["text"]) for r in records])
    interval = mean_interval(values)
    scaled = (100 * interval[0], 100 * interval[1]) if interval else None
    note = f"cosine, mean over those of {len(records[0]['text'])} frames a video that have a text"
    return {
        f"CLIPSIM[{name}]": Figure(float(values.mean()), interval, "", len(values), note),
        f"VTM[{name}]": Figure(100 * float(values.mean()), scaled, "", len(values), "100 times CLIPSIM"),
    }


def shot_cuts(
    name: str, records: Sequence[Record], seam_period: int | None, seam_first: int | None = None
) -> tuple[Figures, Curves]:
    """Cuts that a detector sees, a thousand frames, and its mean probability at joins against elsewhere."""
    table = np.stack([r["cuts"] for r in records])
    cut = table > LEVEL
    begins = cut[:, :1].sum(1) + (cut[:, 1:] & ~cut[:, :-1]).sum(1)  # a dissolve is one cut of several frames
    rate = 1000 * begins / table.shape[1]
    figures = {
        f"cuts[{name}]": Figure(float(rate.mean()), mean_interval(rate), "a thousand frames", len(table)),
    }
    if seam_period and table.shape[1] > (seam_first or seam_period):
        # the cut is told at the last frame before it
        places = np.isin(np.arange(table.shape[1]), joins(seam_period, seam_first, table.shape[1] - 1))
        at, elsewhere = table[:, places].mean(1), table[:, ~places].mean(1)
        note = f"elsewhere {elsewhere.mean():.3g}"
        figures[f"cut-at-joins[{name}]"] = Figure(
            float(at.mean()), mean_interval(at), "probability", len(table), note
        )
    x = [float(i) for i in range(0, table.shape[1], WINDOW)]
    y = [float(table[:, i : i + WINDOW].max(1).mean()) for i in range(0, table.shape[1], WINDOW)]
    return figures, {f"cut[{name}]": Curve(x, y, "largest probability in 100 frames", len(table))}


def diversity_of(records: Sequence[Record], per_condition: int) -> Figures:
    """DIV of the first windows among the samples of each condition, everywhere and where something moves."""
    whole, moving = [], []
    for start in range(0, len(records), per_condition):
        samples = np.stack([r["opening"] for r in records[start : start + per_condition]]) / 255
        whole.append(diversity(samples))
        moving.append(diversity(samples, np.stack([moving_parts(change_as_flow(s)) for s in samples])))
    unit = f"mean squared difference on [0, 1], {per_condition} samples a condition"
    note = "moving: change of at least a fifth of the video's largest, in place of optical flow"
    return {
        "DIV": Figure(float(np.mean(whole)), mean_interval(np.array(whole)), unit, len(records)),
        "DIV-moving": Figure(float(np.mean(moving)), mean_interval(np.array(moving)), unit, len(records), note),
    }


def reference_curves(records: Sequence[Record]) -> Curves:
    """PSNR and SSIM at every frame, where each video has a real one to be compared with."""
    if "psnr" not in records[0]:
        return {}
    x = [float(i) for i in range(len(records[0]["psnr"]))]
    return {
        name: Curve(x, np.stack([r[key] for r in records]).mean(0).tolist(), unit, len(records))
        for name, key, unit in (("PSNR", "psnr", "dB"), ("SSIM", "ssim", ""))
    }


def _reference(records: Sequence[Record], given: int) -> Figures:
    """PSNR and SSIM over all frames, and of the 16th, 30th and 45th frame of the video (CCVS Tab. 6).

    As in the code of CCVS, given frames count, so that after 15 of them the 16th is the first that was made; those
    that were given have no figure. Its code enlarges frames to 161 pixels first, which is not done here.
    """
    found: Figures = {}
    for name, key, unit in (("PSNR", "psnr", "dB"), ("SSIM", "ssim", "")):
        if key not in records[0]:
            continue
        table = np.stack([r[key] for r in records])
        found[name] = Figure(float(table.mean()), mean_interval(table.mean(1)), unit, len(table), "over all frames")
        for frame in (16, 30, 45):
            if given < frame <= given + table.shape[1]:
                column = table[:, frame - 1 - given]
                note = f"frame {frame} of the video" + (f", {given} of them given" if given else "")
                found[f"{name}@{frame}"] = Figure(
                    float(column.mean()), mean_interval(column), unit, len(column), note
                )
    return found


def _motion_curve(records: Sequence[Record], every: int = 16) -> Curves:
    differences = np.stack([r["differences"] for r in records]).mean(0)
    parts = [differences[i : i + every] for i in range(0, len(differences), every)]
    x = [float(i * every) for i in range(len(parts))]
    return {"motion": Curve(x, [float(p.mean()) for p in parts], "mean |frame difference|", len(records))}
