"""The released pickles of StyleGAN-V as our weights.

A snapshot is a plain pickle of whole modules, each with the source text of its class, which the official loader
executes. Here they are read as mere records of what they hold (see `systems.foreign`): the text stays text. Sizes
follow from the weights' shapes, the rest from the configuration that the modules keep.
"""

from __future__ import annotations

import math
import re
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from longtake.errors import UserError
from longtake.systems.base import ModelInfo, System
from longtake.systems.folder import fitting, load_network
from longtake.systems.foreign import read_foreign
from longtake.systems.stylegan_v.config import StyleGANVConfig
from longtake.systems.stylegan_v.discriminator import DiscriminatorConfig
from longtake.systems.stylegan_v.mapping import MappingConfig
from longtake.systems.stylegan_v.motion import AcyclicEncoding, MotionConfig
from longtake.systems.stylegan_v.names import State, discriminator_state, generator_state
from longtake.systems.stylegan_v.synthesis import SynthesisConfig
from longtake.systems.stylegan_v.system import StyleGANV

SKIP = ("G_opt", "D_opt", "vis", "stats", "augment_pipe")
DEPTH = 32
"""Deepest nesting of modules; the released ones have 7 levels."""
FINEST = 1024
"""Largest side of a frame; the published architecture has these down to 4 by halving."""
DAMAGED = (LookupError, ValueError, AttributeError, TypeError, RuntimeError, ArithmeticError)
"""What weights of unexpected shapes, or missing ones, can make the code below raise."""
ENCODER = "synthesis.motion_encoder.time_encoder."


@dataclass(frozen=True)
class Official:
    """What a released pickle holds."""

    config: StyleGANVConfig
    classes: int
    networks: dict[str, State]
    """Official state dicts by name: "G_ema", and where present "G" and "D"."""


def read_official(path: Path | str) -> Official:
    """Reads a `network-snapshot-*.pkl`, running none of the code it holds.

    Raises:
        UserError: the file is damaged or hostile, is no StyleGAN-V, or is a variant that this system has not.
    """
    content = read_foreign(path, skip=SKIP, keep=True)
    content = content if isinstance(content, dict) else {}
    records = {name: content[name] for name in ("G", "D", "G_ema") if isinstance(content.get(name), dict)}
    states = {name: dict(tensors(record, set())) for name, record in records.items()}
    best = states.get("G_ema") or states.get("G") or {}
    if "synthesis.b4.input.input.const" not in best or ENCODER + "freqs" not in best:
        raise UserError(f"{path} holds no StyleGAN-V generator; give a network-snapshot-*.pkl of its authors' code")
    _refuse_variants(best, path)
    try:
        config, classes = _config(best, states.get("D"), settings(records))
    except DAMAGED as error:
        raise UserError(f"{path} is not a complete StyleGAN-V ({error}); get it again") from error
    return Official(config, classes, {name: state for name, state in states.items() if state})


def convert(paths: list[Path], fps: float, size: tuple[int, int] | None) -> System:
    """The system of a released pickle: G_ema as its generator, and D, so that training can go on from both.

    Raises:
        UserError: see `read_official`; or several files, or another size than the file's.
    """
    if len(paths) != 1:
        raise UserError(f"a StyleGAN-V is one file, got {len(paths)}; convert one at a time", code=2)
    official = read_official(paths[0])
    if size is not None and size != official.config.size:
        shown = "x".join(map(str, official.config.size))
        raise UserError(f"{paths[0]} makes frames of {shown}; leave --size out", code=2)
    info = ModelInfo(fps=fps, size=official.config.size, classes=tuple(map(str, range(official.classes))))
    try:
        states = {"generator": generator_state(official.networks.get("G_ema") or official.networks["G"])}
        if "D" in official.networks:
            states["discriminator"] = discriminator_state(official.networks["D"])
        with torch.device("meta"):  # costs no memory, whatever size a damaged file claims
            claimed = StyleGANV(official.config, info)
        for name, state in states.items():
            fitting(claimed, name, {f"{name}.{key}": value for key, value in state.items()}, paths[0])
    except DAMAGED as error:
        raise UserError(f"{paths[0]} is not a complete StyleGAN-V ({error}); get it again") from error
    system = StyleGANV(official.config, info)
    for name, state in states.items():
        load_network(system, name, {f"{name}.{key}": value for key, value in state.items()}, paths[0])
    system.saved = tuple(states)
    return system


