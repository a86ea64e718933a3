"""A recipe: everything a training run depends on, read from YAML and the command line."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from longtake.config import from_dict, override, read_yaml, to_dict
from longtake.errors import UserError
from longtake.systems import system_class
from longtake.train.evaluation import EvaluationSettings


@dataclass(frozen=True)
class LoopSettings:
    """Settings of the training loop.

    None changes what is learned but `precision` and `accumulate`; how often and on how much a run is validated and
    evaluated decides which weights are kept as the best.
    """

    precision: Literal["32", "bf16", "16"] = "32"
    """32-bit, or mixed with bfloat16 or float16."""
    accumulate: int = 1
    """Micro-batches an update: the batch is cut into so many parts."""
    log_every: int = 20
    """Updates between two lines of the log."""
    validate_every: int = 500
    """Updates between two validations."""
    validate_batches: int = 4
    """Batches of the test split in a validation."""
    preview_every: int = 1000
    """Updates between two preview videos."""
    checkpoint_every: int = 500
    """Updates between two checkpoints."""
    keep: int = 2
    """Checkpoints to keep, the last ones."""
    cache_gb: float = 4.0
    """Disk the decoded frames may take, and as much again for derived tensors."""
    workers: int = 2
    """Threads that read clips."""
    shard: bool = False
    """Cut the weights of transformers that allow it over the processes of torchrun (FSDP): Loong's language model.
    No previews, and no evaluation, while they are cut."""
    threads: int | None = None
    """CPU threads of the arithmetic; None leaves PyTorch's choice."""
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)
    """The metrics of `longtake evaluate` during training."""

    def __post_init__(self):
        if self.shard and self.evaluation.every is not None:
            raise ValueError("shard and evaluation.every exclude each other: making videos reads whole weights")
        for field_ in fields(self):
            value = getattr(self, field_.name)
            if type(value) is int and value < 1:
                raise ValueError(f"{field_.name} is {value} but must be at least 1")


@dataclass(frozen=True)
class Recipe:
    """A resolved recipe."""

    system: str
    """Name of the system."""
    size: str
    """Named size that `config` starts from."""
    config: Any
    """The system's configuration (a dataclass of its own)."""
    data: str
    """Folder of the prepared library."""
    output: str
    """Folder of the run: it becomes a model folder."""
    seed: int = 0
    """Of initialisation, clips and noise."""
    init: dict[str, str] = field(default_factory=dict)
    """Network name -> model folder, bundled name or Hub id whose weights it starts from."""
    loop: LoopSettings = LoopSettings()

    def to_dict(self) -> dict:
        """Plain data that reads back as the same recipe."""
        return to_dict(self)


def read_recipe(
    path: str | Path,
    overrides: list[str] | None = None,
    data: str | None = None,
    output: str | None = None,
    init: dict[str, str] | None = None,
) -> Recipe:
    """Read a recipe and apply what the command line says.

    Args:
        path: YAML with the fields of `Recipe`; `config` holds only what differs from the named size.
        overrides: `a.b.c=value` each.
        data, output, init: replace those fields.

    Raises:
        UserError: unreadable file, unknown system, size or field, wrong type, no data or output.
    """
    path = Path(path)
    try:
        raw = read_yaml(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the recipe {path}: {getattr(error, 'strerror', error)}", code=2) from None
    if not isinstance(raw, dict) or "system" not in raw:
        raise UserError(f"{path} is not a recipe: it must name a system, for example 'system: tats'", code=2)
    for assignment in overrides or []:
        override(raw, assignment)
    raw |= {k: v for k, v in {"data": data, "output": output}.items() if v is not None}
    if not isinstance(raw.get("init") or {}, dict):
        raise UserError(f"{path}: init must name networks, for example 'init: {{vqgan: runs/mine}}'", code=2)
    raw["init"] = {**(raw.get("init") or {}), **(init or {})}
    raw.setdefault("output", f"runs/{path.stem}")
    if not raw.get("data"):
        raise UserError(f"{path} names no library; add 'data: FOLDER' or pass --data FOLDER", code=2)
    cls = system_class(raw["system"])
    size = raw.setdefault("size", "small")
    if size not in cls.sizes:
        raise UserError(f"{path}: size must be one of {', '.join(cls.sizes)}, got {size!r}", code=2)
    config = from_dict(cls.config_class, raw.pop("config", None) or {}, f"{path}: config", cls.sizes[size])
    return from_dict(Recipe, {**raw, "config": config}, str(path))
