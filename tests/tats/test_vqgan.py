import pytest
import torch
from goldens import Golden
from hypothesis import given, settings
from hypothesis import strategies as st

from longtake.errors import UserError
from longtake.nn.conv import Padding
from longtake.systems.tats.convert import PADDINGS, vqgan_state
from longtake.systems.tats.vqgan import (
    VQGAN,
    VQGANConfig,
    WindowedDecoder,
    decoder_receptive_field,
    encoder_context,
)

REAL_FRAMES = Padding("none", "replicate")


def small(seed: int = 0, **fields) -> VQGAN:
    """A VQGAN in eval mode whose batch statistics and codebook are not those of a new one."""
    torch.manual_seed(seed)
    config = VQGANConfig(**{"hidden": 3, "embedding": 6, "codes": 24, "compression": (4, 4, 4)} | fields)
    model = VQGAN(config)
    before, after = model.extra_frames()
    model(torch.rand(2, config.channels, 16 + before + after, 16, 16) * 2 - 1)
    return model.eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["122_group_replicate", "444_batch_zero", "488_batch_replicate"])
def test_equals_the_official_code(name, dtype):
    golden = Golden(f"tats_vqgan_{name}")
    args = golden.config["args"]
    mode = PADDINGS[args["padding_type"]]
    config = VQGANConfig(
        hidden=args["n_hiddens"],
        embedding=args["embedding_dim"],
        codes=args["n_codes"],
        compression=tuple(args["downsample"]),
        norm=args["norm_type"],
        padding=Padding(mode, mode),
        official_partial_padding=True,
    )
    model = VQGAN(config)
    model.load_state_dict(vqgan_state(golden.state))
    model.to(dtype).eval()
    for i in range(2):
        video = golden.inputs[f"clip{i}"].to(dtype) * 2
        with torch.no_grad():
            z = model.encode(video)
            quantised = model.codebook(z)
            golden.check(f"prequant{i}", z)
            golden.check(f"indices{i}", model.tokenize(video))
            golden.check(f"commitment{i}", quantised.commitment_loss)
            golden.check(f"perplexity{i}", quantised.perplexity)
            golden.check(f"frames{i}", model.detokenize(quantised.indices) / 2)
            # Through the straight-through sum z + (e - z), so only within rounding.
            torch.testing.assert_close(model(video).video, model.detokenize(quantised.indices), rtol=0, atol=1e-4)


def test_the_quirk_matters():
    """With padding as asked everywhere the zero-padded official model gives other numbers."""
    golden = Golden("tats_vqgan_444_batch_zero")
    model = VQGAN(
        VQGANConfig(hidden=4, embedding=8, codes=32, compression=(4, 4, 4), padding=Padding("zeros", "zeros"))
    )
    model.load_state_dict(vqgan_state(golden.state))
    z = model.eval().encode(golden.inputs["clip0"] * 2)
    assert (z - golden.out["prequant0"]).abs().max() > 0.01


def test_published_parameter_counts():
    with torch.device("meta"):
        model = VQGAN(VQGANConfig())
    projection = 256 * 256 + 256
    assert sum(p.numel() for p in model.encoder.parameters()) == 7_403_648 + projection
    assert sum(p.numel() for p in model.decoder.parameters()) == 16_116_995 + projection


FACTORS = st.sampled_from([1, 2, 4])


@given(st.tuples(FACTORS, FACTORS, FACTORS).filter(lambda f: max(f) > 1), st.tuples(*[st.integers(1, 2)] * 3))
@settings(max_examples=15, deadline=None)
def test_any_power_of_two_per_axis(compression, grid):
    model = VQGAN(VQGANConfig(hidden=2, embedding=4, codes=8, compression=compression, channels=1)).eval()
    size = [n * f for n, f in zip(grid, compression, strict=True)]
    tokens = model.tokenize(torch.rand(1, 1, *size))
    assert tuple(tokens.shape[1:]) == grid == model.latent_shape(*size)
    assert tokens.dtype == torch.int64
    assert tuple(model.detokenize(tokens).shape) == (1, 1, *size)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"compression": (4, 3, 4)}, "has 3"),
        ({"compression": (1, 1, 1)}, "compresses nothing"),
        ({"official_partial_padding": True, "padding": REAL_FRAMES}, "does not go with"),
    ],
)
def test_refuses_what_cannot_be_built(fields, message):
    with pytest.raises(UserError, match=message):
        VQGANConfig(**fields)


