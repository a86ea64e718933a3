"""Peak memory of `longtake generate` against the length of the video: it must not grow.

    python benchmarks/memory.py MODEL --output docs/results/memory.json
    python benchmarks/memory.py runs/loong --prompt 'the plane flies on' --set guidance_scale=3

Each length runs in a process of its own; the figure is that process's peak resident set. Options that are not
listed below go to `longtake generate`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CHILD = (
    "import resource, sys; from longtake.cli import main; code = main(sys.argv[1:]); "
    "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss); sys.exit(code)"
)


def measure(model: str, frames: int, more: list[str]) -> tuple[float, float]:
    """(peak RSS in MiB, seconds) of generating one video."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["generate", model, "-o", str(Path(folder) / "out.mp4"), "--frames", str(frames), *more]
        begun = time.monotonic()
        done = subprocess.run([sys.executable, "-c", CHILD, *command], capture_output=True, text=True, check=True)
        unit = 1024 if sys.platform != "darwin" else 1024**2
        return int(done.stdout.split()[-1]) / unit, time.monotonic() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--frames", type=int, nargs="+", default=[256, 1024, 8192])
    parser.add_argument("--output")
    args, more = parser.parse_known_args()
    rows = []
    for frames in args.frames:
        peak, seconds = measure(args.model, frames, more)
        rows.append({"frames": frames, "peak_rss_mib": round(peak, 1), "seconds": round(seconds, 3)})
        print(f"{frames:6d} frames: peak {peak:7.1f} MiB, {seconds:6.1f} s", flush=True)
    growth = rows[-1]["peak_rss_mib"] / rows[0]["peak_rss_mib"] - 1
    print(f"growth from {args.frames[0]} to {args.frames[-1]} frames: {growth:+.1%}")
    if args.output:
        record = {"model": Path(args.model).name, "options": more, "rows": rows, "growth": round(growth, 4)}
        Path(args.output).write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
