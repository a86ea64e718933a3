"""What the commands do: they wire arguments to the library's functions and show progress."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console

from longtake import api
from longtake.config import read_yaml
from longtake.errors import UserError
from longtake.progress import progress_bar
from longtake.rollout.memory import steady_allocations
from longtake.story import TIMED, WHOLE, Story
from longtake.systems.base import System

console = Console(stderr=True)
"""Progress goes to stderr; what a command answers goes to stdout."""


def pick_device(name: str) -> torch.device:
    """The device of that name; "auto" is CUDA where there is one, else the CPU.

    Raises:
        UserError: no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise UserError(f"there is no device {name!r} here; try --device cpu", code=2) from None
    return device


@contextmanager
def show_progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar with time left on a terminal; elsewhere a plain line at every tenth of the way."""
    begun, told = time.monotonic(), 0
    if console.is_terminal:
        with progress_bar(console) as bar:
            task = bar.add_task(what, total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)
        return

    def lines(done: int, total: int) -> None:
        nonlocal told
        if done * 10 // max(1, total) > told or done == total:
            told = done * 10 // max(1, total)
            passed = time.monotonic() - begun
            left = passed / max(1, done) * (total - done)
            text = f"{what} {done}/{total}, {done / max(passed, 1e-9):.1f}/s, {left:.0f} s left"
            console.print(text, highlight=False, soft_wrap=True)

    yield lines


def generate_to_file(args: argparse.Namespace) -> None:
    """`longtake generate`."""
    steady_allocations()
    story = _story(args)
    system = api.load(args.model, pick_device(args.device), getattr(torch, args.dtype))
    api.configure(system, parse_settings(args.set))
    stories = [system.check(replace(story, seed=story.seed + i)) for i in range(args.videos)]
    if args.compile:
        system.compile()
    upscaler = api.load_upscaler(args.upscale, system.device) if args.upscale else None
    batch = args.batch or args.videos
    written: list[Path] = []
    for begin in range(0, args.videos, batch):
        group = api.Video(system, stories[begin : begin + batch], upscaler=upscaler)
        sheet = args.sheet if begin == 0 else None
        with show_progress(f"frames of {group.count} video{'s' * (group.count > 1)}") as progress:
            written += group.save(args.output, progress, sheet, first=begin if args.videos > 1 else None)
    for path in [*written, *([Path(args.sheet)] if args.sheet else [])]:
        print(path)


def _story(args: argparse.Namespace) -> Story:
    """The story file, if any, with what the command line says on top of it."""
    story = api.read_story(args.story) if args.story else Story()
    story = story.told(
        **{name: getattr(args, name) for name in ("frames", "seconds", "seed", "fps", *TIMED, *WHOLE)}
    )
    if story.frames is None and story.seconds is None:
        raise UserError("how long? give --frames or --seconds, or a story that says so", code=2)
    return story


def parse_settings(assignments: list[str]) -> dict:
    """NAME=VALUE pairs as a dict."""
    settings = {}
    for text in assignments:
        name, equals, value = text.partition("=")
        if not equals:
            raise UserError(f"--set {text}: write it as NAME=VALUE, for example --set top_k=100", code=2)
        settings[name] = read_yaml(value, f"--set {text}")
    return settings


def reconstruct_to_file(model: str, source: str, output: str, device: str) -> None:
    """`longtake reconstruct`."""
    from longtake.report.reconstruct import reconstruct

    system = api.load(model, pick_device(device))
    with show_progress("frames") as progress:
        figures = reconstruct(system, source, output, progress)
    print(f"{output}: PSNR {figures['psnr']:.2f} dB over {figures['frames']:.0f} frames, ", end="")
    print(f"{figures['codes']:.0f} of {figures['codebook']:.0f} codes used")


def sample_library(
    name: str,
    output: str,
    minutes: float,
    size: int,
    seed: int,
    games: list[str] | None,
    test: float,
    workers: int,
) -> None:
    """`longtake data sample`."""
    from longtake.data.samples import sample

    with show_progress("frames recorded") as progress:
        sample(
            name,
            output,
            minutes=minutes,
            size=size,
            seed=seed,
            games=games,
            test=test,
            workers=workers,
            progress=lambda done, total, game: progress(done, total),
        )
    inspect_library(output, None)


def prepare_library(args: argparse.Namespace) -> None:
    """`longtake data prepare`."""
    from longtake.data.prepare import prepare

    with show_progress("files") as progress:
        report = prepare(
            args.source,
            args.output,
            size=args.size,
            fps=args.fps,
            captions=args.captions,
            crop=args.crop,
            test_fraction=args.test,
            split_seed=args.seed,
            split_by=args.split_by,
            split_lists=args.split_lists,
            min_frames=args.min_frames,
            layout=args.layout,
            workers=args.workers,
            progress=lambda done, total, name: progress(done, total),
        )
    print(report)


def inspect_library(library: str, sheet: str | None) -> None:
    """`longtake data inspect`."""
    from longtake.data.inspect import inspect

    print(inspect(library, sheet))


def train_recipe(args: argparse.Namespace) -> None:
    """`longtake train`."""
    from longtake.train.dryrun import describe
    from longtake.train.loop import Trainer
    from longtake.train.recipe import read_recipe

    init = dict(_pair(text) for text in args.init)
    recipe = read_recipe(args.recipe, args.overrides, args.data, args.output, init)
    if args.dry_run:
        print(describe(recipe))
        return
    Trainer(recipe, str(pick_device(args.device))).run()


def _pair(text: str) -> tuple[str, str]:
    net, equals, model = text.partition("=")
    if not equals:
        raise UserError(f"--init {text}: write it as NETWORK=MODEL, for example --init vqgan=runs/mine", code=2)
    return net, model


def evaluate_model(args: argparse.Namespace) -> None:
    """`longtake evaluate`."""
    from longtake.data.library import Library
    from longtake.metrics.cuts import CutDetector
    from longtake.metrics.evaluate import OwnWeights, evaluate, knows
    from longtake.metrics.extractors.registry import DEFAULT_EXTRACTOR, make_extractor
    from longtake.metrics.protocol import find_protocol
    from longtake.metrics.sources import FolderSource, ModelSource
    from longtake.metrics.text import ClipScorer
    from longtake.systems.folder import bundled, is_model
    from longtake.systems.perceptual import load_perceptual

    device, protocol, library = pick_device(args.device), find_protocol(args.protocol), Library(args.data)
    names = args.extractor or [name for name in bundled() if name == DEFAULT_EXTRACTOR]
    extractors = [make_extractor(name, device) for name in names if name != "none"]
    for extractor in extractors:
        if not knows(extractor, library):
            console.print(
                f"{extractor.name} was trained on other classes than those of {args.data}: class scores are left "
                "out, and its distances say little; train a classifier of your own or bring I3D (docs/metrics.md)",
                soft_wrap=True,
                highlight=False,
            )
    of_files = Path(args.source).is_dir() and not is_model(args.source)
    of_models, of_folders = ("given", "told", "set"), ("reference", "seam_period", "seam_first")
    for option in (*of_models, *of_folders):
        only_files = option in of_folders
        if getattr(args, option) and only_files != of_files:
            kind = "a folder of videos" if only_files else "a model"
            raise UserError(f"--{option.replace('_', '-')} goes with {kind}; leave it out", code=2)
    if args.seam_first and not args.seam_period:
        raise UserError("--seam-first is of no use alone: add --seam-period, the frames between joins", code=2)
    if not of_files:
        system = api.configure(api.load(args.source, device), parse_settings(args.set))
        count = args.videos or max(1, protocol.fake_videos // args.samples) * args.samples
        frames = args.frames or protocol.frames
        source = ModelSource(
            system, library, count, frames, args.seed, protocol.to_bytes, args.samples, args.given, told=args.told
        )
    else:
        real = Path(args.reference) if args.reference else None
        source = FolderSource(
            Path(args.source),
            args.videos,
            args.frames,
            protocol.frames,
            args.seam_period,
            real,
            args.samples,
            args.seam_first,
        )
    own = OwnWeights(
        load_perceptual(args.lpips) if args.lpips else None,
        ClipScorer(args.clip, device) if args.clip else None,
        CutDetector(args.cuts, device) if args.cuts else None,
    )
    with show_progress("frames measured") as progress:
        result = evaluate(
            source,
            library,
            args.output,
            protocol,
            extractors,
            args.batch,
            args.keep,
            args.seed,
            own,
            progress,
        )
    if result is None:
        return
    for line in result.lines():
        print(line)
    print(Path(args.output) / "result.json")


def compare_results(results: list[str], output: str) -> None:
    """`longtake compare`."""
    from longtake.report.compare import compare

    groups = compare(results, output)
    if len(groups) > 1:
        told = "; ".join(", ".join(group) for group in groups)
        console.print(
            f"{len(groups)} protocols that cannot be compared, in tables of their own: {told}", highlight=False
        )
    print(output)


def convert_checkpoint(
    family: str, files: list[str], output: str, fps: float, size: tuple[int, int] | None
) -> None:
    """`longtake convert`."""
    from importlib import import_module

    module = import_module(f"longtake.systems.{family}.convert")
    system: System = module.convert([Path(f) for f in files], fps, size)
    from longtake.systems.folder import save

    save(system, output, card=f"# {family}\n\nConverted from {', '.join(Path(f).name for f in files)}.\n")
    print(output)
