"""The released checkpoints of TATS as our weights: names, shapes and hyper-parameters.

The files are those of PyTorch Lightning 1.5. A VQGAN file stands alone; a transformer file embeds a copy of its
VQGAN, which is the one it was trained with and therefore the one taken.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from longtake.errors import UserError
from longtake.nn.conv import Padding
from longtake.systems.base import ModelInfo, System
from longtake.systems.foreign import read_foreign
from longtake.systems.tats.config import InterpolatorConfig, PriorConfig, TATSConfig
from longtake.systems.tats.vqgan import VQGANConfig

State = dict[str, Tensor]

_VQGAN_NAMES = [
    (r"encoder\.conv_first\.conv\.", r"encoder.stem."),
    (r"encoder\.conv_blocks\.(\d+)\.down\.conv\.", r"encoder.stages.\1.down."),
    (r"encoder\.conv_blocks\.(\d+)\.res\.(norm[12])\.", r"encoder.stages.\1.residual.\2."),
    (r"encoder\.conv_blocks\.(\d+)\.res\.(conv[12])\.conv\.", r"encoder.stages.\1.residual.\2."),
    (r"encoder\.final_block\.0\.", r"encoder.norm."),
    (r"pre_vq_conv\.conv\.", r"encoder.project."),
    (r"post_vq_conv\.conv\.", r"decoder.project."),
    (r"decoder\.final_block\.0\.", r"decoder.norm."),
    (r"decoder\.conv_blocks\.(\d+)\.up\.convt\.", r"decoder.stages.\1.up."),
    (r"decoder\.conv_blocks\.(\d+)\.res1\.(norm[12])\.", r"decoder.stages.\1.residuals.0.\2."),
    (r"decoder\.conv_blocks\.(\d+)\.res2\.(norm[12])\.", r"decoder.stages.\1.residuals.1.\2."),
    (r"decoder\.conv_blocks\.(\d+)\.res1\.(conv[12])\.conv\.", r"decoder.stages.\1.residuals.0.\2."),
    (r"decoder\.conv_blocks\.(\d+)\.res2\.(conv[12])\.conv\.", r"decoder.stages.\1.residuals.1.\2."),
    (r"decoder\.conv_last\.conv\.", r"decoder.head."),
    (r"codebook\.embeddings$", r"codebook.embeddings"),
    (r"codebook\.N$", r"codebook.counts"),
    (r"codebook\.z_avg$", r"codebook.sums"),
]
_PRIOR_NAMES = [
    (r"tok_emb\.", r"tokens."),
    (r"blocks\.(\d+)\.ln([12])\.", r"blocks.\1.norm\2."),
    (r"blocks\.(\d+)\.attn\.proj\.", r"blocks.\1.attention.out."),
    (r"blocks\.(\d+)\.mlp\.0\.", r"blocks.\1.mlp.up."),
    (r"blocks\.(\d+)\.mlp\.2\.", r"blocks.\1.mlp.down."),
    (r"ln_f\.", r"norm."),
    (r"head\.", r"head."),
]
_CRITIC_NAMES = [(r"model(\d+)\.([01])\.", r"units.\1.\2.")]
PADDINGS = {"replicate": "replicate", "constant": "zeros", "reflect": "reflect", "circular": "circular"}


def _rename(state: Mapping[str, Tensor], names: list[tuple[str, str]], prefix: str = "") -> State:
    """The entries under `prefix` that `names` knows, under their new names."""
    renamed = {}
    for key, value in state.items():
        if key.startswith(prefix):
            name = key[len(prefix) :]
            for old, new in names:
                if re.match(old, name):
                    renamed[re.sub(old, new, name, count=1)] = value
                    break
    return renamed


def vqgan_state(official: Mapping[str, Tensor], prefix: str = "") -> State:
    """Weights and buffers of `VQGAN` from an official state dict.

    `prefix` is "first_stage_model." in the state dict of a transformer. The averages of the codebook are
    included and marked initialised, so training can go on from them. What is no part of the autoencoder
    (discriminators, perceptual network) is left out.
    """
    return _rename(official, _VQGAN_NAMES, prefix) | {"codebook.initialised": torch.tensor(True)}


def discriminator_state(official: Mapping[str, Tensor], prefix: str) -> State:
    """Weights of `PatchDiscriminator`; `prefix` is "image_discriminator." or "video_discriminator."."""
    return _rename(official, _CRITIC_NAMES, prefix)


def prior_state(official: Mapping[str, Tensor], prefix: str = "transformer.") -> State:
    """Weights of the prior; query, key and value are stacked in this order, causal-mask buffers are dropped."""
    state = _rename(official, _PRIOR_NAMES, prefix)
    state["positions"] = official[prefix + "pos_emb"][0]
    if prefix + "vtokens_pos_emb" in official:
        state["table"] = official[prefix + "vtokens_pos_emb"][0]
    for i in range(_count(official, prefix + r"blocks\.(\d+)\.")):
        for kind in ("weight", "bias"):
            parts = [official[f"{prefix}blocks.{i}.attn.{part}.{kind}"] for part in ("query", "key", "value")]
            state[f"blocks.{i}.attention.qkv.{kind}"] = torch.cat(parts)
    return state


@dataclass(frozen=True)
class OfficialPrior:
    """What a released transformer needs besides its weights."""

    layers: int
    """Blocks."""
    heads: int
    """Attention heads."""
    width: int
    """Width of the residual stream."""
    block: int
    """Positions."""
    vocabulary: int
    """Condition ids, then the codes."""
    condition: str
    """"none", "label", "text" or "stft"."""
    offset: int
    """Condition ids before the codes; 0 if unconditional: then the start token is id 0, as is the first code."""
    unmasked: int
    """Tokens of a slice at either end that the interpolation model sees in both directions; 0 if it is causal."""
    every: int
    """Every how-many-th latent slice it predicts (4: the sparse model of a hierarchical pair)."""
    table: tuple[int, int, int] | None
    """Tokens (t, h, w) of the whole clips, where it was trained on their crops (`--vtokens_pos`)."""

    @property
    def crop(self) -> tuple[int, int] | None:
        """Height and width of a crop in tokens."""
        if self.table is None:
            return None
        side = math.isqrt(self.block // self.table[0])
        return side, side


@dataclass(frozen=True)
class Official:
    """What released files hold."""

    vqgan: VQGANConfig
    """The autoencoder; the padding quirk of the released code is set where it matters."""
    prior: OfficialPrior | None
    """The transformer, if a file of it was given."""
    interpolator: OfficialPrior | None
    """The interpolation transformer of a hierarchical pair, if a file of it was given."""
    frames: int | None
    """Frames of a training clip, if the file says so."""
    size: int | None
    """Height and width of a training clip, if the file says so."""
    frame_step: int
    """Source frames between two frames of a clip."""
    networks: dict[str, State]
    """State dicts by name: "vqgan", and where present "prior", "interpolator", "image_discriminator" and
    "video_discriminator"."""

    def hyper_parameters(self) -> dict[str, Any]:
        """All but the weights, as plain data."""
        return {k: v for k, v in asdict(self).items() if k != "networks"}


def read_official(*paths: Path | str, compression: tuple[int, int, int] | None = None) -> Official:
    """Reads VQGAN.ckpt, TRANSFORMER.ckpt or both, in any order, running none of the code they name. Of a
    hierarchical pair it takes both transformers.

    A transformer alone does for both networks if its training arguments fix the compression; otherwise give the
    VQGAN's file too, or `compression`.

    Raises:
        UserError: a file is damaged or hostile, is not of TATS, or lacks a hyper-parameter that no shape tells.
    """
    vqgan: tuple[State, dict[str, Any], Path] | None = None
    transformers: dict[bool, tuple[State, dict[str, Any], Path]] = {}  # of interpolation or not
    for path in map(Path, paths):
        state, arguments = _read(path)
        if "transformer.tok_emb.weight" in state:
            interpolates = _unmasked(state, arguments) > 0
            if interpolates in transformers:
                other = transformers[interpolates][2]
                raise UserError(f"{path} and {other} are two transformers of one kind; give one of each", code=2)
            transformers[interpolates] = state, arguments, path
        elif "encoder.conv_first.conv.weight" in state:
            vqgan = state, arguments, path
        else:
            raise UserError(f"{path} holds no TATS network; give the VQGAN's or the transformer's .ckpt")
    if not transformers:
        if vqgan is None:
            raise UserError("no checkpoint given; give the VQGAN's .ckpt, the transformer's, or both", code=2)
        state, arguments, path = vqgan
        config = vqgan_config(state, arguments, path, compression)
        return _official(config, None, None, arguments, _networks(state))
    state, arguments, path = transformers.get(False) or transformers[True]
    embedded = _under(state, "first_stage_model.")
    weights = embedded or (vqgan[0] if vqgan else {})
    if not weights:
        raise UserError(f"{path} does not embed its VQGAN; give the VQGAN's .ckpt too")
    codes = weights["codebook.embeddings"].shape[0]
    prior = _prior_config(state, arguments, path, codes)
    if vqgan is None and compression is None:
        compression = _compression(prior, arguments, path, weights)
    config = vqgan_config(weights, vqgan[1] if vqgan else arguments, vqgan[2] if vqgan else path, compression)
    networks = {"prior" if False in transformers else "interpolator": prior_state(state)}
    if False not in transformers:
        return _official(config, None, prior, arguments, _networks(weights) | networks)
    between = None
    if True in transformers:
        other, told, file = transformers[True]
        between, networks["interpolator"] = _prior_config(other, told, file, codes), prior_state(other)
        own = _under(other, "first_stage_model.")
        if any(k in own and not torch.equal(own[k], v) for k, v in weights.items() if k.startswith("encoder.")):
            raise UserError(f"{file} was trained on another VQGAN than {path}; give a pair that belongs together")
    return _official(config, prior, between, arguments, _networks(weights) | networks)


def vqgan_config(
    state: Mapping[str, Tensor],
    arguments: Mapping[str, Any],
    path: Path,
    compression: tuple[int, int, int] | None = None,
) -> VQGANConfig:
    """The configuration of an official VQGAN: from shapes what they tell, strides and padding from `arguments`."""
    factors = compression or arguments.get("downsample")
    if not (isinstance(factors, list | tuple) and len(factors) == 3 and all(type(f) is int for f in factors)):
        raise UserError(f"{path} does not say its compression (args.downsample); give a file of the released kind")
    padding = arguments.get("padding_type", "replicate")  # older files have none
    if padding not in PADDINGS:
        raise UserError(f"{path} uses the unknown padding {padding!r}; known are {', '.join(PADDINGS)}")
    hidden, channels = state["encoder.conv_first.conv.weight"].shape[:2]
    codes, embedding = state["codebook.embeddings"].shape
    config = VQGANConfig(
        hidden=hidden,
        embedding=embedding,
        codes=codes,
        compression=(factors[0], factors[1], factors[2]),
        channels=channels,
        norm="batch" if "encoder.final_block.0.running_mean" in state else "group",
        padding=Padding(PADDINGS[padding], PADDINGS[padding]),  # type: ignore[arg-type]
        official_partial_padding=padding != "replicate",
    )
    stages = _count(state, r"encoder\.conv_blocks\.(\d+)\.")
    if len(config.strides) != stages:
        raise UserError(f"{path} has {stages} stages, which does not fit its compression {tuple(factors)}")
    return config


def _read(path: Path) -> tuple[State, dict[str, Any]]:
    """State dict and training arguments (empty if the file has none)."""
    content = read_foreign(path, skip=("optimizer_states", "callbacks", "lr_schedulers", "loops"))
    state = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(state, dict) or not state:
        raise UserError(f"{path} holds no weights; give the .ckpt that the trainer wrote")
    state = {k: v for k, v in state.items() if isinstance(k, str) and isinstance(v, Tensor)}
    hyper = content.get("hyper_parameters")
    hyper = hyper if isinstance(hyper, dict) else {}
    nested = hyper.get("args")
    return state, {**hyper, **(nested if isinstance(nested, dict) else {})}


def _under(state: Mapping[str, Tensor], prefix: str) -> State:
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def _networks(state: State) -> dict[str, State]:
    critics = {n: discriminator_state(state, n + ".") for n in ("image_discriminator", "video_discriminator")}
    return {"vqgan": vqgan_state(state)} | {name: critic for name, critic in critics.items() if critic}


def _official(
    config: VQGANConfig,
    prior: OfficialPrior | None,
    interpolator: OfficialPrior | None,
    arguments: Mapping[str, Any],
    networks: dict[str, State],
) -> Official:
    frames, size, step = (arguments.get(k) for k in ("sequence_length", "resolution", "sample_every_n_frames"))
    step = step if isinstance(step, int) and step > 0 else 1
    # The released loader cuts sequence_length frames and then keeps every step-th.
    frames = frames // step if isinstance(frames, int) else None
    side = size if isinstance(size, int) else None
    return Official(config, prior, interpolator, frames, side, step, networks)


def _prior_config(state: State, arguments: Mapping[str, Any], path: Path, codes: int) -> OfficialPrior:
    table = state.get("transformer.vtokens_pos_emb")
    vocabulary, width = state["transformer.tok_emb.weight"].shape
    heads = arguments.get("n_head")
    if not isinstance(heads, int) or heads < 1 or width % heads:
        raise UserError(f"{path} does not say its number of attention heads (args.n_head), which no shape tells")
    condition = "none" if arguments.get("unconditional") else arguments.get("cond_stage_key", "label")
    offset = vocabulary - codes
    if condition not in ("none", "label", "text", "stft") or offset < 0 or (condition == "none") != (offset == 0):
        raise UserError(
            f"{path} has {vocabulary} tokens for {codes} codes, which does not fit condition {condition!r}"
        )
    return OfficialPrior(
        layers=_count(state, r"transformer\.blocks\.(\d+)\."),
        heads=heads,
        width=width,
        block=state["transformer.pos_emb"].shape[1],
        vocabulary=vocabulary,
        condition=condition,
        offset=offset,
        unmasked=_unmasked(state, arguments),
        every=arguments.get("sample_every_n_latent_frames") or 1,
        table=None if table is None else (table.shape[1], table.shape[2], table.shape[3]),
    )


def _unmasked(state: Mapping[str, Tensor], arguments: Mapping[str, Any]) -> int:
    """From the arguments, or from the mask: the start token of an interpolation model sees 2 u tokens, else 1."""
    if isinstance(n := arguments.get("n_unmasked"), int):
        return n
    mask = state.get("transformer.blocks.0.attn.mask")
    return 0 if mask is None else int(mask[0, 0, 0].count_nonzero()) // 2


def _compression(
    prior: OfficialPrior, arguments: Mapping[str, Any], path: Path, vqgan: Mapping[str, Tensor]
) -> tuple[int, int, int]:
    """The one compression, equal in height and width, with which a training clip fills the positions."""
    frames, size = arguments.get("sequence_length"), arguments.get("resolution")
    lengths = {"none": 1, "label": 1, "text": arguments.get("text_seq_len", 256), "stft": 64}
    stages = _count(vqgan, r"encoder\.conv_blocks\.(\d+)\.")
    found = []
    if isinstance(frames, int) and isinstance(size, int) and isinstance(lengths[prior.condition], int):
        tokens = (prior.block - lengths[prior.condition] + 1) * prior.every
        frames //= arguments.get("sample_every_n_frames") or 1
        factors = [1 << i for i in range(stages + 1)]
        found = [
            (t, s, s)
            for t in factors
            for s in factors
            if max(t, s) == 1 << stages and frames % t == size % s == 0 and frames // t * (size // s) ** 2 == tokens
        ]
    if len(found) != 1:
        raise UserError(f"{path} does not tell the compression of its VQGAN; give the VQGAN's .ckpt too")
    return found[0]


def _count(state: Mapping[str, Tensor], pattern: str) -> int:
    """How many numbers occur where `pattern` has its group, in the names that it matches."""
    return len({m[1] for key in state if (m := re.match(pattern, key))})


def convert(paths: list[Path], fps: float, size: tuple[int, int] | None = None) -> System:
    """A system from the authors' files, ready to generate and to be fine-tuned.

    Class names are not in the files: classes are called "0", "1" ... in the order of the authors' folders. A VQGAN
    alone makes a model that reconstructs; train a prior on top of it with --init vqgan=MODEL.

    Args:
        paths: of the VQGAN, of the transformer, or of both; for TATS-hierarchical of both transformers.
        fps: frame rate of the footage, which the files do not tell; divided by the step between two frames of a
            clip, which they do.
        size: (height, width) of a frame, where the files tell it wrongly or not at all.

    Raises:
        UserError: as `read_official`, a transformer on text or audio, half a hierarchical pair, or a transformer
            trained on another number of tokens than size and frames make.
    """
    from longtake.systems.folder import load_network
    from longtake.systems.tats.system import TATS

    try:
        found = read_official(*paths)
    except KeyError as error:
        missing = ", ".join(map(str, paths))
        raise UserError(f"{missing} lacks {error}; give whole files as the authors published them") from None
    names = ", ".join(str(p) for p in paths)
    prior, between = found.prior, found.interpolator
    every = prior.every if prior else 1
    for transformer in (prior, between):
        if transformer and transformer.condition not in ("none", "label"):
            raise UserError(f"{names} holds a {transformer.condition} transformer, which this version cannot run")
    if (every > 1) != (between is not None):
        missing = "the sparse" if between else "the interpolation"
        raise UserError(f"{names} holds half a hierarchical pair; give {missing} transformer's .ckpt too")
    step, h, w = found.vqgan.compression
    size = size or ((found.size, found.size) if found.size else (16 * h, 16 * w))
    frames = (found.frames or 16 * every) // every
    if prior and prior.table:  # trained on tokens, so its arguments are counted in tokens
        frames, size = prior.table[0] * step, (prior.table[1] * h, prior.table[2] * w)
    own = PriorConfig(layers=0)
    if prior:
        own = PriorConfig(
            layers=prior.layers,
            heads=prior.heads,
            width=prior.width,
            block=prior.block,
            condition="label" if prior.condition == "label" else "none",
            shared_start=prior.condition == "none" and prior.offset == 0,
            crop=prior.crop,
        )
    classes = tuple(map(str, range(prior.offset))) if prior and prior.condition == "label" else ()
    filling = InterpolatorConfig()
    if between:
        filling = InterpolatorConfig(between.layers, between.heads, between.width, block=between.block)
    config = TATSConfig(frames=frames, size=size, vqgan=found.vqgan, prior=own, every=every, interpolator=filling)
    tokens = config.grid[0] * math.prod(own.crop or config.grid[1:])
    if prior and tokens > prior.block:
        raise UserError(
            f"{names} holds a transformer of {prior.block} tokens, but {config.frames} frames of "
            f"{size[0]}x{size[1]} are {tokens}; say the frame size it was trained on with --size HxW"
        )
    system = TATS(config, ModelInfo(fps=fps / found.frame_step, size=size, classes=classes))
    slice_tokens = config.grid[1] * config.grid[2]
    if between and (between.unmasked != slice_tokens or between.block < (every + 1) * slice_tokens):
        raise UserError(
            f"{names}: the interpolation transformer takes slices of {between.unmasked} tokens and {between.block} "
            f"in all, but its pair has slices of {slice_tokens}, {every} apart"
        )
    for name in system.inference:
        network = found.networks["prior" if name == system.prior_name else name]
        state = {f"{name}.{key}": value for key, value in network.items()}
        load_network(system, name, state, names)
    return system