def test_refuses_sizes_that_do_not_fit():
    with pytest.raises(UserError, match="frames is 10 but this VQGAN needs a positive multiple of 4"):
        small().encode(torch.zeros(1, 3, 10, 16, 16))
    with pytest.raises(UserError, match="height is 18"):
        small().encode(torch.zeros(1, 3, 8, 18, 16))
    with pytest.raises(UserError, match=r"frames is 16 .* multiple of 4 plus 60 extra frames"):
        VQGAN(VQGANConfig(hidden=2, codes=4, padding=REAL_FRAMES)).encode(torch.zeros(1, 3, 16, 16, 16))


@pytest.mark.parametrize("compression", [(4, 8, 8), (4, 4, 4), (2, 4, 4), (1, 2, 2), (8, 4, 4)])
def test_extra_frames_are_exactly_what_the_encoder_sees(compression):
    """The gradient of one latent slice reaches every frame of its context and none beyond it."""
    # Replicate padding keeps the length, so a long clip shows the reach of a slice in its middle.
    model = small(compression=compression, hidden=2, norm="frame").double()
    before, after = encoder_context(model.config)
    c = compression[0]
    slices = -(-(before + after) // c) + 6
    video = torch.rand(1, 3, slices * c, 8, 8, dtype=torch.float64, requires_grad=True)
    j = -(-before // c) + 2
    model.encode(video)[:, :, j].sum().backward()
    touched = video.grad.abs().sum((0, 1, 3, 4)).nonzero().flatten().tolist()
    assert touched == list(range(j * c - before, (j + 1) * c + after))


def test_real_frames_make_the_tokens_independent_of_their_place():
    model = small(padding=REAL_FRAMES)
    before, after = model.extra_frames()
    video = torch.rand(1, 3, before + 24 + after, 8, 8) * 2 - 1
    whole = model.encode(video)
    assert whole.shape[2] == 6
    assert model(video).video.shape[2] == 24
    torch.testing.assert_close(model.core(video), video[:, :, before : before + 24])
    for start in range(5):
        part = model.encode(video[:, :, 4 * start : 4 * start + before + 8 + after])
        torch.testing.assert_close(part, whole[:, :, start : start + 2], rtol=1e-4, atol=1e-5)
    replicated = small()
    clip = video[:, :, 8:32]
    shift = replicated.encode(clip[:, :, 4:12])[:, :, 0] - replicated.encode(clip[:, :, :8])[:, :, 1]
    assert shift.abs().max() > 1e-3  # and replicate padding is only close


@pytest.mark.parametrize("compression", [(4, 8, 8), (4, 4, 4), (2, 4, 4), (1, 2, 2), (8, 4, 4)])
def test_receptive_field_is_exactly_what_the_decoder_sees(compression):
    model = small(compression=compression, hidden=2, norm="frame").double()
    before, after = decoder_receptive_field(model.config)
    slices = before + after + 9
    z = torch.randn(1, 6, slices, 2, 2, dtype=torch.float64, requires_grad=True)
    j, c = before + 4, compression[0]
    model.decode_latents(z)[:, :, j * c : (j + 1) * c].sum().backward()
    touched = z.grad.abs().sum((0, 1, 3, 4)).nonzero().flatten().tolist()
    assert touched == list(range(j - before, j + after + 1))


def test_receptive_field_of_the_published_model():
    assert decoder_receptive_field(VQGANConfig()) == (6, 6)
    assert encoder_context(VQGANConfig()) == (32, 28)


def stream(model: VQGAN, tokens: torch.Tensor, window: int, pushes: list[int]) -> list[torch.Tensor]:
    decoder, parts, start = WindowedDecoder(model, window), [], 0
    for n in pushes:
        parts.append(decoder.push(tokens[:, start : start + n]))
        start += n
    return [*parts, decoder.flush()]


@pytest.fixture(scope="module")
def streamed():
    model = small(compression=(2, 4, 4))
    before, after = decoder_receptive_field(model.config)
    return model, before + after


@given(data=st.data(), total=st.integers(1, 40), extra=st.integers(1, 9))
@settings(max_examples=25, deadline=None)
def test_streamed_frames_do_not_depend_on_how_tokens_come(streamed, data, total, extra):
    model, field = streamed
    tokens = torch.randint(0, 24, (1, total, 2, 2), generator=torch.Generator().manual_seed(total))
    cuts = sorted(data.draw(st.lists(st.integers(0, total), max_size=6)))
    pushes = [b - a for a, b in zip([0, *cuts], [*cuts, total], strict=True)]
    window = field + extra
    pieces = torch.cat(stream(model, tokens, window, pushes), 2)
    assert torch.equal(pieces, torch.cat(stream(model, tokens, window, [total]), 2))
    assert torch.equal(pieces, torch.cat(stream(model, tokens, window, [1] * total), 2))
    with torch.no_grad():
        torch.testing.assert_close(pieces, model.detokenize(tokens), rtol=0, atol=1e-5)


@pytest.mark.parametrize("padding", [Padding(m, "zeros") for m in ("replicate", "zeros", "reflect", "none")])
@pytest.mark.parametrize("norm", ["batch", "frame"])
def test_streaming_equals_decoding_at_once_for_every_padding(padding, norm):
    model = small(padding=padding, norm=norm).double()
    before, after = decoder_receptive_field(model.config)
    tokens = torch.randint(0, 24, (2, 3 * (before + after), 2, 3))
    frames = torch.cat(stream(model, tokens, before + after + 3, [5] * (len(tokens[0]) // 5 + 1)), 2)
    with torch.no_grad():
        torch.testing.assert_close(frames, model.detokenize(tokens), rtol=0, atol=1e-13)


def test_too_narrow_a_window_is_refused_and_would_be_wrong():
    model = small(compression=(2, 4, 4)).double()
    before, after = decoder_receptive_field(model.config)
    with pytest.raises(UserError, match=f"use at least {before + after + 1}"):
        WindowedDecoder(model, before + after)
    tokens = torch.randint(0, 24, (1, 30, 2, 2))
    decoder = WindowedDecoder(model, before + after + 2)
    decoder.after -= 1  # pretend to a smaller receptive field
    decoder.stride += 1
    frames = torch.cat([decoder.push(tokens), decoder.flush()], 2)
    # The rim of the field weighs little in a new network, hence float64 and the strict bounds here and below.
    assert (frames - model.detokenize(tokens)).abs().max() > 1e-10


def test_the_decoder_holds_a_bounded_number_of_slices():
    model = small(compression=(2, 4, 4))
    decoder = WindowedDecoder(model, 20)
    seen = []
    decode = model.detokenize
    model.detokenize = lambda tokens: seen.append(tokens.shape[1]) or decode(tokens)
    for _ in range(200):
        decoder.push(torch.zeros(1, 1, 1, 1, dtype=torch.long))
        assert decoder.held.shape[1] <= 20 + decoder.stride
    decoder.flush()
    assert set(seen) == {20}


def test_a_decoder_can_be_used_again():
    model = small(compression=(2, 4, 4))
    decoder = WindowedDecoder(model, 16)
    tokens = torch.randint(0, 24, (1, 30, 2, 2))
    first, second = (torch.cat([decoder.push(tokens), decoder.flush()], 2) for _ in range(2))
    assert torch.equal(first, second)
    with pytest.raises(ValueError, match="before any tokens"):
        decoder.flush()


def test_training_reaches_every_weight():
    model = VQGAN(VQGANConfig(hidden=2, embedding=4, codes=8, compression=(4, 4, 4), norm="frame"))
    out = model(torch.rand(2, 3, 8, 8, 8), torch.Generator().manual_seed(0))
    (out.video.abs().mean() + out.quantised.commitment_loss).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
    assert bool(model.codebook.initialised)
