"""Anyone's videos -> a library.

    find (layouts.py) -> survey every video -> settle fps and sound -> re-encode each -> rows

Bad files never stop it: they are left out and listed with the reason, in the report and in
`rejected.jsonl`. It fails only if nothing is left.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np

from longtake.data import layouts, video
from longtake.data.library import LibraryWriter, Row
from longtake.data.sources import Facts, Item, printable
from longtake.errors import UserError

SOUND_RATE = 16000
"""Hz that a library's sound is near; exactly, a whole number of samples a frame."""
CLOCKLESS_FPS = 25.0
"""Frames a second of frame folders and arrays, which have no clock, when nobody says otherwise."""
SAME_RATE = 0.005
"""Relative difference up to which two frame rates are one (29.97 and 30)."""
CRF, GOP = 12, 12
CHUNK = 16

Progress = Callable[[int, int, str], None]
R = TypeVar("R")


@dataclass
class Report:
    """What `prepare` did."""

    library: Path
    accepted: int = 0
    rejected: list[tuple[str, str]] = field(default_factory=list)
    """(path within the source, reason)"""
    ignored: int = 0
    """Files that are neither video nor picture."""
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"{self.accepted} videos in {self.library}, {len(self.rejected)} skipped"]
        lines += [f"  skipped {name}: {reason}" for name, reason in self.rejected]
        lines += [f"  {self.ignored} files of other kinds were ignored"] if self.ignored else []
        return printable("\n".join(lines + [f"  note: {note}" for note in self.notes]))


@dataclass(frozen=True)
class _Plan:
    """What is the same for every video of one library."""

    size: tuple[int, int]
    fps: float
    crop: Literal["crop", "letterbox", "stretch"]
    samples_per_frame: int | None
    min_frames: int
    test: float
    seed: int
    by: Literal["video", "group"]


