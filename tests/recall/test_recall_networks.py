"""The networks against the released modules of G3AN and the published numbers of parameters."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from goldens import Golden

from longtake.systems.recall.discriminators import ImageDiscriminator, VideoDiscriminator
from longtake.systems.recall.encoder import Encoder, EncoderConfig
from longtake.systems.recall.generator import AxisAttention, Generator, GeneratorConfig

STREAMS = {"conv_s": "content", "conv_v": "video", "conv_t": "motion"}
ATTENTION = {"tsa": "0", "ssa": "1"}
LAYERS = {"q_conv": "query", "k_conv": "key", "v_conv": "value"}


def ours(key: str) -> str:
    """The name of an official parameter or buffer of the generator in this package."""
    parts = key.split(".")
    if parts[0].startswith("block"):
        parts = ["blocks", str(int(parts[0].removeprefix("block")) - 1), STREAMS[parts[1]], *parts[2:]]
    elif parts[0] == "fsa":
        parts = ["attention", ATTENTION[parts[1]], *(LAYERS.get(p, p) for p in parts[2:])]
    elif parts[0] == "to_rgb":
        parts = ["to_rgb", *parts[2:]]
    elif parts[0] == "net":
        parts = ["layers", *parts[1:]]
    return normed(".".join(parts))


def normed(key: str) -> str:
    """The same of a spectrally normalised weight."""
    key = key.replace("weight_orig", "parametrizations.weight.original")
    for name in ("u", "v"):
        key = key.replace(f"weight_{name}", f"parametrizations.weight.0._{name}")
    return key


def loaded(network: torch.nn.Module, state: dict, dtype=torch.float32) -> torch.nn.Module:
    named = {ours(k): v for k, v in state.items()}
    network.load_state_dict(named)
    return network.to(dtype).eval()


def generator(golden: Golden, dtype, official: bool) -> Generator:
    made = golden.config
    config = GeneratorConfig(
        content=made["c_a"],
        motion=made["c_m"],
        width=made["ch"],
        video=made["mode"],
        attention=4 if made.get("use_attention") else None,
        official_attention=official,
    )
    return loaded(Generator(config, (64, 64)), golden.state, dtype)  # type: ignore[return-value]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("official", "name"), [(True, "quirk"), (False, "corrected")])
def test_the_generator_with_attention_is_the_released_one(dtype, official, name):
    golden = Golden("g3an_generator_1p2d_attention")
    made = generator(golden, dtype, official)
    content, motion = golden.inputs["za"].to(dtype), golden.inputs["zm"].to(dtype)
    with torch.no_grad():
        video = made(content.flatten(1), motion.flatten(2))
        golden.check(f"{name}_video", video[..., ::2, ::2])
        s, v, m = made.blocks[0](content, torch.cat([content, motion], 1), motion)
        for part, stream in (("s", s), ("v", v), ("m", m)):
            golden.check(f"block1_{part}", stream)
        given = golden.inputs["attn_in"].to(dtype)
        golden.check(f"{name}_attn_out", made.attention(given))
        golden.check(f"{name}_temporal_out", made.attention[0](given))
        golden.check(f"{name}_spatial_out", made.attention[1](given))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_generator_of_the_3d_stream_and_a_longer_code_is_the_released_one(dtype):
    golden = Golden("g3an_generator_3d")
    made = generator(golden, dtype, False)
    content, motion = golden.inputs["za"].to(dtype), golden.inputs["zm"].to(dtype)
    with torch.no_grad():
        video = made(content.flatten(1), motion.flatten(2))
        golden.check("video", video[..., ::2, ::2])
        golden.check("frame0_full", video[:, :, 0])
        both = torch.cat([content.expand(-1, -1, 2, -1, -1), motion], 1)
        for part, stream in zip("svm", made.blocks[0](content, both, motion), strict=True):
            golden.check(f"block1_{part}", stream)
    assert video.shape[2] == golden.config["frames"] == 4 * (motion.shape[2] + 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_discriminators_are_the_released_ones(dtype):
    golden = Golden("g3an_discriminators")
    clip = golden.inputs["video_u8"].to(dtype) / 127.5 - 1
    for name, cls in (("image", ImageDiscriminator), ("video", VideoDiscriminator)):
        prefix = f"{name}_discriminator."
        state = {k.removeprefix(prefix): v for k, v in golden.state.items() if k.startswith(prefix)}
        network = loaded(cls(golden.config["ch"], 5, (64, 64)), state, dtype)
        with torch.no_grad():
            if name == "video":
                golden.check("video_logits", network(clip))
                golden.check("video_feat3", network.layers[:4](clip)[:, :, ::3, ::4, ::4])
            else:
                golden.check("image_logits", torch.stack([network(clip[:, :, t]) for t in (0, 5, 10, 15)], 1))
                golden.check("image_feat3", network.layers[:4](clip[:, :, 0]))


def parameters(network: torch.nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


BIG = GeneratorConfig(content=512, motion=256, blocks=6, video="3d")


def test_parameters_at_128_pixels_are_the_published_ones():
    """Tab. 5.3, in millions: encoder 2.06, generator 90.37, discriminators 29.32 and 6.96, together 128.71."""
    with torch.device("meta"):
        made = (
            Encoder(EncoderConfig(), (512, 256), 6, (128, 128), 8),
            Generator(BIG, (128, 128)),
            VideoDiscriminator(64, 6, (128, 128)),
            ImageDiscriminator(64, 6, (128, 128)),
        )
    counts = [parameters(network) for network in made]
    assert counts[1] == 90_367_525
    assert [round(n / 1e6, 2) for n in (*counts, sum(counts))] == [2.06, 90.37, 29.32, 6.96, 128.71]


def test_parameters_of_g3an():
    """Counted on the released modules."""
    with torch.device("meta"):
        small = [parameters(Generator(replace(GeneratorConfig(), video=v), (64, 64))) for v in ("1p2d", "3d")]
        narrow = parameters(Generator(replace(BIG, video="1p2d"), (128, 128)))
        critics = [parameters(cls(64, 5, (64, 64))) for cls in (VideoDiscriminator, ImageDiscriminator)]
    assert [round(n / 1e6, 1) for n in (*small, narrow)] == [23.1, 66.0, 28.1]
    assert [round(n / 1e6, 2) for n in critics] == [8.35, 2.76]


@pytest.mark.parametrize("axis", ["time", "space"])
def test_attention_that_sees_only_itself_returns_its_values(axis):
    """Queries and keys so far apart that the softmax is the identity."""
    module = AxisAttention(32, axis).double()
    x = torch.randn(2, 32, 3, 2, 2, dtype=torch.float64)
    with torch.no_grad():
        module.gamma.fill_(1.0)
        moved = x.movedim(2, 0) if axis == "time" else x.flatten(3).movedim(3, 0)
        for i, part in enumerate(moved):
            part[:, :4] = 0
            part[:, i % 4] = 100.0
        for layer in (module.query, module.key):
            torch.nn.utils.parametrize.remove_parametrizations(layer, "weight")
            layer.weight.zero_()
            layer.weight[:, :4] = torch.eye(4, dtype=torch.float64)[..., None, None, None]
            layer.bias.zero_()
        torch.nn.utils.parametrize.remove_parametrizations(module.value, "weight")
        torch.testing.assert_close(module(x) - x, module.value(x))


@pytest.mark.parametrize("stream", ["content_stream", "motion_stream"])
def test_a_stream_can_be_left_out(stream):
    config = replace(GeneratorConfig(8, 4, 4, blocks=3, attention=3), **{stream: False})
    made = Generator(config, (16, 16))
    assert made(torch.randn(2, 8), torch.randn(2, 4, 2)).shape == (2, 3, 20, 16, 16)
    assert parameters(made) < parameters(Generator(replace(config, **{stream: True}), (16, 16)))


@pytest.mark.parametrize("size", [(16, 16), (24, 32)])
def test_small_and_oblong_frames(size):
    made = Generator(GeneratorConfig(8, 4, 4, blocks=3, attention=None), size)
    codes = Encoder(EncoderConfig(4, 16, 8, 8), (8, 4), 3, size, 8)(torch.randn(2, 3, 16, *size)).mean()
    clip = made(codes.content, codes.motion)
    assert clip.shape == (2, 3, 16, *size)
    assert VideoDiscriminator(4, 3, size)(clip).shape == (2,)
    assert ImageDiscriminator(4, 3, size)(clip[:, :, 0]).shape == (2,)


def test_the_encoder_reads_content_off_its_reference_frame():
    encoder = Encoder(EncoderConfig(4, 16, 8, 8), (8, 4), 3, (16, 16), 8).eval()
    clip = torch.randn(1, 3, 16, 16, 16)
    other = clip.clone()
    other[:, :, 0] += 1
    same, different = encoder(clip), encoder(other)
    assert torch.equal(same.content_mean, different.content_mean)
    assert not torch.equal(same.motion_mean, different.motion_mean)


@torch.no_grad()
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # raised inside torch.compile
@pytest.mark.parametrize("axis", ["time", "space"])
def test_compiled_attention_is_the_same(axis):
    """Queries are narrower than values."""
    layer = AxisAttention(16, axis).eval()
    layer.gamma.fill_(0.5)
    x = torch.randn(2, 16, 4, 4, 4)
    torch.testing.assert_close(torch.compile(layer)(x), layer(x))
