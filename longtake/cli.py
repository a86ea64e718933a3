"""The command line: one plain function a sub-command, no logic."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

from longtake import __version__
from longtake.errors import UserError

Args = argparse.Namespace


class Help(argparse.RawDescriptionHelpFormatter):
    """Keeps the examples' line breaks."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=28, width=100)


def models(args: Args) -> None:
    from longtake.report.listing import list_models

    list_models()


def systems(args: Args) -> None:
    from longtake.report.listing import list_systems

    list_systems()


def generate(args: Args) -> None:
    from longtake.commands import generate_to_file

    generate_to_file(args)


def reconstruct(args: Args) -> None:
    from longtake.commands import reconstruct_to_file

    reconstruct_to_file(args.model, args.video, args.output, args.device)


def data_sample(args: Args) -> None:
    from longtake.commands import sample_library

    sample_library(args.name, args.output, args.minutes, args.size, args.seed, args.games, args.test, args.workers)


def data_prepare(args: Args) -> None:
    from longtake.commands import prepare_library

    prepare_library(args)


def data_inspect(args: Args) -> None:
    from longtake.commands import inspect_library

    inspect_library(args.library, args.sheet)


def train(args: Args) -> None:
    from longtake.commands import train_recipe

    train_recipe(args)


def evaluate(args: Args) -> None:
    from longtake.commands import evaluate_model

    evaluate_model(args)


def compare(args: Args) -> None:
    from longtake.commands import compare_results

    compare_results(args.results, args.output)


