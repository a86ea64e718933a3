"""Tables of what is there."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from longtake.systems import REGISTRY, system_class
from longtake.systems.base import System
from longtake.systems.folder import ASSETS, bundled, read_config


def list_models() -> None:
    """Print the bundled models."""
    table = Table(box=None)
    for column in ("model", "system", "frame", "fps", "classes", "MB"):
        table.add_column(column)
    for name in bundled():
        raw = read_config(ASSETS / name)
        info = raw["info"]
        size = sum(f.stat().st_size for f in (ASSETS / name).glob("*.safetensors")) / 1e6
        frame = f"{info['size'][0]}x{info['size'][1]}"
        table.add_row(name, raw["system"], frame, f"{info['fps']:g}", ", ".join(info["classes"]), f"{size:.1f}")
    Console().print(table)


def list_systems() -> None:
    """Print what each system accepts, requires and reaches."""
    table = Table(box=None)
    for column in ("system", "accepts", "requires", "longest video", "sizes"):
        table.add_column(column)
    for name in REGISTRY:
        cls = system_class(name)
        if not issubclass(cls, System):
            continue
        bounded = "its source video" if "source_video" in cls.requires else "any length"
        longest = bounded if cls.max_frames is None else f"{cls.max_frames} frames"
        accepts = ", ".join([*sorted(cls.accepts), *(["any frame rate"] if cls.any_fps else [])]) or "-"
        requires = ", ".join(sorted(cls.requires)) or "-"
        table.add_row(name, accepts, requires, longest, ", ".join(cls.sizes))
    Console().print(table)
