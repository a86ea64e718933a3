"""Is this run well? Checks that stop it early and one line that tells how it is."""

from __future__ import annotations

import math

from longtake.data.batch import Batch
from longtake.errors import UserError


def check_batch(name: str, batch: Batch) -> None:
    """The first batch must look like video.

    Raises:
        UserError: values outside [-1, 1], not finite, or all alike.
    """
    frames = batch.get("frames")
    if frames is None:
        return
    low, high = float(frames.min()), float(frames.max())
    if not math.isfinite(low + high) or low < -1.001 or high > 1.001:
        raise UserError(
            f"the clips of {name} have values in [{low:g}, {high:g}], not in [-1, 1]; prepare them again"
        )
    if high - low < 1e-3:
        raise UserError(f"the first clips of {name} are all of one colour; check what was prepared")


def check_finite(logs: dict[str, float], stage: str, step: int, checkpoint: str) -> None:
    """Every logged figure must be finite.

    Raises:
        UserError: names the figure, the step and the checkpoint that is still good.
    """
    for key, value in logs.items():
        if not math.isfinite(value):
            raise UserError(
                f"{key} became {value} at step {step} of stage {stage}; the last good checkpoint is {checkpoint}: "
                "lower the learning rate, clip gradients or use precision 32, then run the same command again"
            )


def line(logs: dict[str, float]) -> str:
    """The figures a person looks at first: losses, codebook use, discriminator balance, gradient norms."""
    parts = []
    for key, value in logs.items():
        if key.endswith("/loss"):
            parts.append(f"{key.removesuffix('/loss')} {value:.4g}")
    if "codebook/used" in logs:
        parts.append(f"codes used {logs['codebook/used']:.0%} (perplexity {logs['codebook/perplexity']:.0f})")
    if "real_logit" in logs:
        parts.append(f"D real {logs['real_logit']:+.2f} fake {logs['fake_logit']:+.2f}")
    norms = [f"{k.removesuffix('/grad_norm')} {v:.2g}" for k, v in logs.items() if k.endswith("/grad_norm")]
    if norms:
        parts.append("grad " + ", ".join(norms))
    return " | ".join(parts)
