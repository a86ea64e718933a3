"""Autoencoder, codebook and discriminators against tensors computed with the official CCVS code."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from ccvs_parts import autoencoder, part
from goldens import Golden

from longtake.systems.ccvs.autoencoder import Autoencoder, AutoencoderConfig, stacked
from longtake.systems.ccvs.discriminators import Discriminator, batch_spread
from longtake.systems.ccvs.flow import backwarp, correlation
from longtake.systems.ccvs.losses import discriminator_loss, generator_loss
from longtake.systems.ccvs.names import (
    image_discriminator_state,
    video_discriminator_state,
)
from longtake.systems.ccvs.quantiser import GradientCodebook


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["k2", "k4"])
@torch.no_grad()
def test_the_autoencoder_is_the_official_one(name, dtype):
    golden = Golden(f"ccvs_autoencoder_{name}")
    made = autoencoder(golden).to(dtype)
    check = golden.check
    frames, context = golden.inputs["frames"].to(dtype)[0], golden.inputs["ctx_frames"].to(dtype)[0]
    z, _ = made.encode(frames)
    check("latents", z[None])
    quantised = made.quantise(z)
    check("indices", quantised.indices.view(1, -1))
    values = made.latents(made.tokens(z), (z.shape[-2], z.shape[-1]))
    check("quantised", values[None])
    features = stacked(made.encode(context)[1], 3)
    for i, level in enumerate(features[0]):
        check(f"ctx_feat_l{i}", level[None])
    check("frames_ctx0", made.decode(values, []).frames[None])
    # Frame j with context frame j alone.
    own = [torch.cat(levels) for levels in zip(features[0], features[1], strict=True)]
    for contexts, z, count in ((own, values, 1), (None, values[:1], 3)):
        decoded = made.decode(z, features if contexts is None else [contexts])
        check(f"frames_ctx{count}", decoded.frames[None])
        for level, (flow, mask) in enumerate(zip(decoded.flows, decoded.masks, strict=True)):
            if f"flow_ctx{count}_l{level}" in golden.out:
                check(f"flow_ctx{count}_l{level}", flow)
                check(f"mask_ctx{count}_l{level}", mask)


@pytest.mark.parametrize("name", ["quantizer", "quantizer_scalar"])
def test_the_codebook_is_the_official_one(name):
    golden = Golden(f"ccvs_{name}")
    for dtype in (torch.float32, torch.float64):
        codebook = GradientCodebook(golden.config["n_e"], golden.config["e_dim"], official_beta=True)
        codebook.load_state_dict({"embeddings": golden.state["quantizer.embedding.weight"]})
        codebook = codebook.to(dtype)
        z = golden.inputs["z"].to(dtype).clone().requires_grad_(True)
        spatial = z.dim() == 5
        flat = z.flatten(0, 1) if spatial else z.reshape(-1, 1)
        result = codebook(flat)
        values = result.values.view_as(z)
        (
            result.commitment_loss
            + 0.01 * (values * torch.linspace(-1, 1, z.numel(), dtype=dtype).view_as(z)).sum()
        ).backward()
        golden.check("quantised", values.detach())
        golden.check("loss", result.commitment_loss.detach())
        golden.check("perplexity", result.perplexity)
        golden.check("indices", result.indices.flatten())
        golden.check("embedded", codebook.lookup(result.indices.flatten()[None])[0].T[None].detach())
        assert z.grad is not None
        assert codebook.embeddings.grad is not None
        golden.check("grad_z", z.grad)
        golden.check("grad_embedding", codebook.embeddings.grad)


def test_beta_is_on_the_commitment_term_unless_the_quirk_is_asked_for():
    """Equation 3."""
    for official in (False, True):
        codebook = GradientCodebook(2, 1, official)
        codebook.load_state_dict({"embeddings": torch.tensor([[0.0], [10.0]])})
        z = torch.full((1, 1), 1.0, requires_grad=True)
        codebook(z).commitment_loss.backward()
        assert z.grad is not None
        assert codebook.embeddings.grad is not None
        assert float(z.grad) == pytest.approx(2.0 if official else 0.5)
        assert float(codebook.embeddings.grad[0]) == pytest.approx(-0.5 if official else -2.0)


def test_the_codebook_is_searched_and_taught_in_full_precision():
    """Also where convolutions run in bfloat16, which cannot tell near codes apart."""
    torch.manual_seed(0)
    codebook, z = GradientCodebook(64, 8), torch.randn(4, 8, 4, 4) / 64
    expected = codebook(z)
    with torch.autocast("cpu", torch.bfloat16):
        found, half = codebook(z), codebook(z.bfloat16())
    assert torch.equal(found.indices, expected.indices)
    assert torch.equal(found.commitment_loss, expected.commitment_loss)
    assert half.values.dtype == half.commitment_loss.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_discriminators_are_the_official_ones(dtype):
    golden = Golden("ccvs_discriminators")
    opt = golden.config["opt"]
    sizes = (opt["max_dim"],) * 2, opt["ndcf"], tuple(opt["ndcf_mult"])
    image, video = Discriminator(*sizes), Discriminator(*sizes, frames=opt["vid_len"])
    image.load_state_dict(image_discriminator_state(part(golden, "qvid_di")))
    video.load_state_dict(video_discriminator_state(part(golden, "qvid_dv")))
    inputs = {
        "image": (image, golden.inputs["images"]),
        "video": (video, golden.inputs["videos"].transpose(1, 2)),
    }
    for kind, (critic, x) in inputs.items():
        x = x.to(dtype).clone().requires_grad_(True)
        scores = critic.to(dtype)(x)
        golden.check(f"{kind}_scores", scores.detach())
        (slope,) = torch.autograd.grad(scores.sum(), x)
        golden.check(f"{kind}_r1", slope.square().flatten(1).sum(1).mean())
        if kind == "image":
            real, made = scores.detach().chunk(2)
            golden.check("loss_d_logistic", discriminator_loss(real, made))
            golden.check("loss_g_logistic", generator_loss(scores.detach()))


def test_the_spread_of_groups():
    """Two groups of four: 0, 2, 4, 6 and 1, 3, 5, 7, whose spreads differ."""
    x = torch.arange(8.0).view(8, 1, 1, 1) ** 2
    spread = batch_spread(x).flatten()
    expected = [float(x[i::2].std(unbiased=False)) for i in (0, 1)]
    assert spread.tolist() == pytest.approx(expected * 4)
    assert batch_spread(torch.rand(3, 2, 4, 4)).shape == (3, 1, 4, 4)


@pytest.mark.parametrize("stride", [1, 2])
def test_correlation_by_its_definition(stride):
    generator = torch.Generator().manual_seed(0)
    a, b = torch.rand(2, 1, 3, 8, 10, generator=generator)
    found = correlation(a, b, stride)
    assert found.shape == (1, 49, 8 // stride, 10 // stride)
    padded = F.pad(b, (6, 6, 6, 6))
    for dy, dx, y, x in ((-3, 2, 1, 2), (0, 0, 3, 4), (3, -3, 0, 0), (1, 3, 2, 1)):
        place = padded[0, :, 6 + stride * (y + dy), 6 + stride * (x + dx)]
        expected = float((a[0, :, stride * y, stride * x] * place).mean())
        assert float(found[0, (dy + 3) * 7 + dx + 3, y, x]) == pytest.approx(expected, abs=1e-6)


def test_an_autoencoder_without_context_has_no_flow_module():
    config = AutoencoderConfig(8, (1, 2), 8, codes=4, context=0)
    plain = Autoencoder(config)
    assert not any("fusions" in k for k in plain.state_dict())
    frames = torch.rand(2, 3, 8, 8)
    z, features = plain.encode(frames)
    assert torch.equal(plain.decode(z, [features]).frames, plain.decode(z, []).frames)
    assert plain.decode(z, [features]).flows == []


def test_pixels_are_normalised_as_the_configuration_says():
    config = AutoencoderConfig(8, (1, 2), 8, codes=4, mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.5))
    made = Autoencoder(config)
    seen = []
    made.encoder.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    frames = torch.full((1, 3, 8, 8), 0.5)  # 0.75 of [0, 1]
    made.encode(frames)
    assert seen[0][0, :, 0, 0].tolist() == pytest.approx([1.75, 1.0, 0.3])
    raw = made.decoder(torch.zeros(1, 8, 4, 4), []).frames
    shown = made.decode(torch.zeros(1, 8, 4, 4), []).frames
    expected = raw[0, :, 0, 0] * torch.tensor([0.4, 0.5, 1.0]) + torch.tensor([-0.2, 0.0, 0.2])
    assert torch.allclose(shown[0, :, 0, 0], expected, atol=1e-6)


def test_gradients_of_the_video_discriminator_are_finite_in_bfloat16():
    """Convolutions padded in time alone returned weight gradients that were not numbers."""
    torch.manual_seed(0)
    critic = Discriminator((48, 48), 8, (1, 1, 2, 2), frames=4)
    with torch.autocast("cpu", torch.bfloat16):
        scores = critic(torch.rand(2, 3, 4, 48, 48) * 2 - 1)
    scores.float().sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in critic.parameters())


@torch.no_grad()
def test_places_are_precise_under_autocast():
    """Half a pixel near the right border of 64 is not lost in bfloat16."""
    x = torch.arange(64.0).expand(1, 1, 4, 64)
    flow = torch.zeros(1, 2, 4, 64)
    flow[:, 0] = 0.5
    with torch.autocast("cpu", torch.bfloat16):
        moved = backwarp(x, flow)
    assert torch.allclose(moved[..., 40:62], x[..., 40:62] + 0.5 * 64 / 63, atol=1e-3)
