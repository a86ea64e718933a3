"""What a recipe would train and what it costs, without training it.

Operations are those of matrix products, convolutions and attention, forwards and backwards, counted on real clips.
"""

from __future__ import annotations

import torch
import yaml
from torch.utils.flop_counter import FlopCounterMode

from longtake.data.batch import Batch
from longtake.data.library import Library
from longtake.data.loader import Loader
from longtake.systems.base import Stage, Trainable
from longtake.train.engine import FabricEngine, make_fabric
from longtake.train.loop import build
from longtake.train.recipe import Recipe

LARGEST = 100_000_000
"""Parameters up to which one micro-batch is really run to count its operations."""


def describe(recipe: Recipe) -> str:
    """The resolved recipe, parameters, clips, FLOPs and memory of every stage.

    FLOPs and activations are counted on one real clip a draw and scaled to the batch; parameters, gradients,
    optimiser moments and averages are counted exactly.
    """
    library = Library(recipe.data)
    system = build(recipe, library)
    lines = [yaml.safe_dump(recipe.to_dict(), sort_keys=False).rstrip(), ""]
    for name, network in system.networks.items():
        lines.append(f"network {name}: {_count(network):,} parameters")
    for stage in system.stages():
        lines += _stage(stage, system, library, recipe)
    return "\n".join(lines)


def count_flops(recipe: Recipe, updates: int = 16) -> dict[str, tuple[int, float]]:
    """Updates of every stage and FLOPs of one of them, one process.

    Args:
        recipe: what is trained.
        updates: so many of a stage's last updates are counted and averaged: more than one, for what is not part of
            every update (lazy regularisation, draws of pictures now and then).

    Raises:
        UserError: a library that does not fit the recipe.
    """
    library = Library(recipe.data)
    system = build(recipe, library)
    found = {}
    for stage in system.stages():
        loader = Loader(library, stage.clips, "train", recipe.seed, cache_bytes=0)
        found[stage.name] = (stage.steps, _measure(stage, system, loader, recipe, updates, None)[0])
    return found


def _stage(stage: Stage, system: Trainable, library: Library, recipe: Recipe) -> list[str]:
    loader = Loader(library, stage.clips, "train", recipe.seed, cache_bytes=0)
    lines = [f"stage {stage.name}: {stage.steps:,} updates, trains {', '.join(stage.trains)}"]
    for name, draw in stage.clips.items():
        places, rows = loader.pickers[name].total, len(loader.pickers[name].rows)
        lines.append(
            f"  {name}: {draw.batch} clips of {draw.spec.frames} frames a process, "
            f"from {places:,} places in {rows} videos"
        )
    trained = sum(_count(system.networks[n]) for n in stage.trains)
    copies = 4 + (stage.ema is not None)  # weights, gradients, two moments, averages
    held = trained * 4 * copies + sum(_count(system.networks[n]) for n in stage.frozen) * 4
    if trained > LARGEST:
        lines.append(f"  memory: {held / 2**30:.2f} GiB and activations (too large to count here)")
        return lines
    flops, activations = _measure(stage, system, loader, recipe)
    lines.append(f"  compute: {flops / 1e9:.1f} GFLOP an update, {flops * stage.steps / 1e15:.3f} PFLOP in all")
    lines.append(f"  memory: about {(held + activations / recipe.loop.accumulate) / 2**30:.2f} GiB a process")
    return lines


def _measure(
    stage: Stage, system: Trainable, loader: Loader, recipe: Recipe, updates: int = 1, clips: int | None = 2
) -> tuple[float, float]:
    """FLOPs of an update and bytes of saved activations, from the last (fully switched on) ones.

    `clips` of each draw are really run, and the figures scaled to the largest batch; None: all of them.
    """
    engine = FabricEngine(make_fabric("32", "cpu"), system.networks, stage, 1, recipe.seed)
    flops, saved = 0.0, 0
    steps = range(max(0, stage.steps - updates), max(1, stage.steps))
    for step in steps:
        batches = {name: _ready(batch, stage) for name, batch in loader.batches(step).items()}
        size = max(len(batch["id"]) for batch in batches.values())
        few = {name: Batch(**{k: v[:clips] for k, v in batch.items()}) for name, batch in batches.items()}
        engine.begin(step)
        kept: dict[int, int] = {}

        def keep(tensor: torch.Tensor, kept: dict[int, int] = kept) -> torch.Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with FlopCounterMode(display=False) as counter:
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
                stage.step(few, engine)
        scale = size / min(clips or size, size)
        flops += counter.get_total_flops() * scale / len(steps)
        saved = max(saved, int(sum(kept.values()) * scale))
    return flops, saved


def _ready(batch: Batch, stage: Stage) -> Batch:
    if stage.derive is None:
        return batch
    with torch.no_grad():
        return Batch(**{**batch, **stage.derive(batch)})


def _count(network: torch.nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())