def prepare(
    source: str | Path,
    output: str | Path,
    size: int | tuple[int, int],
    fps: float | None = None,
    captions: str | Path | None = None,
    crop: Literal["crop", "letterbox", "stretch"] = "crop",
    test_fraction: float = 0.1,
    split_seed: int = 0,
    split_by: Literal["video", "group"] = "group",
    split_lists: Sequence[str | Path] | None = None,
    min_frames: int = 16,
    workers: int | None = None,
    layout: str = "auto",
    progress: Progress | None = None,
) -> Report:
    """Turn videos, pictures, frame folders, archives or a known data set into a library.

    Args:
        source: what `layouts.find` understands.
        output: the library's folder; must be new or empty.
        size: height and width in pixels, or one number for both.
        fps: frames a second of the library. Videos of another or a varying rate are resampled by
            presentation time. None keeps the rate all videos share.
        captions: a CSV file with columns file, text and, for spans, t0 and t1 in seconds.
        crop: how a picture is fitted to `size`; see `video.resize`.
        test_fraction: expected share of test videos, where the source has no official split.
        split_seed: another seed, another split. A video's side depends on its name and the seed alone,
            so adding videos moves no other (but in a library too small for a test video, see docs/own-data.md).
        split_by: `group` keeps videos of one performer or source on one side.
        split_lists: official split files, such as trainlist01.txt and testlist01.txt.
        min_frames: shorter videos are left out (stills are not).
        workers: threads; the result does not depend on their number.
        layout: see `layouts.find`.
        progress: called with (videos done, videos in all, name), from other threads, one call at a time. All are
            looked at before the first is written; one that is only looked at counts half.

    Raises:
        UserError: nothing can be used, frame rates differ and no `fps` says which to take, or an argument
            cannot be.
    """
    source, output = Path(source), Path(output)
    size = (size, size) if isinstance(size, int) else (size[0], size[1])
    _check_arguments(size, fps, test_fraction)
    writer = LibraryWriter(output, size, fps or 0.0)
    found = layouts.find(source, layout, [Path(path) for path in split_lists or ()])
    report = Report(output, rejected=found.rejected, ignored=found.ignored, notes=found.notes)
    items = _with_captions(found.items, Path(captions), report) if captions is not None else found.items
    workers = workers or min(8, os.cpu_count() or 1)
    halves = progress and (lambda done, name: progress(done // 2, len(items), name))
    surveyed = _run(lambda item: _survey(item, fps, min_frames), items, workers, report, halves)
    if not surveyed:
        raise _nothing(source, report)
    fps = fps or _shared_rate(surveyed, source, report)
    sound = all(facts.sound for _, facts in surveyed)
    per_frame = max(1, round(SOUND_RATE / fps)) if sound else None
    plan = _Plan(size, fps, crop, per_frame, min_frames, test_fraction, split_seed, split_by)
    writer.header = replace(writer.header, fps=fps, samples_per_frame=per_frame, split_seed=split_seed)
    facts = {item.name: of for item, of in surveyed}
    ids = _ids([item.name for item in items])
    with writer:
        done = _run(
            lambda item: _write(item, facts[item.name], ids[item.name], plan, writer),
            [item for item, _ in surveyed],
            workers,
            report,
            halves,
            2 * len(items) - len(surveyed),
        )
        if not done:
            raise _nothing(source, report)
        rows = _divided(done, plan)
        for row in rows:
            writer.add(row)
        report.accepted = len(rows)
        if test_fraction > 0 and all(row.split == "train" for row in rows):
            report.notes.append("there is no test split: the videos belong to too few groups (see --split-by)")
        report.rejected.sort()
        lines = [json.dumps({"file": f, "reason": r}, ensure_ascii=False) for f, r in report.rejected]
        (writer.folder / "rejected.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return report


def _check_arguments(size: tuple[int, int], fps: float | None, test: float) -> None:
    if min(size) < 1:
        raise UserError(f"size {size[0]}x{size[1]} has no pixels; give a height and a width of at least 1", 2)
    if fps is not None and not 0 < fps <= 1000:
        raise UserError(f"fps {fps:g} cannot be; give frames a second, for example 15", 2)
    if not 0 <= test <= 1:
        raise UserError(f"the test share {test:g} is not between 0 and 1", 2)


def _nothing(source: Path, report: Report) -> UserError:
    if report.rejected:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in sorted(report.rejected)[:3])
        more = len(report.rejected) - 3
        why = f"all {len(report.rejected)} were skipped ({reasons}{f'; and {more} more' if more > 0 else ''})"
    elif report.notes:
        why = "; ".join(report.notes)
    else:
        why = f"it holds neither videos nor pictures ({report.ignored} files of other kinds)"
    return UserError(f"0 clips found in {source} because {why}")


def _run(
    work: Callable[[Item], R],
    items: Sequence[Item],
    workers: int,
    report: Report,
    progress: Callable[[int, str], None] | None,
    done: int = 0,
) -> list[tuple[Item, R]]:
    """Do `work` on every item in threads (codecs release the GIL); refusals go to the report.

    `progress` is called with (`done` and how many items since, name).
    """
    counting = threading.Lock()

    def one(item: Item) -> tuple[Item, R | UserError]:
        nonlocal done
        try:
            result: R | UserError = work(item)
        except UserError as error:
            result = error
        except Exception as error:  # whatever a file does to a codec, the others go on
            result = UserError(f"cannot be read ({type(error).__name__}: {error})")
        with counting:
            done += 1
            if progress is not None:
                progress(done, item.name)
        return item, result

    kept = []
    with ThreadPoolExecutor(workers) as pool:
        try:
            for item, result in pool.map(one, items):
                if isinstance(result, UserError):
                    report.rejected.append((item.name, printable(str(result))))
                else:
                    kept.append((item, result))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return kept


def _survey(item: Item, fps: float | None, min_frames: int) -> Facts:
    facts = item.media.survey()
    same = fps is None or facts.fps is None or facts.seconds is None or _same_rate(facts, fps)
    frames = facts.frames if same else round((facts.seconds or 0) * (fps or 0))
    _check_length(item, frames, min_frames)
    return facts


def _check_length(item: Item, frames: int, min_frames: int) -> None:
    if not item.still and frames < min_frames:
        raise UserError(f"has {frames} frames, at least {min_frames} are needed")


def _same_rate(facts: Facts, fps: float) -> bool:
    return not facts.variable_rate and facts.fps is not None and abs(facts.fps / fps - 1) < SAME_RATE


def _shared_rate(surveyed: list[tuple[Item, Facts]], source: Path, report: Report) -> float:
    rates = Counter(round(facts.fps, 3) for _, facts in surveyed if facts.fps is not None)
    if not rates:
        if not all(item.still for item, _ in surveyed):
            report.notes.append(f"the frames have no clock; {CLOCKLESS_FPS:g} frames a second were taken")
        return CLOCKLESS_FPS
    low, high = min(rates), max(rates)
    if high / low - 1 >= SAME_RATE:
        common = ", ".join(f"{count} at {rate:g}" for rate, count in rates.most_common(4))
        suggestion = int(low) if low >= 1 else low
        raise UserError(
            f"the videos in {source} have different frame rates ({common}{', ...' if len(rates) > 4 else ''}); "
            f"choose one for all, for example --fps {suggestion:g}, at which no frame is shown twice"
        )
    return rates.most_common(1)[0][0]


def _write(item: Item, facts: Facts, id: str, plan: _Plan, writer: LibraryWriter) -> Row:
    """Re-encode one video, and its sound, into the library's folder."""
    target, sound = writer.media("video", id), None
    options = {"crf": CRF, "gop": GOP, "pixel_format": "yuv444p"}
    try:
        frames = video.write_video(target, _resized(_at_rate(item, facts, plan.fps), plan), plan.fps, **options)
        _check_length(item, frames, plan.min_frames)
        if plan.samples_per_frame is not None:
            sound = writer.media("audio", id)
            rate = round(plan.samples_per_frame * plan.fps)
            wave = np.zeros(frames * plan.samples_per_frame, np.float32)
            heard = item.media.sound(rate)[: len(wave)]
            wave[: len(heard)] = heard
            video.write_audio(sound, wave, rate)
    except BaseException:  # nothing may lie in the library that has no row
        target.unlink(missing_ok=True)
        raise
    seconds = frames / plan.fps
    return Row(
        id=id,
        file=writer.relative(target),
        frames=frames,
        seconds=seconds,
        split=item.split or "train",
        label=item.label,
        captions=tuple(
            (max(0.0, t0 or 0.0), seconds if t1 is None else min(t1, seconds), text)
            for t0, t1, text in item.captions
            if (t0 or 0.0) < seconds
        ),
        audio=None if sound is None else writer.relative(sound),
        group=item.group,
        source=item.name,
    )


def _at_rate(item: Item, facts: Facts, fps: float) -> Iterator[np.ndarray]:
    """Frames at `fps`: at each instant the frame that is on screen then."""
    timed = item.media.frames()
    if facts.fps is None or facts.seconds is None or _same_rate(facts, fps):
        yield from (frame for _, frame in timed)
        return
    # A little forgiveness, so that rounded time stamps do not make a steady rate stutter.
    early = 0.25 / max(facts.fps, fps)
    count, shown, made = max(1, round(facts.seconds * fps)), None, 0
    for time, frame in timed:
        while shown is not None and made < count and made / fps + early < time:
            yield shown
            made += 1
        shown = frame
    while shown is not None and made < count:
        yield shown
        made += 1


def _resized(frames: Iterable[np.ndarray], plan: _Plan) -> Iterator[np.ndarray]:
    """Chunks of (t, H, W, 3) at the library's size."""
    chunk: list[np.ndarray] = []
    for frame in frames:
        if chunk and (len(chunk) == CHUNK or chunk[0].shape != frame.shape):
            yield video.resize(np.stack(chunk), plan.size, plan.crop)
            chunk = []
        chunk.append(frame)
    if chunk:
        yield video.resize(np.stack(chunk), plan.size, plan.crop)


def _divided(done: Sequence[tuple[Item, Row]], plan: _Plan) -> list[Row]:
    """Rows with their split: what the layout says, else by a hash of the video's or the group's name and the seed.

    So a video stays on its side when others are added. Only in a library so small that none falls to the test
    split, the video or group nearest to it does, of those that leave at least half of the videos for training.
    """
    lots = {item.name: _lot(item, plan) for item, _ in done if not item.split}
    sizes = Counter(lots.values())
    if len(lots) == len(done) and 0 < plan.test <= min(sizes, default=0):
        nearest = min((lot for lot, size in sizes.items() if 2 * size <= len(done)), default=None)
        return [replace(row, split="test") if lots[item.name] == nearest else row for item, row in done]
    return [replace(row, split="test") if lots.get(item.name, 1) < plan.test else row for item, row in done]


def _lot(item: Item, plan: _Plan) -> float:
    """A number in [0, 1) that depends on nothing but the name and the seed."""
    name = item.group if plan.by == "group" and item.group is not None else item.name
    return int.from_bytes(hashlib.sha256(f"{plan.seed}:{name}".encode()).digest()[:8], "big") / 2**64


def _ids(names: Iterable[str]) -> dict[str, str]:
    """File names for the videos, readable and unique on every file system."""
    plain = {name: re.sub(r"[^\w.-]+", "_", re.sub(r"\.\w+$", "", name)).strip("._") for name in names}
    often = Counter(id.lower() for id in plain.values())
    return {
        name: id if id and often[id.lower()] == 1 and len(id.encode()) <= 100 else _hashed(name, id)
        for name, id in plain.items()
    }


def _hashed(name: str, id: str) -> str:
    start = id.encode()[:80].decode(errors="ignore")
    return f"{start or 'video'}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


# --- captions -----------------------------------------------------------------------------------------


def _with_captions(items: list[Item], file: Path, report: Report) -> list[Item]:
    spans = read_captions(file)
    by_name: dict[str, list[str]] = {}
    for item in items:
        for name in {item.name, Path(item.name).name, Path(item.name).stem}:
            by_name.setdefault(name, []).append(item.name)
    of: dict[str, list[tuple[float | None, float | None, str]]] = {}
    for name, rows in spans.items():
        matches = by_name.get(name, [])
        if len(matches) > 1 and name not in matches:
            raise UserError(f"{file} names {name!r}, which fits {len(matches)} files; give its folder too")
        if not matches:
            report.notes.append(f"{file} has a caption for {name!r}, which is not there")
        else:
            of.setdefault(name if name in matches else matches[0], []).extend(rows)
    return [replace(item, captions=tuple(of[item.name])) if item.name in of else item for item in items]


def read_captions(file: Path) -> dict[str, list[tuple[float | None, float | None, str]]]:
    """Read captions.csv: columns file and text, optional t0 and t1 in seconds; several rows a file.

    Returns:
        {file: [(t0, t1, text), ...]}, None where a time is not given.
    """
    spans: dict[str, list[tuple[float | None, float | None, str]]] = {}
    try:
        with file.open(newline="", encoding="utf-8-sig") as lines:
            rows = csv.DictReader(lines)
            if not {"file", "text"} <= set(rows.fieldnames or ()):
                raise UserError(f"{file} has no header with the columns file and text (and, if wanted, t0, t1)")
            for row in rows:
                where = f"{file} line {rows.line_num}"
                if not row["file"] or not row["text"]:
                    raise UserError(f"{where} has no {'text' if row['file'] else 'file'}; fill it in")
                t0, t1 = (_seconds(row.get(name), name, where) for name in ("t0", "t1"))
                if t1 is not None and t1 <= (t0 or 0.0):
                    raise UserError(f"{where} ends at {t1:g} s, before it starts; t1 must be greater than t0")
                spans.setdefault(row["file"].strip(), []).append((t0, t1, row["text"].strip()))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"captions {file} cannot be read: {error}") from error
    return spans


def _seconds(text: str | None, column: str, where: str) -> float | None:
    if text is None or not text.strip():
        return None
    try:
        return float(text)
    except ValueError:
        raise UserError(f"{where} has {column} {text!r}, which is not a number of seconds") from None
