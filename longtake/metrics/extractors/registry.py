"""From what a user writes to an extractor: `i3d=FILE`, a classifier's folder, a bundled name."""

from __future__ import annotations

from pathlib import Path

import torch

from longtake.errors import UserError
from longtake.metrics.extractors.base import Extractor
from longtake.metrics.extractors.torchscript import CALLS

DEFAULT_EXTRACTOR = "r3d-atari"
"""The bundled one."""
FAMILIES = ("i3d", "i3d-eps5", "inception", "resnext", "videomae", *CALLS)
"""i3d: a state dict, batch norms with eps 1e-3; i3d-eps5: the same with 1e-5, as the code of TATS runs it."""


def make_extractor(text: str, device: torch.device | str = "cpu") -> Extractor:
    """An extractor from FAMILY=FILE, or the folder or bundled name of a classifier.

    Raises:
        UserError: an unknown family, no such file, weights that do not fit.
    """
    device = torch.device(device)
    family, equals, path = text.partition("=")
    if not equals:
        from longtake.metrics.extractors.classifier import ClassifierExtractor

        return ClassifierExtractor(text, device)
    if family not in FAMILIES:
        known = ", ".join(f"{name}=FILE" for name in FAMILIES)
        raise UserError(f"there is no extractor {family!r}; choose {known}, or the folder of a classifier", code=2)
    if not Path(path).exists():
        raise UserError(f"there is no file {path} for the extractor {family}", code=2)
    if family in CALLS:
        from longtake.metrics.extractors.torchscript import TorchScriptExtractor

        return TorchScriptExtractor(path, device, family)
    if family == "videomae":
        from longtake.metrics.extractors.videomae import VideoMAEExtractor

        return VideoMAEExtractor(path, device)
    if family == "resnext":
        from longtake.metrics.extractors.resnext3d import ResNeXtExtractor

        return ResNeXtExtractor(path, device)
    if family == "inception":
        from longtake.metrics.extractors.inception import InceptionExtractor

        return InceptionExtractor(path, device)
    from longtake.metrics.extractors.i3d import I3DExtractor

    made = I3DExtractor(path, device, eps=1e-5 if family == "i3d-eps5" else 1e-3)
    if family == "i3d-eps5":
        made.name = "i3d-k400-eps5"
    return made