def convert(args: Args) -> None:
    from longtake.commands import convert_checkpoint

    convert_checkpoint(args.family, args.files, args.output, args.fps, args.size)


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    top = argparse.ArgumentParser(
        prog="longtake",
        description="Train a video generator on short clips and roll it out into minutes of video.",
        formatter_class=Help,
        epilog="example:\n  longtake generate tats-atari -o out.mp4 --frames 1024",
    )
    top.add_argument("--version", action="version", version=f"longtake {__version__}")
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True)

    _add(commands, "models", models, "list the bundled models", "longtake models")
    _add(commands, "systems", systems, "list the systems, what they accept and need", "longtake systems")

    p = _add(
        commands,
        "generate",
        generate,
        "generate a video of any length, streamed to a file",
        "longtake generate tats-atari -o out.mp4 --frames 1024 --label enduro --seed 3",
    )
    p.add_argument("model", metavar="MODEL", help="a model folder, a bundled name or a Hub id")
    p.add_argument(
        "-o", "--output", required=True, metavar="OUT.mp4", help="the video; several become OUT-000.mp4 ..."
    )
    p.add_argument("--frames", type=_positive, metavar="N", help="length in frames")
    p.add_argument("--seconds", type=float, metavar="S", help="length in seconds")
    p.add_argument("--seed", type=int, metavar="N", help="seed of the first video (default 0)")
    p.add_argument("--label", metavar="CLASS", help="a class of the model, shown throughout")
    for name, meta, text in (
        ("prompt", "TEXT", "what is to be seen, in words"),
        ("audio", "FILE", "sound that steers the video"),
        ("states", "FILE", "a trajectory, one row a frame"),
        ("first-frames", "VIDEO", "the video starts with these frames"),
        ("last-frame", "IMAGE", "the video ends with this frame"),
        ("source-video", "VIDEO", "the video to re-create"),
    ):
        p.add_argument(f"--{name}", metavar=meta, help=text)
    p.add_argument("--fps", type=float, help="frames a second (continuous-time systems only)")
    p.add_argument("--story", metavar="FILE.yaml", help="length, seed and conditions over time")
    p.add_argument("--videos", type=_positive, default=1, metavar="N", help="how many videos (seeds follow on)")
    p.add_argument("--batch", type=_positive, metavar="N", help="how many at a time (default: all)")
    p.add_argument("--sheet", metavar="PNG", help="also write a contact sheet")
    p.add_argument("--upscale", metavar="MODEL", help="a trained upscaler that enlarges the frames")
    p.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32", help="of the weights")
    p.add_argument("--compile", action="store_true", help="compile the networks first (worth it for long videos)")
    _settings(p, "for example top_k=100 keep=1")
    _device(p)

    p = _add(
        commands,
        "reconstruct",
        reconstruct,
        "encode and decode a video: original beside reconstruction",
        "longtake reconstruct tats-atari clip.mp4 -o both.mp4",
    )
    p.add_argument("model", metavar="MODEL", help="a model folder, a bundled name or a Hub id")
    p.add_argument("video", metavar="VIDEO", help="any video file")
    p.add_argument("-o", "--output", required=True, metavar="OUT.mp4")
    _device(p)

    _data_commands(commands)

    p = _add(
        commands,
        "train",
        train,
        "train a recipe; the same command again goes on where it stopped",
        "longtake train recipes/tats-atari-small.yaml --data data/atari -o runs/tats config.vqgan_stage.batch=4",
    )
    p.add_argument("recipe", metavar="RECIPE.yaml")
    p.add_argument("overrides", nargs="*", metavar="FIELD=VALUE", help="override a field of the recipe")
    p.add_argument("--data", metavar="DIR", help="a prepared library")
    p.add_argument("-o", "--output", metavar="DIR", help="folder of the run (default runs/<recipe>)")
    p.add_argument(
        "--init", action="append", default=[], metavar="NET=MODEL", help="start a network from another model"
    )
    p.add_argument(
        "--dry-run", action="store_true", help="print what would be trained and what it costs, then stop"
    )
    _device(p)

    p = _add(
        commands,
        "evaluate",
        evaluate,
        "measure a model, or a folder of videos, under a stated protocol",
        "longtake evaluate tats-atari --data data/atari -o runs/eval --videos 64 --frames 256",
    )
    p.add_argument("source", metavar="SOURCE", help="a model, or a folder of videos made by anything")
    p.add_argument("--data", required=True, metavar="DIR", help="a prepared library")
    p.add_argument("-o", "--output", required=True, metavar="DIR", help="folder for result.json and the videos")
    p.add_argument("--protocol", default="longtake-1", metavar="NAME", help="see the docs (default longtake-1)")
    p.add_argument(
        "--extractor",
        action="append",
        metavar="E",
        help="a classifier, or i3d=FILE, inception=FILE ...; again for more; none: no features (default r3d-atari)",
    )
    p.add_argument("--videos", type=_positive, metavar="N", help="how many (default: the protocol's)")
    p.add_argument("--frames", type=_positive, metavar="F", help="frames a video (default: the protocol's)")
    p.add_argument("--batch", type=_positive, default=8, metavar="N", help="videos at a time")
    p.add_argument("--keep", type=int, default=8, metavar="N", help="videos also written as files (default 8)")
    p.add_argument(
        "--seam-period", type=_positive, metavar="F", help="frames between joins, for a folder of videos"
    )
    p.add_argument(
        "--seam-first", type=_positive, metavar="F", help="where the second piece begins, if not at --seam-period"
    )
    p.add_argument("--reference", metavar="DIR", help="real videos that those of a folder should equal: PSNR, SSIM")
    p.add_argument(
        "--given", type=_positive, default=0, metavar="N", help="give a model the first N frames of test videos"
    )
    p.add_argument(
        "--told", nargs="+", choices=["audio", "states"], default=(), help="tell a model these of test videos too"
    )
    p.add_argument("--lpips", metavar="FILE", help="LPIPS weights: first frame against last")
    p.add_argument("--clip", metavar="DIR", help="a CLIP as transformers keeps it: CLIPSIM, VTM (needs texts)")
    p.add_argument("--cuts", metavar="FILE", help="TransNetV2 as TorchScript: shot cuts")
    p.add_argument(
        "--samples", type=_positive, default=1, metavar="N", help="videos a condition; above 1: DIV among them"
    )
    p.add_argument("--seed", type=int, default=0, metavar="N")
    _settings(p, "as in generate")
    _device(p)

    p = _add(
        commands,
        "compare",
        compare,
        "results side by side on one HTML page",
        "longtake compare runs/eval-a runs/eval-b -o report.html",
    )
    p.add_argument("results", nargs="+", metavar="RESULT", help="result.json, or the folder it is in")
    p.add_argument("-o", "--output", required=True, metavar="REPORT.html")

    p = _add(
        commands,
        "convert",
        convert,
        "read the authors' checkpoints without running any code in them",
        "longtake convert tats vqgan.ckpt transformer.ckpt -o models/tats-sky",
    )
    p.add_argument("family", choices=["tats", "ccvs", "stylegan_v"])
    p.add_argument(
        "files",
        nargs="+",
        metavar="FILE",
        help="tats: VQGAN.ckpt, TRANSFORMER.ckpt; ccvs: folders of the release; stylegan_v: network-snapshot.pkl",
    )
    p.add_argument("-o", "--output", required=True, metavar="DIR")
    p.add_argument("--fps", type=float, default=15.0, help="frame rate of the footage (default 15)")
    p.add_argument("--size", type=_size, metavar="N or HxW", help="frame size, where the file tells it wrongly")
    return top


