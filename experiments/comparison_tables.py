"""The tables and the curves of `comparison.py`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

EXTRACTOR = "r3d-atari"
CURVES = {f"FVD-window[{EXTRACTOR}]": "FVD to real clips", f"CCS[{EXTRACTOR}]": "class kept", "motion": "motion"}
ICS = f"ICS[{EXTRACTOR}]"


def _figure(name: str) -> Callable[[dict], float | None]:
    return lambda record: record["measured"]["figures"].get(name, {}).get("value")


def _end(curve: str, windows: int) -> Callable[[dict], float | None]:
    """The mean over so many last windows of videos that have more of them."""

    def of(record: dict) -> float | None:
        _, y = record["measured"]["curves"].get(curve, ((), ()))
        return float(np.mean(y[-windows:])) if len(y) > windows else None

    return of


def _cost(part: str, name: str, unit: float = 1.0) -> Callable[[dict], float | None]:
    def of(record: dict) -> float | None:
        value = record.get(part, {}).get(name)
        return None if value is None else value / unit

    return of


Columns = dict[str, Callable[[dict], float | None]]
QUALITY: Columns = {
    "FVD16": _figure(f"FVD16[{EXTRACTOR}]"),
    "FVD128": _figure(f"FVD128[{EXTRACTOR}]"),
    "ratio": _figure(f"FVD16/FVD128[{EXTRACTOR}]"),
    "FVD, last 16 frames": _end(next(iter(CURVES)), 1),
    "CCS area": _figure(f"CCS-area[{EXTRACTOR}]"),
    "ICS, last 128": _end(ICS, 8),
    "motion, of real": _figure("motion_ratio"),
    "seam": _figure("seam"),
    "repeat": _figure("longest_repeat"),
}
COST: Columns = {
    "s per 1,000 frames": _cost("timed", "seconds"),
    "MiB": _cost("timed", "peak_mib"),
    "weights (M)": _cost("trained", "weights", 1e6),
    "TFLOP": lambda record: 1e3 * sum(record["trained"]["pflop"].values()) if "trained" in record else None,
    "hours": _cost("trained", "hours"),
    "training MiB": _cost("trained", "peak_mib"),
}


def tables(records: dict[str, dict], told: dict[str, list[str]]) -> str:
    """Markdown: what videos are like, and what they cost where something was trained.

    Args:
        records: of all that is measured, by name.
        told: the rows' names, with title, what is given, and settings.
    """
    quality = [[*words, *_cells(records.get(name), QUALITY)] for name, words in told.items()]
    trained = {name: words for name, words in told.items() if name not in records or "trained" in records[name]}
    cost = [[words[0], *_cells(records.get(name), COST)] for name, words in trained.items()]
    return "\n\n".join(
        [_markdown(["system", "given", "set", *QUALITY], quality), _markdown(["system", *COST], cost)]
    )


def _markdown(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows])


def _cells(record: dict | None, columns: Columns) -> list[str]:
    """Values, with an interval where they are distances."""

    def cell(name: str, of: Callable[[dict], float | None]) -> str:
        value = of(record) if record else None
        if value is None or record is None:
            return "-"
        spread = record["measured"]["figures"].get(f"{name}[{EXTRACTOR}]", {}).get("interval")
        text = f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
        return f"{text} [{spread[0]:.0f}, {spread[1]:.0f}]" if spread and name.startswith("FVD") else text

    return [cell(name, of) for name, of in columns.items()]


def plot(records: dict[str, dict], told: dict[str, list[str]], path: Path) -> None:
    """The curves over time, smoothed over eight windows, or fewer of short videos; dotted: nothing was trained."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(CURVES), figsize=(17, 4.5))
    colours = plt.get_cmap("tab20").colors  # pyright: ignore[reportAttributeAccessIssue]
    for axis, (curve, title) in zip(axes, CURVES.items(), strict=True):
        for i, name in enumerate(n for n in told if n in records):
            x, y = records[name]["measured"]["curves"].get(curve, ([], []))
            if len(x) < 2:
                continue
            width = max(1, min(8, len(y) // 4))
            line = np.convolve(y, np.ones(width) / width, "valid")
            style = "-" if "trained" in records[name] else ":"
            axis.plot(x[: len(line)], line, color=colours[i % 20], ls=style, label=told[name][0].strip("*"))
        axis.set(title=title, xlabel="frame")
    axes[-1].set_yscale("log")
    axes[-1].legend(fontsize=7, bbox_to_anchor=(1.02, 1), loc="upper left")
    figure.tight_layout()
    figure.savefig(path, dpi=100)
