"""Checkpoints: complete or absent, whatever moment the process dies at.

A checkpoint is a folder `<stage number>-<step>-<stage>` with `tensors.safetensors` and `state.json`. It is written
under another name and renamed when whole. Nested state is cut into tensors and plain JSON, so nothing is pickled.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

PARTIAL = ".partial-"


def pack(value: Any, tensors: dict[str, Tensor], path: str = "") -> Any:
    """Move every tensor of nested dicts and lists into `tensors`; what is returned is plain JSON."""
    if isinstance(value, Tensor):
        name = f"{len(tensors)}{path}"  # numbered: keys that hold a slash, or 0 and "0", must not meet
        tensors[name] = value.detach().cpu().contiguous().clone()
        return {"tensor": name}
    if isinstance(value, dict):
        return {"dict": [[k, pack(v, tensors, f"{path}/{k}")] for k, v in value.items()]}
    if isinstance(value, (list, tuple)):
        return {"list": [pack(v, tensors, f"{path}/{i}") for i, v in enumerate(value)]}
    return {"value": value}


def unpack(packed: Any, tensors: dict[str, Tensor]) -> Any:
    """The inverse of `pack` (tuples come back as lists)."""
    ((kind, content),) = packed.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {k: unpack(v, tensors) for k, v in content}
    return [unpack(v, tensors) for v in content] if kind == "list" else content


def write(folder: Path, name: str, state: dict[str, Any], keep: int) -> Path:
    """Write `folder/name` and remove all but the newest `keep` checkpoints."""
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f"{PARTIAL}{name}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    tensors: dict[str, Tensor] = {}
    packed = pack(state, tensors)
    save_file(tensors, partial / "tensors.safetensors")
    (partial / "state.json").write_text(json.dumps(packed))
    for file in partial.iterdir():
        with file.open("rb") as handle:
            os.fsync(handle.fileno())
    final = folder / name
    shutil.rmtree(final, ignore_errors=True)
    os.replace(partial, final)
    for old in _all(folder)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def latest(folder: Path) -> Path | None:
    """The newest whole checkpoint; leftovers of interrupted writes are removed."""
    if not folder.is_dir():
        return None
    for partial in folder.glob(f"{PARTIAL}*"):
        shutil.rmtree(partial, ignore_errors=True)
    found = _all(folder)
    return found[-1] if found else None


def read(path: Path) -> dict[str, Any]:
    """The state of a checkpoint, tensors on the CPU."""
    tensors = load_file(path / "tensors.safetensors")
    return unpack(json.loads((path / "state.json").read_text()), tensors)


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write tensors to one file, complete or not at all."""
    partial = path.with_name(f"{PARTIAL}{path.name}")
    save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, partial)
    os.replace(partial, path)


def _all(folder: Path) -> list[Path]:
    """Whole checkpoints in the order they were made: names begin with the stage's number and the step."""
    return sorted(p for p in folder.iterdir() if (p / "state.json").is_file() and not p.name.startswith("."))
