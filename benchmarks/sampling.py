"""Speed of the sampler: against recomputing the prefix, against transformers' `generate`, against the floor.

    python benchmarks/sampling.py --output docs/results/sampling.json
    python benchmarks/sampling.py --quick
    python benchmarks/sampling.py --device cuda --size paper --compile

All arms run in turn in one process, several times over, each with the thread count that is best for it in a short
run; the best time of each arm counts, because other work on the machine only ever adds time. Random weights, one
prefix token, top-k 2,048 where the arm samples. The arms:

* ours: `generate_tokens` with a `Decoder`.
* recompute: our transformer over the whole prefix for each token, head on the last position only. Timed at evenly
  spread prefix lengths and summed over all lengths by the trapezoid rule.
* transformers: `GPT2LMHeadModel.generate` of the same size with its static cache.
* floor: `torch.sum` over as many bytes as the weights (embedding rows looked up, not read whole) and, half filled
  on average, the key-value cache take up; the cache at 2 bytes a number except in float32.

On a CPU without bfloat16 arithmetic, bfloat16 runs at batch 1 and without the other libraries.
"""

import argparse
import itertools
import json
import platform
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from longtake.nn.precision import fast_bfloat16
from longtake.nn.transformer import Transformer, TransformerConfig
from longtake.rollout.engine import Decoder, Precision, generate_tokens
from longtake.rollout.sampling import SamplingSettings

SIZES = {
    "base": {"layers": 8, "width": 512, "heads": 8},  # the size of the published CPU measurements
    "paper": {"layers": 24, "width": 1024, "heads": 16},  # the released TATS models
}
VOCABULARY, TOKENS, TOP_K = 16_384, 1_024, 2_048
TRIAL = 64
"""Tokens of the runs that choose the number of threads."""
SETTINGS = SamplingSettings(top_k=TOP_K, top_p=1.0)
Arm = tuple[str, str, int]  # what, precision, batch
Prepare = Callable[[int], Callable[[], float]]  # tokens -> a run that returns its seconds


