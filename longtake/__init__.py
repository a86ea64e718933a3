"""longtake: train a video generator on short clips and roll it out into minutes of video."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Entry", "Story", "UserError", "Video", "configure", "generate", "load", "read_story"]

if TYPE_CHECKING:
    from longtake.api import Entry, Story, Video, configure, generate, load, read_story
    from longtake.errors import UserError


def __getattr__(name: str) -> Any:
    """The public names, imported when first asked for: `longtake --help` need not wait for PyTorch."""
    if name in __all__:
        from importlib import import_module

        return getattr(import_module("longtake.errors" if name == "UserError" else "longtake.api"), name)
    raise AttributeError(f"module 'longtake' has no attribute {name!r}")