def state_of(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a module holds: of one that was kept with its source, the state that stands beside it."""
    made = record.get("()")
    if isinstance(made, tuple) and made and isinstance(made[0], dict):
        state = made[0].get("state")
        return state if isinstance(state, dict) else {}
    return record


def tensors(
    record: Mapping[str, Any], seen: set[int], prefix: str = "", depth: int = 0
) -> Iterator[tuple[str, Tensor]]:
    """The state dict of a module's record: parameters and buffers of it and all modules in it, by name.

    `seen` are the modules met so far, by identity: one in two places, as the released networks have none, could
    double the work at every level.
    """
    state = state_of(record)
    if not any(state.get(kind) for kind in ("_parameters", "_buffers", "_modules")):
        return
    if depth > DEPTH or id(state) in seen:
        raise UserError("a checkpoint nests its modules without end or twice; it is not to be trusted")
    seen.add(id(state))
    for kind in ("_parameters", "_buffers"):
        for name, value in _entries(state, kind):
            if isinstance(value, Tensor):
                yield f"{prefix}{name}", value
    for name, child in _entries(state, "_modules"):
        if isinstance(child, dict):
            yield from tensors(child, seen, f"{prefix}{name}.", depth + 1)


def _entries(state: Mapping[str, Any], kind: str) -> Iterator[tuple[str, Any]]:
    entries = state.get(kind)
    for name, value in entries.items() if isinstance(entries, dict) else ():
        if isinstance(name, str):
            yield name, value


def settings(records: Any) -> dict[str, Any]:
    """Numbers by name, of all configurations that the records keep; the first of a name counts."""
    found: dict[str, Any] = {}
    seen: set[int] = set()
    todo = deque([records])
    while todo:
        item = todo.popleft()
        if id(item) in seen or not isinstance(item, dict | list | tuple):
            continue
        seen.add(id(item))
        for name, value in item.items() if isinstance(item, dict) else enumerate(item):
            if isinstance(value, dict) and "_val" in value:  # a value as OmegaConf keeps it
                value = value["_val"]
            if isinstance(name, str) and isinstance(value, int | float) and not isinstance(value, bool):
                found.setdefault(name, value)
            todo.append(value)
    return found


def _refuse_variants(state: State, path: Path | str) -> None:
    """Variants of the official code that were not released and are none of ours."""
    for pattern, what in (
        (r".*noise_strength$", "noise inputs"),
        (r".*motion_encoder\.rnn\.", "an LSTM before its time encoding"),
    ):
        if any(re.match(pattern, key) for key in state):
            raise UserError(f"{path} is a StyleGAN-V with {what}, which this version cannot run")


def _config(g: State, d: State | None, kept: dict[str, Any]) -> tuple[StyleGANVConfig, int]:
    """The configuration and the number of classes."""
    if not all(value.numel() for value in [*g.values(), *(d or {}).values()]):
        raise ValueError("a tensor of it is empty")  # whose shape can claim any size
    classes = g["mapping.embed.weight"].shape[1] if "mapping.embed.weight" in g else 0
    width, entering = g["mapping.fc0.weight"].shape
    widths = {int(m[1]): len(v) for k, v in g.items() if (m := re.match(r"synthesis\.b(\d+)\.conv1\.weight$", k))}
    resolution, most = max(widths), widths[4]
    if sorted(widths) != [4 << n for n in range(len(widths))] or resolution > FINEST:
        raise ValueError(f"its resolutions are not those from 4 to at most {FINEST} by doubling")
    clamp = float(kept["conv_clamp"]) if kept.get("conv_clamp") else None
    spacing = float(kept.get("motion_z_distance", 0))
    if not (math.isfinite(spacing) and math.isfinite(clamp or 0)):
        raise ValueError("a number in its configuration is not finite")
    frequencies = g[ENCODER + "freqs"][0].double()
    longest, shortest = (round(2 * math.pi / float(f), 3) for f in (frequencies[0], frequencies[-1]))
    motion = MotionConfig(
        noise=g["synthesis.motion_encoder.conv.0.weight"].shape[1] - classes,
        width=len(g["synthesis.motion_encoder.conv.1.weight"]),
        waves=len(g[ENCODER + "periods_predictor.weight"]),
        kernel=g["synthesis.motion_encoder.conv.0.weight"].shape[2],
        spacing=spacing or shortest,
        shortest=shortest,
        longest=longest,
    )
    base = AcyclicEncoding(replace(motion, width=1)).base.double()
    if base.shape != frequencies.shape or not torch.allclose(base, frequencies, rtol=1e-6, atol=0):
        raise ValueError("its frequencies are not spaced in octaves")
    made = StyleGANVConfig(
        size=(resolution, resolution),
        sampling="octaves",
        condition="label" if classes else "none",
        mapping=MappingConfig(entering - (width if classes else 0), width, _count(g, r"mapping\.fc\d+\.weight")),
        motion=motion,
        synthesis=SynthesisConfig(_base(widths), most, clamp),
    )
    if d:
        made = replace(made, frames=_frames(d, classes), discriminator=_critic(d, widths, clamp))
    return made, classes


def _count(state: State, pattern: str) -> int:
    return sum(re.fullmatch(pattern, key) is not None for key in state)


def _base(widths: dict[int, int]) -> int:
    """Channels times resolution, from the finest one."""
    return widths[max(widths)] * max(widths)


def _frames(d: State, classes: int) -> int:
    """Frames that a discriminator sees, of how many gaps it is told."""
    if "time_encoder.const_embed.weight" not in d:
        return 1
    gaps, embedding = d["time_encoder.const_embed.weight"].shape
    each = embedding + 2 * math.ceil(math.log2(gaps))
    return (d["mapping.embed.weight"].shape[1] - classes) // each + 1


def _critic(d: State, widths: dict[int, int], clamp: float | None) -> DiscriminatorConfig:
    """Its configuration; `widths` are the generator's, which it shares."""
    gaps, embedding = d.get("time_encoder.const_embed.weight", torch.empty(1024, 256)).shape
    joined = d.get("b32.conv1.weight", torch.empty(widths[min(16, max(widths))]))
    return DiscriminatorConfig(
        base=_base(widths),
        most=widths[4],
        divisor=max(1, widths[min(16, max(widths))] // len(joined)),
        gaps=gaps,
        embedding=embedding,
        layers=_count(d, r"mapping\.fc\d+\.weight") or 2,
        labels="joined",
        clamp=clamp,
    )
