"""Equality with the official code's numbers (see tests/golden)."""

import pytest
import torch
from goldens import Golden

from longtake.systems.stylegan_v.discriminator import Discriminator, DiscriminatorConfig
from longtake.systems.stylegan_v.generator import Generator
from longtake.systems.stylegan_v.losses import discriminator_loss, generator_loss, gradient_penalty
from longtake.systems.stylegan_v.mapping import MappingConfig, truncate
from longtake.systems.stylegan_v.motion import MotionConfig, around, pick
from longtake.systems.stylegan_v.names import discriminator_state, generator_state
from longtake.systems.stylegan_v.synthesis import SynthesisConfig

GENERATORS = ["sgv_generator_32", "sgv_generator_64_label"]
DISCRIMINATORS = ["sgv_discriminator_32", "sgv_discriminator_64_label"]


def under(state: dict, prefix: str) -> dict:
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def make_generator(c: dict, state: dict, dtype=torch.float32) -> Generator:
    generator = Generator(
        (c["resolution"], c["resolution"]),
        MappingConfig(c["z_dim"], c["w_dim"], c["mapping_layers"]),
        MotionConfig(
            noise=c["motion_z_dim"],
            width=c["motion_v_dim"],
            waves=c["time_enc_dim"],
            kernel=c["motion_kernel"],
            spacing=c["motion_z_distance"],
            shortest=c["min_period_len"],
            longest=c["max_period_len"],
        ),
        SynthesisConfig(c["channel_base"], c["channel_max"]),
        c["c_dim"],
    )
    generator.load_state_dict(generator_state(under(state, "G.")))
    return generator.to(dtype).eval()


def make_discriminator(size: int, frames: int, c: dict, state: dict, dtype=torch.float32) -> Discriminator:
    config = DiscriminatorConfig(
        base=c.get("channel_base", c.get("cb")),
        most=c.get("channel_max", c.get("cm")),
        gaps=c.get("max_num_frames", c.get("maxf")),
        layers=c["mapping_layers"],
        group=c["mbstd_group_size"],
        labels="joined",
    )
    discriminator = Discriminator(config, (size, size), frames, c["c_dim"])
    discriminator.load_state_dict(discriminator_state(under(state, "D.")))
    return discriminator.to(dtype).eval()


