"""Clips a second: decoded at every access, from the decoded cache, and what a training step eats.

    python benchmarks/loading.py --data LIBRARY --output docs/results/loading.json

One run, the same clips in every arm; the headline is the ratio of the loader's rate to the training step's.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from longtake.data.library import Library
from longtake.data.loader import Loader
from longtake.systems.base import Stage
from longtake.train.engine import FabricEngine, make_fabric
from longtake.train.loop import build
from longtake.train.recipe import Recipe, read_recipe


def loading_rate(library: Library, stage: Stage, cache_bytes: int, workers: int, steps: int) -> float:
    """Clips a second of the stage's first draw."""
    loader = Loader(library, stage.clips, seed=1, cache_bytes=cache_bytes, workers=workers)
    stream = loader.stream(0, steps + 4)
    for _ in range(4):
        next(stream)
    begun = time.monotonic()
    clips = sum(len(batch["id"]) for batches in stream for batch in batches.values())
    return clips / (time.monotonic() - begun)


def training_rate(recipe: Recipe, library: Library, steps: int) -> float:
    """Clips a second that the first stage's fully switched-on update eats, with its clips at hand."""
    system = build(recipe, library)
    stage = system.stages()[0]
    fabric = make_fabric(recipe.loop.precision, "cpu")
    engine = FabricEngine(fabric, system.networks, stage, 1, 0)
    batches = Loader(library, stage.clips, cache_bytes=0).batches(0)
    clips = sum(len(batch["id"]) for batch in batches.values())
    for i in range(steps + 1):
        if i == 1:
            begun = time.monotonic()
        engine.begin(stage.steps - 1)
        stage.step(batches, engine)
    return steps * clips / (time.monotonic() - begun)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--recipe", default="recipes/tats-atari-small.yaml")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--output")
    args = parser.parse_args()
    library, recipe = Library(args.data), read_recipe(args.recipe, data=args.data)
    stage = build(recipe, library).stages()[0]
    rates = {"training step": training_rate(recipe, library, 5)}
    for workers in (1, 2):
        rates[f"decoding, {workers} threads"] = loading_rate(library, stage, 0, workers, args.steps)
        rates[f"decoded cache, {workers} threads"] = loading_rate(library, stage, 1 << 33, workers, args.steps)
    eaten = rates["training step"]
    for name, rate in rates.items():
        print(f"{name:26s} {rate:8.1f} clips/s, {rate / eaten:6.1f} times what the training step eats")
    if args.output:
        record = {"recipe": Path(args.recipe).name, "size": list(library.header.size), "clips_per_second": rates}
        Path(args.output).write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
