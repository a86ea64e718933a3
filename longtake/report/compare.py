"""Results side by side on one page that needs nothing beside itself.

Figures of different protocols never share a table: results are put into groups of one protocol, and the page says
in what the groups differ.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from longtake.errors import UserError
from longtake.files import write_text
from longtake.metrics.result import Figure, Result
from longtake.report.charts import line_chart

HERE = Path(__file__).parent
VIDEOS = 4
"""Videos of each result on the page."""
LARGEST_VIDEO = 8 << 20
PLAYER = "controls loop muted playsinline"
OWN = {
    "seeds",
    "settings",
    "labels",
    "prompts",
    "seam_period",
    "seam_first",
    "longtake",
    "torch",
    "conditions_from",
    "given_frames",
    "told",
    "sees_test_video",
    "lpips",
}
"""What may differ between results of one table: it belongs to a model, not to the measuring, or, as the network of
LPIPS, stands in the figure's name. What a model was given is marked."""


@dataclass(frozen=True)
class Entry:
    """One result with what lies beside it."""

    name: str
    result: Result
    folder: Path

    @property
    def key(self) -> dict[str, Any]:
        """All of the protocol that two results must share to be compared."""
        return {k: v for k, v in self.result.protocol.items() if k not in OWN}

    @property
    def videos(self) -> list[Path]:
        """The first few videos that are small enough for a page."""
        found = sorted(self.folder.glob("video-*.mp4"))[:VIDEOS]
        return [v for v in found if v.stat().st_size <= LARGEST_VIDEO]


def compare(paths: Sequence[str | Path], output: str | Path) -> list[list[str]]:
    """Write one HTML page from result.json files.

    Args:
        paths: of the results, or of their folders.
        output: the page, a name that ends in .html.

    Returns:
        Names of the results, group by group.

    Raises:
        UserError: a file that is no result, an output that cannot be written.
    """
    output = Path(output)
    if output.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"cannot write {output}: choose a name that ends in .html", code=2)
    if not output.parent.is_dir():
        raise UserError(f"cannot write {output}: there is no folder {output.parent}", code=2)
    entries = _entries([Path(p) for p in paths])
    groups = group_by_protocol(entries)
    write_text(output, _page(groups))
    return [[entry.name for entry in group] for group in groups]


def _entries(paths: list[Path]) -> list[Entry]:
    files = [p / "result.json" if p.is_dir() else p for p in paths]
    short = [f.resolve().parent.name for f in files]
    names = [n if short.count(n) == 1 else str(f.parent) for n, f in zip(short, files, strict=True)]
    names = [n if names.count(n) == 1 else str(f) for n, f in zip(names, files, strict=True)]
    return [Entry(n, Result.read(f), f.parent) for n, f in zip(names, files, strict=True)]


def group_by_protocol(entries: Sequence[Entry]) -> list[list[Entry]]:
    """Entries whose figures may stand in one column, together, in order of appearance."""
    groups: dict[str, list[Entry]] = {}
    for entry in entries:
        groups.setdefault(json.dumps(entry.key, sort_keys=True), []).append(entry)
    return list(groups.values())


def differences(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    """In what two protocols differ, in words."""
    keys = [k for k in dict.fromkeys([*a, *b]) if a.get(k) != b.get(k)]
    return [f"{k}: {_short(a.get(k))} against {_short(b.get(k))}" for k in keys]


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _page(groups: list[list[Entry]]) -> str:
    total = sum(len(g) for g in groups)
    body = ["<h1>longtake: results side by side</h1>"]
    if len(groups) > 1:
        body.append(
            f"<p>These {total} results were measured under {len(groups)} different protocols, so they stand in "
        )
        body.append("different tables: their figures cannot be compared.</p>")
    for number, group in enumerate(groups, 1):
        body += _group(number, group, groups[0][0])
    body += _blind([entry for group in groups for entry in group])
    style, script = (HERE / "page.css").read_text(), (HERE / "page.js").read_text()
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>longtake: results</title>'
        f"<style>{style}</style></head><body>{''.join(body)}<script>{script}</script></body></html>\n"
    )


def _group(number: int, group: list[Entry], first: Entry) -> list[str]:
    protocol = group[0].result.protocol
    title = escape(f"{protocol.get('name', 'unnamed')}: {protocol.get('fake_videos')} videos of ")
    parts = [f"<h2>Protocol {number}, {title}{protocol.get('frames')} frames</h2>"]
    if group[0] is not first:
        items = "".join(f"<li>{escape(d)}</li>" for d in differences(first.key, group[0].key))
        parts.append(f"<p>Not comparable with protocol 1:</p><ul>{items}</ul>")
    stated = escape(json.dumps(protocol, indent=1))
    parts.append(f"<details><summary>The whole protocol</summary><pre>{stated}</pre></details>")
    parts.append(_table(group))
    names = list(dict.fromkeys(name for entry in group for name in entry.result.curves))
    charts = []
    for name in names:
        having = {e.name: e.result.curves[name] for e in group if name in e.result.curves}
        unit = next(iter(having.values())).unit
        chart = line_chart({n: (c.x, c.y) for n, c in having.items()}, "frame", f"{name}, {unit}")
        charts.append(f"<figure><figcaption>{escape(name)} ({escape(unit)})</figcaption>{chart}</figure>")
    parts.append(f'<div class="charts">{"".join(charts)}</div>')
    parts += _media(number, group)
    return parts