@pytest.mark.parametrize("name", GENERATORS)
def test_fixed_frequencies_are_the_official_ones_to_the_bit(name):
    golden = Golden(name)
    encoding = make_generator(golden.config, golden.state).motion.encoding
    prefix = "G.synthesis.motion_encoder.time_encoder."
    assert torch.equal(encoding.base, golden.state[prefix + "freqs"][0])
    assert torch.equal(encoding.factor, golden.state[prefix + "phase_scales"][0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", GENERATORS)
@torch.no_grad()
def test_content(name, dtype):
    golden = Golden(name)
    mapping = make_generator(golden.config, golden.state, dtype).mapping
    w = mapping(golden.inputs["z"].to(dtype), golden.inputs["c"].to(dtype))
    golden.check("w", w)
    golden.check("w_trunc_0.7", truncate(w, mapping.average, 0.7))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", GENERATORS)
@torch.no_grad()
def test_motion(name, dtype):
    golden = Golden(name)
    motion = make_generator(golden.config, golden.state, dtype).motion
    noise, label = golden.inputs["motion_z"].to(dtype), golden.inputs["c"].to(dtype)
    times = golden.inputs["t"].double()
    u = motion.tokens(noise, label)
    left, share = around(times, golden.config["motion_z_distance"])
    golden.check("motion_u_left", pick(u, left))
    golden.check("motion_u_right", pick(u, left + 1))
    golden.check("interp_weight", share.to(dtype))
    code = motion(noise, label, torch.zeros(2, dtype=torch.long), times)
    golden.check("motion_v", code[:, :8])
    golden.check("motion_v_large_t", code[:, 8:])


@pytest.mark.parametrize("folded", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", GENERATORS)
@torch.no_grad()
def test_frames(name, dtype, folded):
    golden = Golden(name)
    generator = make_generator(golden.config, golden.state, dtype)
    noise, label = golden.inputs["motion_z"].to(dtype), golden.inputs["c"].to(dtype)
    times = golden.inputs["t_frames"].double()
    first = torch.zeros(2, dtype=torch.long)

    def frames(w):
        if not folded:
            return generator(w[:, None], noise, first, times, label).transpose(1, 2)
        code = generator.motion(noise, label, first, times)
        ws = w[:, None].expand(-1, generator.synthesis.styles, -1)
        videos = [
            generator.synthesis(c, generator.synthesis.fold(one[None], dtype))
            for c, one in zip(code, ws, strict=True)
        ]
        return torch.stack(videos)

    w = generator.mapping(golden.inputs["z"].to(dtype), label)
    made = frames(w)
    golden.check("images", made[:, :2])
    golden.check("images_large_t", made[:, 2:])
    short = frames(truncate(w, generator.mapping.average, 0.7))
    golden.check("images_psi_0.7", short[:, :1, :, ::4, ::4])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", DISCRIMINATORS)
def test_discriminator(name, dtype):
    golden = Golden(name)
    c = golden.config
    discriminator = make_discriminator(c["resolution"], c["num_frames_per_video"], c, golden.state, dtype)
    frames = golden.inputs["images"].to(dtype).unflatten(0, (-1, 3)).transpose(1, 2).requires_grad_(True)
    times, label = golden.inputs["t"].to(dtype), golden.inputs["c"].to(dtype)
    assert discriminator.gaps is not None
    golden.check("time_embedding", discriminator.gaps(times.diff(dim=1))[..., -24:].detach())
    golden.check("cmap", discriminator.condition(discriminator.known(times, label)).detach())
    logits = discriminator(frames, times, label)
    golden.check("logits", logits.detach())
    golden.check("r1_per_video", gradient_penalty(logits, frames).mean(1).detach())


def gradient_norms(network: torch.nn.Module, official: list[str], rename) -> torch.Tensor:
    """Of every parameter, in the order of the official names; zero where there is no gradient."""
    renamed = rename({name: torch.full((1,), float(i)) for i, name in enumerate(official)})
    order = sorted(renamed, key=lambda name: float(renamed[name]))
    parameters = dict(network.named_parameters())
    assert set(order) == set(parameters)
    norms = [parameters[name].grad.norm() if parameters[name].grad is not None else 0.0 for name in order]
    return torch.stack([torch.as_tensor(n, dtype=next(network.parameters()).dtype) for n in norms])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_training_step(dtype):
    golden = Golden("sgv_training_step_32")
    c = golden.config
    generator = make_generator(c["generator"], golden.state, dtype).train()
    discriminator = make_discriminator(32, 3, c["discriminator"], golden.state, dtype).train()
    i = golden.inputs
    z, noise, label = i["z"].to(dtype), i["motion_z"].to(dtype), i["gen_c"].to(dtype)
    made_at, real_at = i["gen_t"].double(), i["real_t"].to(dtype)
    first = torch.zeros(4, dtype=torch.long)

    def imagine():
        return generator(generator.mapping(z, label)[:, None], noise, first, made_at, label)

    def check_gradients(prefix, network, wanted):
        parameters = dict(network.named_parameters())
        for official, ours in wanted.items():
            golden.check(f"{prefix}_grad.{official}", parameters[ours].grad)

    fake = discriminator(imagine(), made_at, label)
    golden.check("Gmain_fake_logits", fake.detach())
    loss = generator_loss(fake)
    golden.check("Gmain_loss", loss.detach())
    loss.mean().backward()
    golden.check("Gmain_grad_norms", gradient_norms(generator, c["G_parameters"], generator_state))
    golden.check("w_avg_after_G", generator.mapping.average)
    check_gradients(
        "Gmain",
        generator,
        {
            "mapping.fc0.weight": "mapping.layers.0.weight",
            "synthesis.motion_encoder.conv.0.bias": "motion.conv1.bias",
            "synthesis.motion_encoder.time_encoder.phase_predictor.weight": "motion.encoding.phase.weight",
            "synthesis.b8.torgb.weight": "synthesis.blocks.1.rgb.weight",
            "synthesis.b32.conv1.bias": "synthesis.blocks.3.conv1.bias",
        },
    )

    discriminator.zero_grad()
    with torch.no_grad():
        frames = imagine()
    real = i["real"].to(dtype).transpose(1, 2)
    fake_logits, real_logits = discriminator(frames, made_at, label), discriminator(real, real_at, label)
    golden.check("Dmain_fake_logits", fake_logits.detach())
    golden.check("Dmain_real_logits", real_logits.detach())
    loss = discriminator_loss(real_logits, fake_logits)
    golden.check("Dmain_loss", loss.detach())
    loss.mean().backward()

    golden.check("Dmain_grad_norms", gradient_norms(discriminator, c["D_parameters"], discriminator_state))
    golden.check("w_avg_after_D", generator.mapping.average)
    wanted = {
        "b4.out.bias": "head.out.bias",
        "mapping.fc0.bias": "condition.layers.0.bias",
        "b32.fromrgb.weight": "rgb.weight",
        "b16.conv1.bias": "blocks.1.conv1.bias",
    }
    check_gradients("Dmain", discriminator, wanted)

    discriminator.zero_grad()
    seen = real.clone().requires_grad_(True)
    penalty = gradient_penalty(discriminator(seen, real_at, label), seen)
    golden.check("R1_penalty_per_frame", penalty.detach().flatten())
    loss = penalty.mean(1) * c["r1_gamma"] / 2
    golden.check("R1_loss_per_video", loss.detach())
    loss.mean().backward()
    golden.check("Dreg_grad_norms", gradient_norms(discriminator, c["D_parameters"], discriminator_state))
    check_gradients("Dreg", discriminator, {k: v for k, v in wanted.items() if k != "b4.out.bias"})
