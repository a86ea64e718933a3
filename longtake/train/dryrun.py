"""What a recipe would train and what it costs, without training it.

Operations are those of matrix products, convolutions and attention, forwards and backwards, counted on real clips.
"""

from __future__ import annotations

import math

import torch
import yaml

from longtake.data.batch import Batch
from longtake.data.library import Library
from longtake.data.loader import Loader
from longtake.systems.base import Stage, Trainable
from longtake.train.engine import FabricEngine, make_fabric
from longtake.train.flops import flop_counter
from longtake.train.loop import build, pending_stages
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
    for stage in pending_stages(system):
        lines += _stage(stage, system, library, recipe)
    return "\n".join(lines)


def count_flops(recipe: Recipe, updates: int = 16) -> dict[str, tuple[int, float]]:
    """Updates of every stage and FLOPs of one of them on the mean over the stage, one process.

    What switches on in the midst of a stage (discriminators, quantising) counts from then on. Deriving tokens or
    latents from clips counts once for each different clip that is expected to be drawn.

    Args:
        recipe: what is trained.
        updates: so many updates on end are averaged: more than one, for what is not part of every update (lazy
            regularisation, draws of pictures now and then).

    Raises:
        UserError: a library that does not fit the recipe.
    """
    library = Library(recipe.data)
    system = build(recipe, library)
    found = {}
    for stage in pending_stages(system):
        counter = _Counter(stage, system, Loader(library, stage.clips, "train", recipe.seed, cache_bytes=0), recipe)
        mean = counter.mean(0, max(0, stage.steps - updates), min(updates, stage.steps))
        found[stage.name] = (stage.steps, mean + counter.deriving())
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
    counter = _Counter(stage, system, loader, recipe, clips=2)
    flops = counter.at(max(0, stage.steps - 1), 1)  # the last update, in which everything is switched on
    lines.append(
        f"  compute: {flops / 1e9:.1f} GFLOP an update, at most {flops * stage.steps / 1e15:.3f} PFLOP in all"
    )
    lines.append(f"  memory: about {(held + counter.saved / recipe.loop.accumulate) / 2**30:.2f} GiB a process")
    return lines


class _Counter:
    """FLOPs of a stage's updates and bytes of the activations they save.

    `clips` of each draw are really run, and the figures scaled to the largest batch; None: all of them.
    """

    def __init__(
        self, stage: Stage, system: Trainable, loader: Loader, recipe: Recipe, clips: int | None = None
    ) -> None:
        self.stage, self.loader, self.clips = stage, loader, clips
        self.engine = FabricEngine(make_fabric("32", "cpu"), system.networks, stage, 1, recipe.seed)
        self.saved = 0
        self.derived: list[float] = []
        """FLOPs of deriving from each update's clips."""

    def at(self, first: int, updates: int) -> float:
        """FLOPs an update, of so many updates from `first` on."""
        return sum(self._update(step) for step in range(first, first + updates)) / updates

    def mean(self, first: int, last: int, updates: int) -> float:
        """FLOPs an update from `first` to `last`, between which it changes at most a few times: by halving."""
        before = self.at(first, updates)
        after = self.at(last, updates) if last > first else before
        return self._between(first, last, before, after, updates)

    def _between(self, first: int, last: int, before: float, after: float, updates: int) -> float:
        if abs(before - after) < 0.02 * max(before, after) or last - first <= max(updates, self.stage.steps // 32):
            return (before + after) / 2
        middle = (first + last) // 2
        half = self.at(middle, updates)
        early = self._between(first, middle, before, half, updates)
        return (early + self._between(middle, last, half, after, updates)) / 2

    def deriving(self) -> float:
        """FLOPs an update, on the mean, of what is derived from clips and kept."""
        share = 0.0
        for name, draw in self.stage.clips.items():
            drawn, places = self.stage.steps * draw.batch, self.loader.pickers[name].total
            share = max(share, places * -math.expm1(-drawn / places) / drawn)  # of the clips drawn, new ones
        return sum(self.derived) / max(1, len(self.derived)) * share

    def _update(self, step: int) -> float:
        with flop_counter() as deriving:
            batches = {name: _ready(batch, self.stage) for name, batch in self.loader.batches(step).items()}
        self.derived.append(deriving.get_total_flops())
        size = max(len(batch["id"]) for batch in batches.values())
        few = {name: Batch(**{k: v[: self.clips] for k, v in batch.items()}) for name, batch in batches.items()}
        self.engine.begin(step)
        kept: dict[int, int] = {}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with flop_counter() as counter:
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
                self.stage.step(few, self.engine)
        scale = size / min(self.clips or size, size)
        self.saved = max(self.saved, int(sum(kept.values()) * scale))
        return counter.get_total_flops() * scale


def _ready(batch: Batch, stage: Stage) -> Batch:
    if stage.derive is None:
        return batch
    with torch.no_grad():
        return Batch(**{**batch, **stage.derive(batch)})


def _count(network: torch.nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())
