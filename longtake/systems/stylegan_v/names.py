"""Names of the released networks' weights and ours."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

State = dict[str, Tensor]

_GENERATOR = [
    (r"mapping\.w_avg$", "mapping.average"),
    (r"mapping\.embed\.", "mapping.embed."),
    (r"mapping\.fc(\d+)\.", r"mapping.layers.\1."),
    (r"synthesis\.motion_encoder\.conv\.0\.", "motion.conv1."),
    (r"synthesis\.motion_encoder\.conv\.1\.", "motion.conv2."),
    (r"synthesis\.motion_encoder\.time_encoder\.periods_predictor\.", "motion.encoding.frequency."),
    (r"synthesis\.motion_encoder\.time_encoder\.phase_predictor\.", "motion.encoding.phase."),
    (r"synthesis\.motion_encoder\.time_encoder\.aligners_predictor\.", "motion.encoding.align."),
    (r"synthesis\.b4\.input\.input\.const$", "synthesis.constant"),
    (r"synthesis\.b(\d+)\.(conv[01])\.", r"synthesis.blocks.\1.\2."),
    (r"synthesis\.b(\d+)\.torgb\.", r"synthesis.blocks.\1.rgb."),
]
_DISCRIMINATOR = [
    (r"time_encoder\.const_embed\.", "gaps.table."),
    (r"mapping\.embed\.", "condition.embed."),
    (r"mapping\.fc(\d+)\.", r"condition.layers.\1."),
    (r"b(\d+)\.fromrgb\.", "rgb."),
    (r"b4\.conv\.", "head.conv."),
    (r"b4\.fc\.", "head.linear."),
    (r"b4\.out\.", "head.out."),
    (r"b(\d+)\.(conv[01]|skip)\.", r"blocks.\1.\2."),
]
_DERIVED = re.compile(r".*(resample_filter|freqs|phase_scales|fourier_coefs)$")
"""Buffers that follow from the configuration."""


def _rename(official: Mapping[str, Tensor], names: list[tuple[str, str]], place) -> State:
    """Under our names; `place` makes the number of a block of its resolution. Unknown names stay as they are."""
    renamed = {}
    for key, value in official.items():
        if _DERIVED.match(key):
            continue
        for old, new in names:
            if match := re.match(old, key):
                name = re.sub(old, new, key, count=1)
                if "blocks." in new:
                    name = name.replace(f"blocks.{match[1]}.", f"blocks.{place(int(match[1]))}.", 1)
                renamed[name] = value[0] if name == "synthesis.constant" else value
                break
        else:
            renamed[key] = value
    return renamed


def generator_state(official: Mapping[str, Tensor]) -> State:
    """Weights of `Generator` from the official state dict of G or G_ema."""
    return _rename(official, _GENERATOR, lambda resolution: resolution.bit_length() - 3)


def discriminator_state(official: Mapping[str, Tensor]) -> State:
    """Weights of `Discriminator` from the official state dict of D."""
    finest = max(int(m[1]) for key in official if (m := re.match(r"b(\d+)\.", key)))
    return _rename(official, _DISCRIMINATOR, lambda resolution: (finest // resolution).bit_length() - 1)
