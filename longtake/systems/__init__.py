"""The systems, one folder a paper."""

from __future__ import annotations

from importlib import import_module

from longtake.errors import UserError
from longtake.systems.base import Trainable

REGISTRY = {
    "tats": "longtake.systems.tats.system:TATS",
    "stylegan_v": "longtake.systems.stylegan_v.system:StyleGANV",
    "mocogan_sg2": "longtake.systems.stylegan_v.system:MoCoGANSG2",
    "encgan3": "longtake.systems.recall.system:EncGAN3",
    "lencgan": "longtake.systems.recall.system:LEncGAN",
    "r2": "longtake.systems.recall.system:R2",
    "r2-improved": "longtake.systems.recall.system:ImprovedR2",
    "ar2": "longtake.systems.recall.system:AR2",
    "r3": "longtake.systems.recall.system:R3",
    "ccvs": "longtake.systems.ccvs.system:CCVS",
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