def floor(config: TransformerConfig, precision: str, batch: int, count: int, device: str) -> Callable[[], float]:
    """Seconds to read weights and cache once a token, `count` times."""
    block = 12 * config.width**2 + 13 * config.width
    weights = config.layers * block + config.vocabulary * config.width
    weight_bytes = {"float32": 4, "bfloat16": 2, "int8": 1}[precision]
    cache = 2 * config.layers * batch * config.width * count // 2
    cache_bytes = 4 if precision == "float32" else 2
    # Summed as float32, whose sum runs at the memory's speed; the other types would be slowed by conversion.
    memory = torch.ones((weights * weight_bytes + cache * cache_bytes) // 4, device=device)
    passes = min(count, 50)

    def run() -> float:
        return timed(lambda: [memory.sum() for _ in range(passes)], device) * count / passes

    return run


def ours(
    model: Transformer, precision: Precision, batch: int, count: int, device: str, compile: bool
) -> Callable[[], float]:
    decoder = Decoder(model, batch, precision, compile)
    prefix = torch.zeros(batch, 1, dtype=torch.int64, device=device)
    uniforms = torch.rand(batch, count)
    return lambda: timed(lambda: generate_tokens(decoder, prefix, count, uniforms, SETTINGS), device)


def recompute(model: Transformer, precision: str, batch: int, count: int, device: str) -> Callable[[], float]:
    model = Transformer(model.config).to(device, getattr(torch, precision)).eval()
    tokens = torch.zeros(batch, count, dtype=torch.int64, device=device)
    lengths = torch.linspace(1, count, 9 if batch == 1 else 5).long().tolist()

    @torch.inference_mode()
    def seconds(length: int) -> float:
        return timed(lambda: model(tokens[:, :length], last_only=True), device)

    return lambda: float(torch.trapezoid(torch.tensor([seconds(n) for n in lengths]), torch.tensor(lengths)))


def peer(config: TransformerConfig, precision: str, batch: int, count: int, device: str) -> Callable[[], float]:
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = GPT2Config(
        vocab_size=config.vocabulary,
        n_positions=count + 1,
        n_embd=config.width,
        n_layer=config.layers,
        n_head=config.heads,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
    )
    model: Any = GPT2LMHeadModel(sizes)
    model = model.to(device, getattr(torch, precision)).eval()
    prefix = torch.zeros(batch, 1, dtype=torch.int64, device=device)

    def generate() -> Tensor:
        tokens = model.generate(
            prefix,
            attention_mask=torch.ones_like(prefix),
            do_sample=True,
            top_k=TOP_K,
            top_p=1.0,
            max_new_tokens=count,
            cache_implementation="static",
            pad_token_id=0,
        )
        assert tokens.shape == (batch, count + 1)
        return tokens

    return lambda: timed(generate, device)


def emulated(precision: str, device: str) -> bool:
    """Whether this machine has no arithmetic of that type: then only one row at a time has a usable kernel."""
    return device == "cpu" and precision == "bfloat16" and not fast_bfloat16()


def timed(work: Callable[[], object], device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def measure(
    arms: dict[Arm, Prepare], threads: list[int], repeats: int, count: int, compiled: bool
) -> dict[Arm, tuple[float, int]]:
    """The best (seconds, threads) of each arm: a short run tells its best thread count, full runs the time.

    Arms are set up one at a time to keep memory low."""
    best: dict[Arm, tuple[float, int]] = {}
    chosen: dict[Arm, int] = {}
    for repeat, (arm, prepare) in itertools.product(range(repeats), arms.items()):
        if arm not in chosen:
            trial, trials = prepare(min(count, TRIAL)), {}
            for number in threads:
                torch.set_num_threads(number)
                trials[number] = min(trial(), trial())
            chosen[arm] = min(trials, key=lambda number: trials[number])
        torch.set_num_threads(chosen[arm])
        run = prepare(count)
        seconds = min(run(), run()) if compiled and arm[0] == "ours" else run()  # the first one compiles
        best[arm] = min(best.get(arm, (float("inf"), 0)), (seconds, chosen[arm]))
        print(f"  {repeat + 1}/{repeats} {' '.join(map(str, arm)):30s} {best[arm][0]:9.3f} s", flush=True)
    return best


def summary(best: dict[Arm, tuple[float, int]]) -> list[dict[str, object]]:
    """A row a precision and batch: our ratio to each other arm."""
    rows = []
    for precision, batch in dict.fromkeys(arm[1:] for arm in best):
        seconds = {name: best[name, p, b][0] for name, p, b in best if (p, b) == (precision, batch)}
        row: dict[str, object] = {"precision": precision, "batch": batch}
        for other in ("recompute", "transformers"):
            row[f"times_{other}"] = seconds[other] / seconds["ours"] if other in seconds else None
        row["share_of_floor"] = seconds["floor"] / seconds["ours"]
        row["best_seconds"] = seconds
        row["best_threads"] = {name: best[name, precision, batch][1] for name in seconds}
        rows.append(row)
    return rows


def where_time_goes(model: Transformer, precision: Precision, count: int) -> dict[str, float]:
    """Share of the CPU time of our arm at batch 1 by kind of work, from the profiler (one thread)."""
    kinds = {
        "products with weights": ("_linear_pointwise", "qlinear_pointwise", "addmm", "linear"),
        "attention": ("bmm", "_softmax", "scaled_dot_product"),
        "norms, activations, sums": ("layer_norm", "gelu", "add_", "abs", "amax", "addc"),
        "drawing": ("gather", "searchsorted", "cumsum", "div"),
    }
    torch.set_num_threads(1)
    run = ours(model, precision, 1, count, "cpu", compile=False)
    run()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        total = run()
    shares = dict.fromkeys(kinds, 0.0)
    for event in profile.key_averages():
        kind = next((kind for kind, names in kinds.items() if any(name in event.key for name in names)), None)
        if kind:
            shares[kind] += event.self_cpu_time_total / 1e6 / total
    shares["the rest (numpy top-k, views, copies, Python)"] = 1 - sum(shares.values())
    return {kind: round(share, 3) for kind, share in shares.items()}


def table(rows: list[dict[str, object]]) -> str:
    lines = ["| precision | batch | x recompute | x transformers | % of the floor |", "|---|---|---|---|---|"]
    for row in rows:
        ratios = [row["times_recompute"], row["times_transformers"]]
        cells = ["-" if ratio is None else f"{ratio:.2f}" for ratio in ratios]
        share = f"{100 * float(str(row['share_of_floor'])):.0f}"
        lines.append(f"| {row['precision']} | {row['batch']} | {' | '.join(cells)} | {share} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Speed of the sampler.")
    parser.add_argument("--size", choices=SIZES, default="base")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--compile", action="store_true", help="compile our single-token step")
    parser.add_argument("--repeats", type=int, default=2, help="how often each arm runs")
    parser.add_argument("--quick", action="store_true", help="128 tokens, batch 1, once")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    options = parser.parse_args()
    device, repeats = options.device, 1 if options.quick else options.repeats
    count, batches = (128, (1,)) if options.quick else (TOKENS, (1, 16))
    # transformers says once that sampling without an end token runs to the full length: as intended here
    warnings.filterwarnings("ignore", module="transformers")

    torch.manual_seed(0)
    config = TransformerConfig(vocabulary=VOCABULARY, block=TOKENS, **SIZES[options.size])
    model = Transformer(config).to(device).eval().requires_grad_(False)
    precisions = (
        ("float32", "bfloat16", "int8") if device == "cpu" and not options.compile else ("float32", "bfloat16")
    )
    arms: dict[Arm, Prepare] = {}
    for p, b in itertools.product(precisions, batches):
        if emulated(p, device) and b > 1:
            continue
        arms["floor", p, b] = lambda n, p=p, b=b: floor(config, p, b, n, device)
        arms["ours", p, b] = lambda n, p=p, b=b: ours(model, p, b, n, device, options.compile)
        if p != "int8" and not emulated(p, device):  # the others have no int8 weights, and crawl without the type
            arms["transformers", p, b] = lambda n, p=p, b=b: peer(config, p, b, n, device)
        if p == "float32":
            arms["recompute", p, b] = lambda n, p=p, b=b: recompute(model, p, b, n, device)
    threads = [1, 2] if device == "cpu" else [1]
    rows = summary(measure(arms, threads, repeats, count, options.compile))
    result = {
        "what": f"{config} sampling {count} tokens a row from one prefix token, top-k {TOP_K}, best of {repeats}",
        "machine": f"{platform.processor() or platform.machine()}, {device}, torch {torch.__version__}",
        "threads_tried": threads,
        "compiled": options.compile,
        "bfloat16_arithmetic": not emulated("bfloat16", device),
        "rows": rows,
    }
    if device == "cpu" and not options.compile:
        result["where_time_goes"] = {p: where_time_goes(model, p, min(count, 256)) for p in precisions}
    print(table(rows))
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
