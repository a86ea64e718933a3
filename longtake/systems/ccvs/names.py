"""The names that the released code of CCVS gives its weights, and ours.

All weights have equal shapes in both: those of the equalised convolutions are stored unscaled there as here. Blur
kernels and causal masks, which the released files hold too, are constants and left out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

State = dict[str, Tensor]

_DOWN = [
    (r"conv1\.0\.", r"conv1.conv."),
    (r"conv2\.1\.", r"conv2.conv."),
    (r"skip\.1\.", r"skip.conv."),
]
_UP = [
    (r"conv1\.0\.", r"conv1.conv."),
    (r"conv2\.0\.", r"conv2.conv."),
    (r"skip\.0\.", r"skip.conv."),
]
_FUSION = [
    (r"matching\.proj\.0\.", r"project.conv."),
    (r"matching\.upsample_flow\.", r"double_flow."),
    (r"matching\.upsample_occ\.", r"double_mask."),
    (r"matching\.upsample_corr\.", r"double_costs."),
    (r"(matching|subpixel)\.convs\.(\d+)\.0\.", r"\1.convs.\2.conv."),
    (r"(matching|subpixel)\.flow_head\.0\.", r"\1.flow.conv."),
    (r"(matching|subpixel)\.occ_head\.0\.", r"\1.mask.conv."),
]
_LINEARS = [(r"final_linear\.0\.", "hidden."), (r"final_linear\.1\.", "score.")]


def _rename(state: Mapping[str, Tensor], names: list[tuple[str, str]]) -> State:
    """The entries that `names` knows, under their new names."""
    renamed = {}
    for key, value in state.items():
        for old, new in names:
            if re.match(old, key):
                renamed[re.sub(old, new, key, count=1)] = value
                break
    return renamed


def _blocks(names: list[tuple[str, str]], shift: int, last: int) -> list[tuple[str, str]]:
    """`names` within the blocks 1 .. last - 1 of an official list, which are our 0 .. last - 2."""
    return [
        (rf"{re.escape(f'blocks.{i}.')}{old}", f"blocks.{i - shift}.{new}")
        for i in range(1, last)
        for old, new in names
    ]


def _count(state: Mapping[str, Tensor], pattern: str) -> int:
    return max((int(m[1]) for key in state if (m := re.match(pattern, key))), default=-1) + 1


def encoder_state(official: Mapping[str, Tensor]) -> State:
    """Weights of `Encoder` from `qvid_e`."""
    last = _count(official, r"blocks\.(\d+)\.") - 1
    ends = [(r"blocks\.0\.0\.", "stem.conv."), (rf"blocks\.{last}\.0\.", "project.conv.")]
    return _rename(official, [*ends, *_blocks(_DOWN, 1, last)])


def decoder_state(official: Mapping[str, Tensor]) -> State:
    """Weights of `Decoder`, its flow module included, from `qvid_g`."""
    last = _count(official, r"blocks\.(\d+)\.") - 1
    ends = [(r"blocks\.0\.0\.", "project.conv."), (rf"blocks\.{last}\.0\.", "head.conv.")]
    levels = [(rf"inter_blocks\.(\d+)\.{old}", _shifted(new)) for old, new in _FUSION]
    return _rename(official, [*ends, *_blocks(_UP, 1, last), *levels])


def _shifted(new: str) -> str:
    """A replacement whose groups come after one more group, that of the level."""
    return r"fusions.\1." + re.sub(r"\\(\d)", lambda m: rf"\{int(m[1]) + 1}", new)


def autoencoder_state(
    encoder: Mapping[str, Tensor], decoder: Mapping[str, Tensor], codebook: Mapping[str, Tensor] | None
) -> State:
    """Weights of `Autoencoder` from `qvid_e`, `qvid_g` and `qvid_q`."""
    state = {f"encoder.{k}": v for k, v in encoder_state(encoder).items()}
    state |= {f"decoder.{k}": v for k, v in decoder_state(decoder).items()}
    return state | codebook_state(codebook or {})


def codebook_state(official: Mapping[str, Tensor], prefix: str = "codebook.") -> State:
    """A `GradientCodebook` from `qvid_q`, `state_q` or `stft_q`."""
    return {f"{prefix}embeddings": v for k, v in official.items() if k == "embedding.weight"}


def image_discriminator_state(official: Mapping[str, Tensor]) -> State:
    """Weights of `Discriminator` of frames from `qvid_di`."""
    names = [(r"convs\.0\.0\.", "stem.conv."), (r"convs\.0\.1\.", "stem.conv.")]
    for i in range(1, _count(official, r"convs\.(\d+)\.")):
        here, ours = rf"convs\.{i}\.", f"blocks.{i - 1}."
        names += [(rf"{here}conv1\.[01]\.", f"{ours}conv1.conv."), (rf"{here}conv2\.[12]\.", f"{ours}conv2.conv.")]
        names.append((rf"{here}skip\.1\.", f"{ours}skip.conv."))
    return _rename(official, [*names, (r"final_conv\.[01]\.", "final.conv."), *_LINEARS])


def video_discriminator_state(official: Mapping[str, Tensor]) -> State:
    """Weights of `Discriminator` of clips from `qvid_dv`."""
    names = [(r"convs\.0\.layers\.[01]\.", "stem.conv.")]
    for i in range(1, _count(official, r"convs\.(\d+)\.")):
        names.append((rf"convs\.{i}\.(conv1|conv2|skip)\.layers\.[01]\.", rf"blocks.{i - 1}.\1.conv."))
    return _rename(official, [*names, (r"final_conv\.layers\.[01]\.", "final.conv."), *_LINEARS])


def layers_state(official: Mapping[str, Tensor], name: str = "layers") -> State:
    """The layers of `state_s`, `stft_e` or `stft_d`: a list of convolutions, some with a blur around them."""
    return _rename(official, [(r"convs\.(\d+)\.[01]\.(weight|bias)", rf"{name}.\1.conv.\2"), (r"fc\.", "head.")])


def transformer_state(official: Mapping[str, Tensor]) -> State:
    """Weights of `AnnotatedTransformer` from `transformer_t`: tokens are joined in one table (codes, states, start,
    classes), query, key and value stacked in this order."""
    kinds = ("tok_emb.weight", "state_tok_emb.weight", "start_tok_emb", "lbl_emb.weight")
    state = {"tokens.weight": torch.cat([official[k] for k in kinds if k in official])}
    named = {"s_emb": "space", "t_emb": "time", "h_emb": "rows", "w_emb": "columns", "state_s_emb": "states"}
    state |= {f"places.{new}": official[old][0] for old, new in named.items() if old in official}
    if "pos_emb" in official:
        state["places.flat"] = official["pos_emb"][0]
    names = [
        (r"blocks\.(\d+)\.ln([12])\.", r"blocks.\1.norm\2."),
        (r"blocks\.(\d+)\.attn\.proj\.", r"blocks.\1.attention.out."),
        (r"blocks\.(\d+)\.mlp\.0\.", r"blocks.\1.mlp.up."),
        (r"blocks\.(\d+)\.mlp\.3\.", r"blocks.\1.mlp.down."),
        (r"ln_f\.", "norm."),
        (r"head\.", "head."),
    ]
    state |= _rename(official, names)
    for i in range(_count(official, r"blocks\.(\d+)\.")):
        for kind in ("weight", "bias"):
            parts = [official[f"blocks.{i}.attn.{part}.{kind}"] for part in ("query", "key", "value")]
            state[f"blocks.{i}.attention.qkv.{kind}"] = torch.cat(parts)
    return state
