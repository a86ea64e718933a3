"""Speed and memory of StyleGAN-V: generation and training, ours against the official way, with the same weights.

    python benchmarks/stylegan_v.py --output docs/results/stylegan_v_speed.json
    python benchmarks/stylegan_v.py --sizes 64 --frames 64 --repeats 1

Generation, at the published widths with random weights, on one thread. Times are of the processor, not of the clock
(which is kept too), and every run is a process of its own, arms in turn, best of `--repeats`, because other work on
the machine only ever adds time. The same command goes on where it was stopped.

* ours: frames as they stream, the styles of the video put into the weights once; float32 and bfloat16.
* per-frame: every frame with weights of its own, as grouped convolutions (the official way), 64 frames a call (the
  released code takes 128).
* ceiling: products of square matrices for as many operations as our frames take.

* hour: 90,000 frames of the `tiny` size as one stream: the first minute against the last.

Training, one update of the `small` size: ours against the official way, which draws motion noise from time 0 to the
horizon and resamples every video, by convolutions, at any probability of augmentation. R1, every 16th update, is
the same in both and counts as a 16th of its time.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from longtake.data.batch import Batch
from longtake.nn.precision import fast_bfloat16
from longtake.rollout.memory import steady_allocations
from longtake.story import Story
from longtake.systems.base import ModelInfo
from longtake.systems.stylegan_v import augment, stages
from longtake.systems.stylegan_v.config import SIZES
from longtake.systems.stylegan_v.generator import Generator
from longtake.systems.stylegan_v.layers import Modulation, activate, smooth, upsample
from longtake.systems.stylegan_v.rollout import Film
from longtake.systems.stylegan_v.synthesis import Synthesis
from longtake.systems.stylegan_v.system import StyleGANV

CALL = 64
"""Frames that the official way makes at once."""
MATRIX = 2048


def make(size: int) -> StyleGANV:
    """The generator at the published widths; its discriminator is not needed and would only take memory."""
    torch.manual_seed(0)
    system = StyleGANV(replace(SIZES["paper"], size=(size, size)), ModelInfo(25.0, (size, size))).eval()
    del system.networks["discriminator"], system.discriminator
    return system


def ours(system: StyleGANV, frames: int, precision: str) -> None:
    system.settings = replace(system.settings, precision=precision)
    for _ in system.generate([Story(frames=frames)]):
        pass


@torch.inference_mode()
def per_frame(system: StyleGANV, frames: int) -> None:
    film = Film(system, 0)
    film.enter(0)
    for start in range(0, frames, CALL):
        code = film.codes(torch.arange(start, min(start + CALL, frames), dtype=torch.float64))
        grouped(system.generator.synthesis, film.ws.expand(len(code), -1, -1), code)


def grouped(synthesis: Synthesis, ws: Tensor, code: Tensor) -> Tensor:
    """The synthesis network with weights of its own for every frame."""
    n = len(code)
    x = synthesis.constant.expand(n, -1, -1, -1)
    x, picture = torch.cat([x, code[:, :, None, None].expand(-1, -1, *x.shape[2:])], 1), None
    modulations = iter(synthesis.modulate(ws))
    for block in synthesis.blocks:
        *convolutions, rgb = block.layers()  # type: ignore[operator]
        for layer in (*convolutions, rgb):
            how: Modulation = next(modulations)
            assert how.before is not None
            weight = how.weight * how.before[:, None, :, 0, 0, None, None]
            if how.after is not None:
                weight = weight * how.after[:, :, 0, 0, None, None, None]
            flat = x.reshape(1, -1, *x.shape[2:])
            if layer.up:
                weight = weight.transpose(1, 2).flatten(0, 1)
                made = F.conv_transpose2d(flat, weight, stride=2, groups=n).unflatten(1, (n, -1))[0]
                made = smooth(made, padding=1, gain=4)
            else:
                padding = layer.kernel // 2
                made = F.conv2d(flat, weight.flatten(0, 1), padding=padding, groups=n).unflatten(1, (n, -1))[0]
            if layer is rgb:
                own = made + layer.bias.view(1, -1, 1, 1)
                picture = own if picture is None else upsample(picture) + own
            else:
                x = activate(made, layer.bias)
    assert picture is not None
    return picture


def check(size: int) -> float:
    """Largest difference between both ways."""
    system = make(size)
    film = Film(system, 0)
    with torch.inference_mode():
        mine = film.frames(torch.arange(4.0, dtype=torch.float64), [0] * 4).transpose(0, 1)
        theirs = grouped(
            system.generator.synthesis, film.ws.expand(4, -1, -1), film.codes(torch.arange(4.0).double())
        )
    return float((mine - theirs).abs().max())


def flops(size: int) -> float:
    """Operations of one frame."""
    system = make(size)
    film = Film(system, 0)
    with torch.inference_mode():
        film.enter(0)
        code = film.codes(torch.zeros(1, dtype=torch.float64))
        assert film.folded is not None
        with FlopCounterMode(display=False) as counter:
            system.generator.synthesis(code, film.folded)
    return float(counter.get_total_flops())


def products(precision: str) -> float:
    """Operations a second of a product of square matrices."""
    a = torch.randn(MATRIX, MATRIX).to(getattr(torch, precision))
    return 2 * MATRIX**3 / min(timed(lambda: a @ a)[PROCESSOR] for _ in range(5))


CLOCK, PROCESSOR = 0, 1
HOUR, MINUTE = 90_000, 1500
"""Frames at 25 frames a second."""


def timed(work: Callable[[], Any]) -> tuple[float, float]:
    """Seconds on the clock and of the processor."""
    clock, processor = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - clock, time.process_time() - processor


def peak_rss() -> float:
    """Of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform != "darwin" else 1024**2)


