"""The systems, one folder a paper."""

from __future__ import annotations

from importlib import import_module

from longtake.errors import UserError
from longtake.systems.base import Trainable

REGISTRY = {
    "tats": "longtake.systems.tats.system:TATS",
    "loong": "longtake.systems.loong.system:Loong",
    "classifier": "longtake.systems.classifier.system:Classifier",
    "upscaler": "longtake.systems.upscaler.system:Upscaler",
}
"""Name -> module:class of a Trainable, imported when asked for."""


def system_class(name: str) -> type[Trainable]:
    """The class of a system, or of another thing that a recipe can train.

    Raises:
        UserError: there is no such system.
    """
    if name not in REGISTRY:
        raise UserError(f"there is no system {name!r}; longtake knows: {', '.join(REGISTRY)}", code=2)
    module, _, attribute = REGISTRY[name].partition(":")
    return getattr(import_module(module), attribute)
