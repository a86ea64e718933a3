"""A result: figures that never travel without the protocol they were measured under."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from longtake.errors import UserError
from longtake.files import write_text


@dataclass(frozen=True)
class Figure:
    """One measured number."""

    value: float
    interval: tuple[float, float] | None
    """95 % bootstrap interval over videos: the middle 95 % of the resamples, or, of Frechet distances and inception
    scores, whose resamples are biased, 1.96 of their deviations around the value. None where it is not taken."""
    unit: str
    samples: int
    """Videos it was measured on."""
    note: str = ""
    """What a reader must know, such as a bias by few videos."""


@dataclass(frozen=True)
class Curve:
    """A figure over the time of a long video."""

    x: list[float]
    """First frame of each window, or frame number."""
    y: list[float]
    unit: str
    samples: int


@dataclass(frozen=True)
class Result:
    """What `longtake evaluate` writes to result.json."""

    model: dict[str, Any]
    """System and hash of the weights."""
    protocol: dict[str, Any]
    """Frames, numbers of videos, split, value range, seeds, conditions, versions: all that figures depend on."""
    figures: dict[str, Figure]
    curves: dict[str, Curve] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        """Write as JSON, complete or not at all."""
        write_text(path, json.dumps(asdict(self), indent=1) + "\n")

    @staticmethod
    def read(path: Path) -> Result:
        """Read what `write` wrote.

        Raises:
            UserError: no such file, or not a result.
        """
        try:
            raw = json.loads(path.read_text())
            figures = {k: Figure(**{**v, "interval": _pair(v["interval"])}) for k, v in raw["figures"].items()}
            curves = {k: Curve(**v) for k, v in raw.get("curves", {}).items()}
            return Result(dict(raw["model"]), dict(raw["protocol"]), figures, curves)
        except OSError as error:
            raise UserError(f"cannot read the result {path}: {error.strerror}", code=2) from None
        except (ValueError, TypeError, KeyError, AttributeError):
            raise UserError(f"{path} is not a result of longtake evaluate", code=2) from None

    def lines(self) -> list[str]:
        """The figures for people to read."""
        rows = []
        for name, f in self.figures.items():
            spread = f" [{f.interval[0]:.4g}, {f.interval[1]:.4g}]" if f.interval else ""
            note = f" - {f.note}" if f.note else ""
            rows.append(f"{name}: {f.value:.4g}{spread} {f.unit} (n={f.samples}){note}".replace("  ", " "))
        return rows


def _pair(interval: list[float] | None) -> tuple[float, float] | None:
    return None if interval is None else (float(interval[0]), float(interval[1]))