def hour() -> dict[str, float]:
    """An hour of video, of which nothing is kept."""
    torch.manual_seed(0)
    system = StyleGANV(SIZES["tiny"], ModelInfo(25.0, SIZES["tiny"].size)).eval()
    stream, made, ticks, peaks = iter(system.generate([Story(frames=HOUR)])), 0, [time.process_time()], []
    for minute in range(1, HOUR // MINUTE + 1):
        while made < minute * MINUTE:
            made += next(stream).shape[2]
        ticks.append(time.process_time())
        peaks.append(peak_rss())
    first, last = ticks[2] - ticks[1], ticks[-1] - ticks[-2]  # the very first minute warms up
    return {
        "cpu_seconds": ticks[-1] - ticks[0],
        "second_minute_cpu_seconds": first,
        "last_minute_cpu_seconds": last,
        "peak_rss_mib_after_a_minute": peaks[0],
        "peak_rss_mib": peaks[-1],
    }


def training(way: str, p: float, precision: str) -> None:
    """One plain update and one with R1."""
    from longtake.train.engine import FabricEngine, make_fabric  # here: it would count as memory of generation

    config = replace(SIZES["small"], size=(48, 48))
    torch.manual_seed(0)
    system = StyleGANV(config, ModelInfo(15.0, config.size, ("a", "b"), (1, 1)))
    (stage,) = system.stages()
    assert isinstance(stage, stages.GANStage)
    stage.adaptation.p = p
    engine = FabricEngine(make_fabric(precision, "cpu"), system.networks, stage, 1, 0)
    size = config.stage.batch
    batch = Batch(
        frames=torch.rand(size, 3, 3, *config.size) * 2 - 1,
        times=torch.tensor([0, 5, 20]).expand(size, -1),
        label=torch.zeros(size, dtype=torch.long),
        id=torch.arange(size),
    )

    def update(step: int) -> float:
        engine.begin(step)
        stage.adaptation.p = p
        return timed(lambda: stage.step({"clips": batch}, engine))[PROCESSOR]

    with official() if way == "official" else nullcontext():
        update(1)
        plain = min(update(step) for step in range(1, 6))
        with_r1 = min(update(16 * step) for step in range(1, 4))
    print(json.dumps({"cpu_seconds": plain + (with_r1 - plain) / 16, "r1_cpu_seconds": with_r1 - plain}))


@contextmanager
def official() -> Iterator[None]:
    """The official way of noise and augmentation."""

    def convolved(x: Tensor, taps: Tensor, axis: int, up: bool) -> Tensor:
        shape, stride = ((1, 1, -1, 1), (2, 1)) if axis == 2 else ((1, 1, 1, -1), (1, 2))
        flat, kernel = x.flatten(0, 1).unsqueeze(1), taps.view(shape)
        if up:
            made = F.conv_transpose2d(flat, kernel * math.sqrt(2), stride=stride)
        else:
            made = F.conv2d(flat, kernel / math.sqrt(2), stride=stride)
        return made.squeeze(1).unflatten(0, x.shape[:2])

    draw, geometry, apply = Generator.draw, augment.geometry, stages.augment

    def whole(self: Generator, times: Tensor, span: float) -> tuple[Tensor, Tensor, Tensor]:
        z, _, first = draw(self, times, span)
        count = math.ceil(1023 / self.motion.config.spacing) + 2 + self.motion.reach
        return z, torch.randn(len(times), count, self.noise[1]), torch.zeros_like(first)

    def moved(*args: Any) -> Tensor:
        where = geometry(*args).clone()
        where[:, 0, 2] += 1e-6  # never exactly nothing
        return where

    with (
        mock.patch.object(Generator, "draw", whole),
        mock.patch.object(augment, "geometry", moved),
        mock.patch.object(augment, "_along", convolved),
        mock.patch.object(stages, "augment", lambda frames, p, config: apply(frames, max(p, 1e-9), config)),
    ):
        yield


def child(arm: list[str]) -> None:
    """One run; prints its figures."""
    kind, *rest = arm
    torch.set_num_threads(1)
    steady_allocations()
    if kind == "training":
        way, p, precision = rest
        training(way, float(p), precision)
        return
    if kind == "check":
        print(json.dumps({"difference": check(int(rest[0]))}))
        return
    if kind == "hour":
        print(json.dumps(hour()))
        return
    size, frames, precision = int(rest[0]), int(rest[1]), rest[2]
    if kind == "ceiling":
        seconds = flops(size) * frames / products(precision)
        print(json.dumps({"cpu_seconds": seconds}))
        return
    system = make(size)
    clock, processor = timed(
        (lambda: ours(system, frames, precision)) if kind == "ours" else (lambda: per_frame(system, frames))
    )
    print(json.dumps({"seconds": clock, "cpu_seconds": processor, "peak_rss_mib": peak_rss()}))


def run(arm: list[str]) -> dict[str, float]:
    """One run in a process of its own."""
    command = [sys.executable, __file__, "--child", *arm]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def arms(args: argparse.Namespace) -> list[list[str]]:
    """Everything to be run."""
    precisions = ["float32", *(["bfloat16"] if fast_bfloat16() else [])]
    found = []
    for size in args.sizes:
        for frames in args.frames:
            found += [[kind, str(size), str(frames), p] for p in precisions for kind in ("ceiling", "ours")]
            found.append(["per-frame", str(size), str(frames), "float32"])
    found.append(["hour"])
    for p in ("0", "0.3"):
        for precision in ("32", *(["bf16"] if fast_bfloat16() else [])):
            found += [["training", way, p, precision] for way in ("ours", "official")]
    return found


def table(best: dict[str, dict[str, float]]) -> str:
    """Markdown: our ratios."""
    lines = [
        "| pixels | frames | precision | frames/CPU s | x per-frame | memory, of per-frame | % of the ceiling |",
        "|---" * 7 + "|",
    ]
    for arm, row in best.items():
        kind, *rest = arm.split()
        if kind != "ours":
            continue
        size, frames, precision = rest
        other, ceiling = best.get(f"per-frame {size} {frames} float32"), best.get(f"ceiling {' '.join(rest)}")
        ratio = f"{other['cpu_seconds'] / row['cpu_seconds']:.1f}" if other else "-"
        memory = f"{row['peak_rss_mib'] / other['peak_rss_mib']:.2f}" if other else "-"
        share = f"{100 * ceiling['cpu_seconds'] / row['cpu_seconds']:.0f}" if ceiling else "-"
        rate = int(frames) / row["cpu_seconds"]
        lines.append(f"| {size} | {frames} | {precision} | {rate:.2f} | {ratio} | {memory} | {share} |")
    if "hour" in best:
        row = best["hour"]
        minutes = f"{row['second_minute_cpu_seconds']:.2f} and {row['last_minute_cpu_seconds']:.2f} CPU s"
        peaks = f"{row['peak_rss_mib_after_a_minute']:.0f} and {row['peak_rss_mib']:.0f} MiB"
        lines += ["", f"an hour: second and last minute {minutes}; peak after a minute and at the end {peaks}"]
    lines += ["", "| training, precision | p | ours, CPU s | official way, CPU s |", "|---" * 4 + "|"]
    for arm, row in best.items():
        kind, *rest = arm.split()
        if kind == "training" and rest[0] == "ours":
            other = best.get(" ".join(["training", "official", *rest[1:]]))
            theirs = f"{other['cpu_seconds']:.2f}" if other else "-"
            lines.append(f"| {rest[2]} | {rest[1]} | {row['cpu_seconds']:.2f} | {theirs} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--frames", type=int, nargs="+", default=[64, 1024])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path("docs/results/stylegan_v_speed.json"))
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args.child)
        return
    result: dict[str, Any] = json.loads(args.output.read_text()) if args.output.exists() else {"runs": {}}
    result |= {
        # In a process of its own too: a child inherits the peak memory of its parent.
        "difference_between_the_ways": run(["check", str(args.sizes[0])])["difference"],
    }
    machine = f"{platform.machine()} with {torch.backends.cpu.get_cpu_capability()}, torch {torch.__version__}"
    for repeat in range(args.repeats):
        for arm in arms(args):
            name = " ".join(arm)
            runs = result["runs"].setdefault(name, [])
            if len(runs) > repeat:
                continue
            runs.append(run(arm) | {"machine": machine})
            print(f"{repeat + 1}/{args.repeats} {name}: {runs[-1]}", flush=True)
            args.output.parent.mkdir(parents=True, exist_ok=True)
            args.output.write_text(json.dumps(result, indent=1) + "\n")
    print(table({name: {k: min(r[k] for r in runs) for k in runs[0]} for name, runs in result["runs"].items()}))


if __name__ == "__main__":
    main()