def _table(group: list[Entry]) -> str:
    names = list(dict.fromkeys(name for entry in group for name in entry.result.figures))
    head = "".join(f"<th>{escape(e.name)}<br><small>{escape(_model(e.result))}</small></th>" for e in group)
    rows = []
    for title, told in (("given", _given), ("settings", _settings)):
        cells = "".join(f"<td>{told(entry.result.protocol)}</td>" for entry in group)
        rows.append(f"<tr><th>{title}</th>{cells}</tr>")
    for name in names:
        cells = "".join(f"<td>{_cell(entry.result.figures.get(name))}</td>" for entry in group)
        rows.append(f"<tr><th>{escape(name)}</th>{cells}</tr>")
    return f'<div class="wide"><table><tr><th></th>{head}</tr>{"".join(rows)}</table></div>'


def _given(protocol: dict[str, Any]) -> str:
    """What the videos were made from, as HTML: one that was shown test footage is no match for one that was not."""
    if protocol.get("sees_test_video") is None:
        return "not known"
    told = ["<strong>the test videos, which it re-creates</strong>"] if protocol["sees_test_video"] else []
    told += ["class"] if any(label is not None for label in protocol.get("labels") or ()) else []
    told += ["text"] if any(any(prompts) for prompts in protocol.get("prompts") or ()) else []
    told += [f"first frames: {escape(str(protocol['given_frames']))}"] if protocol.get("given_frames") else []
    told += [escape(str(kind)) for kind in protocol.get("told") or ()]
    source = str(protocol.get("conditions_from") or "test")
    told += [f"from the {escape(source)}"] if told and not source.startswith("test") else []
    return ", ".join(told) or "nothing"


def _settings(protocol: dict[str, Any]) -> str:
    """Settings of generation, as HTML."""
    told = ", ".join(f"{name} {_short(value)}" for name, value in (protocol.get("settings") or {}).items())
    return f"<small>{escape(told)}</small>" if told else "-"


def _model(result: Result) -> str:
    """The system and the beginning of the hash of its weights, or of the measured files."""
    weights = str(result.model.get("weights") or result.model.get("files") or "")[:12]
    return f"{result.model.get('system', '')} {weights}".strip()


def _cell(figure: Figure | None) -> str:
    if figure is None:
        return "-"
    spread = f" [{figure.interval[0]:.4g}, {figure.interval[1]:.4g}]" if figure.interval else ""
    unit = f" {figure.unit}" if figure.unit else ""
    note = f"<small>{escape(figure.note)}</small>" if figure.note else ""
    return f"{figure.value:.4g}{escape(spread + unit)}{note}"


def _media(number: int, group: list[Entry]) -> list[str]:
    parts = []
    shown = [entry for entry in group if entry.videos]
    for i in range(max((len(e.videos) for e in shown), default=0)):
        figures = "".join(
            f'<figure><video {PLAYER} data-id="{_id(e, i)}" src="{_data(e.videos[i])}"></video>'
            f"<figcaption>{escape(e.name)}</figcaption></figure>"
            for e in shown
            if i < len(e.videos)
        )
        name = f"p{number}v{i}"
        play = f'<button data-play="{name}">play together</button>'
        parts.append(f'<h3>Video {i} {play}</h3><div class="row" id="{name}">{figures}</div>')
    for entry in group:
        for sheet in sorted(entry.folder.glob("sheet-*.png"))[:1]:
            image = f'<img src="{_data(sheet)}" alt="frames of {escape(entry.name)}">'
            parts.append(f"<figure>{image}<figcaption>{escape(entry.name)}: frames over time</figcaption></figure>")
    return parts


def _blind(entries: list[Entry]) -> list[str]:
    """Two videos without their names, a vote, a tally: where at least two results have videos."""
    clips = {e.name: [_id(e, i) for i in range(len(e.videos))] for e in entries if e.videos}
    if len(clips) < 2:
        return []
    data = json.dumps(clips).replace("<", "\\u003c")
    key = hashlib.sha256(data.encode()).hexdigest()[:12]
    videos = f"<video {PLAYER}></video>" * 2
    return [
        "<h2>Which looks better?</h2>",
        "<p>Two videos of different results, names hidden. Votes stay in this browser.</p>",
        f'<script type="application/json" id="clips">{data}</script>',
        f'<div id="blind" data-key="{key}"><div class="row">{videos}</div></div><p>',
        "".join(
            f'<button id="{i}">{t}</button>' for i, t in (("left", "left"), ("even", "even"), ("right", "right"))
        ),
        '<span id="count"></span></p><details><summary>Tally</summary><button id="reveal">count</button>',
        '<button id="forget">forget all votes</button><pre id="tally"></pre></details>',
    ]


def _id(entry: Entry, number: int) -> str:
    return hashlib.sha256(f"{entry.folder.resolve()}/{number}".encode()).hexdigest()[:12]


def _data(path: Path) -> str:
    kind = {".mp4": "video/mp4", ".png": "image/png"}[path.suffix]
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"
