"""What a library holds, as text and as one picture."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np

from longtake.data import video
from longtake.data.library import SPLITS, Library, Row

LISTED = 12


def inspect(path: str | Path, sheet: str | Path | None = None, videos: int = 16) -> str:
    """Describe a library; with `sheet`, also draw it.

    Args:
        path: the library's folder.
        sheet: a PNG to write: a row a video (at most `videos`, evenly spread), 8 evenly spaced frames each.

    Returns:
        A table in plain text.

    Raises:
        UserError: not a library.
    """
    library = Library(path)
    if sheet is not None:
        video.write_png(sheet, contact_sheet(library, videos))
    header, rows = library.header, library.rows
    lines = [
        f"{library.path}",
        _line("videos", f"{len(rows)}  ({', '.join(f'{len(library.split(s))} {s}' for s in SPLITS)})"),
        _line("size", f"{header.size[0]}x{header.size[1]}, {header.fps:g} frames a second"),
        _line("frames", _spread([row.frames for row in rows])),
        _line("length", f"{sum(row.seconds for row in rows):.1f} s, longest {max(r.seconds for r in rows):.1f} s"),
        _line("conditions", ", ".join(header.conditions) or "none"),
    ]
    if header.samples_per_frame is not None:
        lines.append(_line("sound", f"{header.samples_per_frame} samples a frame"))
    if header.state_names:
        lines.append(_line("states", ", ".join(header.state_names)))
    lines += _classes(rows)
    lines += _captions(rows)
    lines.append(_line("on disk", f"{_bytes_on_disk(library.path) / 2**20:.1f} MiB"))
    lines += _rejected(library.path)
    lines.append(_line("hash", header.hash[:16]))
    return "\n".join(lines)


def contact_sheet(library: Library, videos: int = 16, columns: int = 8) -> np.ndarray:
    """A row a video, evenly spread over the index, of evenly spaced frames: uint8 (H, W, 3)."""
    chosen = np.unique(np.linspace(0, len(library.rows) - 1, min(videos, len(library.rows))).round().astype(int))
    if all(library.rows[i].frames == 1 for i in chosen):
        return video.contact_sheet(np.concatenate([library.frames(int(i), [0]) for i in chosen]), columns)
    strips = []
    for i in chosen:
        numbers = np.linspace(0, library.rows[i].frames - 1, columns).round().astype(int)
        strips.append(library.frames(int(i), numbers.tolist()))
    return video.contact_sheet(np.concatenate(strips), columns)


def _line(name: str, value: str) -> str:
    return f"  {name:<11} {value}"


def _spread(counts: list[int]) -> str:
    low, middle, high = np.percentile(counts, [0, 50, 100])
    return f"{sum(counts)}  (a video: {low:.0f} to {high:.0f}, median {middle:.0f})"


def _classes(rows: list[Row]) -> list[str]:
    counts = Counter(row.label for row in rows if row.label is not None)
    if not counts:
        return []
    shown = ", ".join(f"{name} {count}" for name, count in sorted(counts.items())[:LISTED])
    return [_line("classes", f"{len(counts)}  ({shown}{', ...' if len(counts) > LISTED else ''})")]


def _captions(rows: list[Row]) -> list[str]:
    texts = Counter(text for row in rows for _, _, text in row.captions)
    if not texts:
        return []
    with_any = sum(bool(row.captions) for row in rows)
    lines = [_line("captions", f"{len(texts)} different, on {with_any} videos, for example")]
    return lines + [f"{'':14}{text}" for text, _ in texts.most_common(3)]


def _bytes_on_disk(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _rejected(folder: Path) -> list[str]:
    file = folder / "rejected.jsonl"
    if not file.is_file():
        return []
    with file.open(encoding="utf-8") as opened:  # `splitlines` would also cut names at rare line separators
        rows = [json.loads(line) for line in opened]
    lines = [_line("skipped", str(len(rows)))] if rows else []
    return lines + [f"{'':14}{row['file']}: {row['reason']}" for row in rows[:LISTED]]
