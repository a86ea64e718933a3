"""A result: figures that never travel without the protocol they were measured under."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from longtake.files import write_text


@dataclass(frozen=True)
class Figure:
    """One measured number."""

    value: float
    interval: tuple[float, float] | None
    """95 % bootstrap interval over videos; None where it means nothing."""
    unit: str
    samples: int
    """Videos it was measured on."""


@dataclass(frozen=True)
class Result:
    """What `longtake evaluate` writes to result.json."""

    model: dict[str, Any]
    """System and hash of the weights."""
    protocol: dict[str, Any]
    """Frames, numbers of videos, split, value range, seeds, conditions, versions: all that figures depend on."""
    figures: dict[str, Figure]

    def write(self, path: Path) -> None:
        """Write as JSON, complete or not at all."""
        write_text(path, json.dumps(asdict(self), indent=1) + "\n")

    def lines(self) -> list[str]:
        """The figures for people to read."""
        rows = []
        for name, f in self.figures.items():
            spread = f" [{f.interval[0]:.4g}, {f.interval[1]:.4g}]" if f.interval else ""
            rows.append(f"{name}: {f.value:.4g}{spread} {f.unit} (n={f.samples})".replace("  ", " "))
        return rows
