"""Measure videos under a protocol: generate what is missing, keep a record of each video, sum up.

An evaluation folder holds

    result.json          figures, curves, and the protocol they were measured under
    records/             one small file a video; what is there is not made again
    video-000.mp4 ...    the first few videos, to look at
    sheet.png            frames of them

so a killed evaluation goes on where it was, and processes started by torchrun share the work.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from longtake import __version__
from longtake.data import video
from longtake.data.library import Library
from longtake.errors import UserError
from longtake.files import write_text
from longtake.metrics import summary
from longtake.metrics.cuts import CutDetector
from longtake.metrics.extractors.base import Extractor
from longtake.metrics.protocol import FIRST_16, Protocol
from longtake.metrics.queue import FeatureQueue
from longtake.metrics.real import (
    check_rate,
    check_size,
    real_clips,
    real_counts,
    real_features,
    real_motion,
    real_rows,
)
from longtake.metrics.records import Record, StoredRecord, VideoMeter, kinds_within, usable, write_record
from longtake.metrics.result import Result
from longtake.metrics.sources import FolderSource, Source
from longtake.metrics.text import ClipScorer, spread_frames
from longtake.nn.perceptual import PerceptualDistance
from longtake.systems.folder import weights_hash

Progress = Callable[[int, int], None]
SHOTS = 16
NEIGHBOURS: dict[str, Any] = {
    "real_split": "train",
    "real_videos": 512,
    "real_choice": "spread",
    "clips": (FIRST_16,),
}
"""Among which training clips the nearest is looked for."""


@dataclass(frozen=True)
class OwnWeights:
    """Measurements that need weights which the user brings; what is None is left out."""

    lpips: PerceptualDistance | None = None
    """First frame against last."""
    clip: ClipScorer | None = None
    """How well frames fit their texts."""
    cuts: CutDetector | None = None
    """Where a long video cuts."""


def evaluate(
    source: Source,
    library: Library,
    output: str | Path,
    protocol: Protocol,
    extractors: Sequence[Extractor],
    batch: int = 8,
    keep: int = 8,
    seed: int = 0,
    own: OwnWeights | None = None,
    progress: Progress | None = None,
) -> Result | None:
    """Measure the videos of a source against a library.

    Args:
        source: a model or a folder of videos.
        library: real videos.
        output: folder of the evaluation; made, or taken up where a killed one stopped.
        protocol: how.
        extractors: of the distances and class scores; none: only what needs no features.
        batch: videos generated together.
        keep: so many of the videos are also written as files.
        seed: of random real clips.
        own: measurements by weights that the user brings.
        progress: called with (frames measured, frames).

    Returns:
        The result; None in all processes but the first.

    Raises:
        UserError: too few or too short videos, unfitting sizes or rates, a folder of another evaluation.
    """
    if isinstance(source, FolderSource) and Path(output).resolve() == source.folder.resolve():
        raise UserError(
            f"-o {output} is the folder of the videos, which would be overwritten; choose another", code=2
        )
    check_size(library, source.size)
    check_rate(library, source.fps)
    check_counts(source, library, protocol, extractors)
    own = own or OwnWeights()
    _check_texts(source, own.clip)
    folder = Path(output)
    rank, world = _processes()
    stated = _protocol(source, library, protocol, extractors, own, seed)
    if rank == 0:
        _claim(folder, {"model": source.identity(), "protocol": stated})
    _barrier(world)
    _measure(source, folder, protocol, extractors, own, batch, keep, rank, world, progress)
    _barrier(world)
    if rank:
        return None
    records = [StoredRecord(_record(folder, i)) for i in range(source.count)]
    figures, curves = _summarise(source, library, protocol, extractors, records, seed)
    if source.per_condition > 1:
        figures |= summary.diversity_of(records, source.per_condition)
    if own.clip is not None:
        figures |= summary.text_match(own.clip.name, records)
    if own.lpips is not None:
        figures |= summary.perceptual(perceptual_identity(own.lpips)["name"], own.lpips, records)
    if own.cuts is not None:
        more, lines = summary.shot_cuts(own.cuts.name, records, source.seam_period, source.seam_first)
        figures |= more
        curves |= lines
    result = Result(source.identity(), stated, figures, curves)
    result.write(folder / "result.json")
    return result


def check_counts(source: Source, library: Library, protocol: Protocol, extractors: Sequence[Extractor]) -> None:
    """Refuse what cannot give a meaningful figure, before anything is made."""
    shortest = protocol.window if extractors else 2
    if source.frames < shortest:
        raise UserError(f"videos of {source.frames} frames are too short; {shortest} is the least", code=2)
    if not extractors:
        return
    least = protocol.least_videos
    if source.count < least:
        raise UserError(
            f"{source.count} videos are too few for a distance between distributions; make at least {least} "
            "(--videos), or leave the extractor out (--extractor none)",
            code=2,
        )
    kinds = kinds_within(protocol, source.frames)
    if kinds and (clips := real_clips(library, protocol, kinds[0])) < least:
        have = len(real_rows(library, protocol, kinds[0].span))
        raise UserError(
            f"{library.path} gives {clips} real clips under protocol {protocol.name} ({protocol.real_split} split, "
            f"{have} videos that are long enough); {least} is the least: prepare more videos"
        )
    for extractor in extractors:
        if extractor.most != 1 and not any(usable(extractor, k.frames) for k in kinds):
            raise UserError(f"the extractor {extractor.name} takes none of the clips of protocol {protocol.name}")
    names = [e.name for e in extractors]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"two extractors are called {twice}; give each once", code=2)


def _check_texts(source: Source, scorer: ClipScorer | None) -> None:
    if scorer is None:
        return
    shown = spread_frames(source.frames, SHOTS)
    for number in range(source.count):
        if all(source.text(number, frame) is None for frame in shown):
            raise UserError(
                f"video {number} has no text to be compared with; leave --clip out, use a model that takes "
                "prompts, or put a captions.csv (columns file, text) beside the videos",
                code=2,
            )


def perceptual_identity(distance: PerceptualDistance) -> dict[str, str]:
    """Name and hash of the network that compares two frames. The name, which stands in the figure's, holds the kind
    of network and part of the hash, so that no two networks share a figure."""
    digest = weights_hash(distance.state_dict())
    scale = f"-x{distance.scale:g}" if distance.scale != 1 else ""
    return {"name": f"{type(distance.features).__name__.lower()}-{digest[:8]}{scale}", "hash": digest}


def _real_counts(source: Source, library: Library, protocol: Protocol) -> dict[str, dict[str, int]]:
    """Videos and clips on the real side, by kind of clip."""
    counts = {k.name: real_counts(library, protocol, k) for k in kinds_within(protocol, source.frames)}
    return {name: {"videos": videos, "clips": clips} for name, (videos, clips) in counts.items()}


def _protocol(source, library, protocol: Protocol, extractors, own, seed: int) -> dict[str, Any]:
    """All that figures depend on, in plain data."""
    return json.loads(
        json.dumps(
            {
                **asdict(protocol),
                "frames": source.frames,
                "fake_videos": source.count,
                "fps": source.fps,
                "size": list(source.size),
                "library": library.hash,
                "library_fps": library.fps,
                "library_split": {name: len(library.split(name)) for name in ("train", "test")},
                "real_counts": _real_counts(source, library, protocol),
                "real_seed": seed,
                "real_resize": "antialiased bilinear to the size of the videos",
                "seam_period": source.seam_period,
                "seam_first": source.seam_first,
                "samples_a_condition": source.per_condition,
                "lpips": perceptual_identity(own.lpips) if own.lpips is not None else None,
                "text": {"name": own.clip.name, "hash": own.clip.hash, "frames": SHOTS} if own.clip else None,
                "cuts": {"name": own.cuts.name, "hash": own.cuts.hash} if own.cuts else None,
                "extractors": [
                    {"name": e.name, "hash": e.hash, "preprocessing": e.preprocessing} for e in extractors
                ],
                **source.conditions(),
                "longtake": __version__,
                "torch": torch.__version__,
            }
        )
    )


def _claim(folder: Path, key: dict) -> None:
    """The folder belongs to this evaluation from now on, or already does."""
    file = folder / "records" / "key.json"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}", code=2) from None
    if file.is_file() and json.loads(file.read_text()) != key:
        raise UserError(f"{folder} holds another evaluation; choose another --output, or remove it")
    write_text(file, json.dumps(key, indent=1))


def _record(folder: Path, number: int) -> Path:
    return folder / "records" / f"{number:05d}.npz"


def _measure(source, folder, protocol, extractors, own, batch, keep, rank, world, progress) -> None:
    """Make the records that are missing; this process takes every world-th group of videos."""
    groups = [range(i, min(i + batch, source.count)) for i in range(0, source.count, batch)][rank::world]
    total = sum(len(g) for g in groups) * source.frames
    done = 0
    with ExitStack() as stack:
        queues = [stack.enter_context(FeatureQueue(e)) for e in extractors]
        for group in groups:
            if not all(_record(folder, i).is_file() for i in group):
                for frames in _group(source, group, folder, protocol, queues, own, keep):
                    done += frames * len(group)
                    if progress:
                        progress(min(done, total - 1), total)
            else:
                done += source.frames * len(group)
        if progress:
            progress(total, total)


def _group(source, group: range, folder: Path, protocol, queues, own, keep: int) -> Iterator[int]:
    """Measure the videos of one group as they are made; yields how many frames have gone by."""
    several = source.per_condition > 1
    meters = [VideoMeter(protocol, queues, source.frames, several, own.cuts) for _ in group]
    shown = spread_frames(source.frames, SHOTS)
    kept = [i for i in group if i < keep]
    shots: list[list[np.ndarray]] = [[] for _ in group]
    at = 0
    with ExitStack() as stack:
        writers = [stack.enter_context(video.VideoWriter(folder / f"video-{i:03d}.mp4", source.fps)) for i in kept]
        for chunks in source.stream(group):
            for number, meter, chunk in zip(group, meters, chunks, strict=True):
                meter.push(chunk, source.reference(number, at, len(chunk)))
            for writer, chunk in zip(writers, chunks, strict=False):
                writer.write(chunk)
            for row, chunk in zip(shots, chunks, strict=True):
                row += [chunk[i - at].copy() for i in shown if at <= i < at + len(chunk)]
            at += len(chunks[0])
            yield len(chunks[0])
        for queue in queues:
            queue.flush()
    if kept:
        sheet = video.contact_sheet(np.stack([f for row in shots[: len(kept)] for f in row]), columns=len(shown))
        video.write_png(folder / f"sheet-{group[0]:03d}.png", sheet)
    for number, meter, row in zip(group, meters, shots, strict=True):
        record = meter.record()
        if own.clip is not None:
            record["text"] = own.clip.similarities(np.stack(row), [source.text(number, i) for i in shown])
        write_record(_record(folder, number), record)


def _summarise(source, library, protocol, extractors, records: Sequence[Record], seed: int):
    """Every figure and curve."""
    figures, curves = {}, {}
    for extractor in extractors:
        real = real_features(library, protocol, extractor, source.size, source.frames, seed)
        if extractor.most == 1:
            figures |= summary.frame_distances(protocol, extractor, records, real)
            continue
        figures |= summary.distances(protocol, extractor, records, real)
        if protocol.real_split == "test":
            near = replace(protocol, **NEIGHBOURS)
            train = real_features(library, near, extractor, source.size, source.frames, seed)
            figures |= summary.memorisation(extractor, records, train, real)
        curves |= summary.window_curves(protocol, extractor, records, real)
        if knows(extractor, library):
            more, lines = summary.classes(protocol, extractor, records)
            figures |= more
            curves |= lines
    rows = library.split("test") or library.split("train")
    meters = real_motion(library, rows, source.size, source.frames)
    moving = [{"differences": m.differences[0], "signature": m.signature[0]} for m in meters if m.parts]
    more, lines = summary.over_time(records, moving, source.seam_period, source.seam_first, source.given)
    return figures | more, curves | lines


def knows(extractor: Extractor, library: Library) -> bool:
    """Whether an extractor's classes, where it names them, are those of the library."""
    return not extractor.classes or (bool(library.classes) and set(library.classes) <= set(extractor.classes))


def _processes() -> tuple[int, int]:
    """(rank, number of processes), joined through gloo where torchrun started several."""
    if not dist.is_available() or not dist.is_torchelastic_launched():
        return 0, 1
    if not dist.is_initialized():
        dist.init_process_group("gloo")
    return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


def _barrier(world: int) -> None:
    if world > 1:
        dist.barrier()