def _data_commands(commands) -> None:
    group = commands.add_parser("data", help="make, prepare and inspect libraries of video", formatter_class=Help)
    kinds = group.add_subparsers(title="commands", metavar="COMMAND", required=True)
    p = _add(
        kinds,
        "sample",
        data_sample,
        "record a sample library on this machine",
        "longtake data sample atari -o data/atari --minutes 60",
    )
    p.add_argument("name", choices=["atari", "pusher"])
    p.add_argument("-o", "--output", required=True, metavar="DIR")
    p.add_argument("--minutes", type=float, default=10.0, metavar="M", help="of video in all (default 10)")
    p.add_argument("--size", type=_positive, default=64, metavar="PIXELS")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--games", nargs="+", metavar="GAME", help="some of the Atari games (default all)")
    p.add_argument("--test", type=float, default=0.1, metavar="SHARE", help="share of the shots for the test split")
    p.add_argument("--workers", type=_positive, default=2, metavar="N", help="processes")

    p = _add(
        kinds,
        "prepare",
        data_prepare,
        "turn anyone's files into a library",
        "longtake data prepare my-videos -o data/mine --size 64 --fps 15",
    )
    p.add_argument("source", metavar="SRC", help="folder, tar, zip or HDF5 file")
    p.add_argument("-o", "--output", required=True, metavar="DIR")
    p.add_argument("--size", type=_size, default=(64, 64), metavar="N or HxW", help="frame size (default 64)")
    p.add_argument("--fps", type=float, metavar="F", help="one frame rate for all (needed where they differ)")
    p.add_argument(
        "--crop", choices=["crop", "letterbox", "stretch"], default="crop", help="how frames become the size"
    )
    p.add_argument("--captions", metavar="CSV", help="columns file, text and, if timed, t0, t1 in seconds")
    p.add_argument("--test", type=float, default=0.1, metavar="SHARE", help="share of videos for the test split")
    p.add_argument("--split-by", choices=["group", "video"], default="group", help="kept on one side of the split")
    p.add_argument(
        "--split-lists", nargs="+", metavar="FILE", help="official lists, test lists have 'test' in the name"
    )
    p.add_argument("--min-frames", type=_positive, default=16, metavar="N", help="shorter videos are rejected")
    p.add_argument("--layout", default="auto", metavar="NAME", help="layout of SRC (default: recognised)")
    p.add_argument("--seed", type=int, default=0, help="of the split")
    p.add_argument("--workers", type=_positive, default=2, metavar="N")

    p = _add(
        kinds, "inspect", data_inspect, "what is in a library", "longtake data inspect data/mine --sheet mine.png"
    )
    p.add_argument("library", metavar="DIR")
    p.add_argument("--sheet", metavar="PNG", help="write a contact sheet")


def _add(commands, name: str, run: Callable, text: str, example: str) -> argparse.ArgumentParser:
    p = commands.add_parser(
        name,
        help=text,
        description=text[0].upper() + text[1:] + ".",
        epilog=f"example:\n  {example}",
        formatter_class=Help,
    )
    p.add_argument("--debug", action="store_true", help="show tracebacks")
    p.set_defaults(run=run)
    return p


def _settings(p: argparse.ArgumentParser, hint: str) -> None:
    help = f"settings of the system, {hint}"
    p.add_argument("--set", nargs="+", action="extend", default=[], metavar="NAME=VALUE", help=help)


def _device(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "--device", default="auto", metavar="D", help="cpu, cuda, mps (default: cuda where there is one)"
    )


def _positive(text: str) -> int:
    value = int(text) if text.lstrip("+").isdigit() else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return value


def _size(text: str) -> tuple[int, int]:
    height, _, width = text.lower().partition("x")
    return _positive(height), _positive(width or height)


def _parse(argv: list[str] | None) -> Args:
    """Parse, with FIELD=VALUE overrides of a recipe allowed anywhere (argparse itself takes them in one place)."""
    top = parser()
    args, rest = top.parse_known_args(argv)
    if rest:
        if args.run is not train or any(text.startswith("-") or "=" not in text for text in rest):
            top.error(f"unrecognized arguments: {' '.join(rest)}")
        args.overrides += rest
    return args


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit code: 0 done, 1 failed, 2 bad usage, 130 interrupted."""
    args = _parse(argv)
    try:
        args.run(args)
        return 0
    except UserError as error:
        if args.debug:
            raise
        print(f"longtake: {error}", file=sys.stderr)
        return error.code
    except KeyboardInterrupt:
        print("longtake: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        if args.debug:
            raise
        name = type(error).__name__
        print(f"longtake: unexpected {name}: {error}; run it again with --debug to see where", file=sys.stderr)
        return 1
