"""The transformer and the sampler against tensors computed with the official TATS code."""

import pytest
import torch
from goldens import Golden, transformer
from torch import Tensor

from longtake.nn.attention import between_mask
from longtake.rollout.engine import Decoder, fill_between, generate_tokens
from longtake.rollout.sampling import SamplingSettings


def inputs(file: Golden) -> Tensor:
    """Condition and video tokens without the last one."""
    return torch.cat([file.out["c_indices"], file.out["targets"]], 1)[:, :-1]


@pytest.mark.parametrize("kind", ["class", "sparse_uncond"])
def test_logits_are_the_official_ones(kind):
    file = Golden(f"tats_transformer_{kind}")
    model = transformer(file)
    logits = model(inputs(file))
    file.check("logits", logits)
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), file.out["targets"].flatten())
    file.check("loss", loss)
    file.check("logits", model.double()(inputs(file)))


def test_logits_under_the_interpolation_mask_are_the_official_ones():
    file = Golden("tats_transformer_interp")
    t, h, w = file.config["latent"]
    mask = between_mask(1 + h * w, (t - 2) * h * w, h * w - 1)
    assert torch.equal(mask, file.state["transformer.blocks.0.attn.mask"][0, 0].bool())
    logits = transformer(file)(inputs(file), mask=mask)
    file.check("logits", logits)


def test_logits_with_a_3d_position_table_are_the_official_ones():
    file = Golden("tats_transformer_vtokens_pos")
    (t0, t1), (h0, h1, w0, w1) = file.config["tbox"], file.config["cbox"]
    table = file.state["vtokens_pos_emb"][0, t0:t1, h0:h1, w0:w1].flatten(0, 2)
    file.check("logits", transformer(file)(file.inputs["tokens"], positions=table))


def test_seeded_sampling_draws_the_official_tokens():
    file = Golden("tats_sampling_seeded")
    settings = SamplingSettings(1.0, file.config["top_k"], file.config["top_p"])
    prefix, expected = file.inputs["prefix"], file.out["tokens"]
    decoder = Decoder(transformer(file), len(prefix))
    torch.manual_seed(file.config["torch_manual_seed"])
    drawn = generate_tokens(
        decoder,
        prefix,
        expected.shape[1],
        lambda probabilities: torch.multinomial(probabilities, 1)[:, 0],
        settings,
    )
    assert torch.equal(drawn, expected)


@pytest.mark.parametrize("joint", [True, False], ids=["official clamp", "video ids only"])
@pytest.mark.parametrize("kept", [1, 3])
def test_sliding_windows_draw_the_official_tokens(kept, joint):
    file = Golden("tats_sampling_sliding")
    conditions, slice_tokens = file.config["n_cond"], file.config["side"] ** 2
    ids = None if joint else range(conditions, conditions + file.config["n_codes"])
    expected = file.out[f"greedy_p{kept}"].flatten(1)
    decoder = Decoder(transformer(file), len(expected))
    label = file.inputs["class_label"].expand(len(expected))[:, None]
    drawn = label[:, :0]
    while drawn.shape[1] < expected.shape[1]:
        count = slice_tokens if drawn.shape[1] else kept * slice_tokens
        prefix = torch.cat([label, drawn[:, -kept * slice_tokens :]], 1)
        uniforms = torch.zeros(len(prefix), count)
        window = generate_tokens(decoder, prefix, count, uniforms, SamplingSettings(top_k=1), ids)
        drawn = torch.cat([drawn, window], 1)
    assert torch.equal((drawn - conditions).clamp_min(0), expected)


def test_one_window_and_its_logits_are_the_official_ones():
    file = Golden("tats_sampling_sliding")
    raw, model = file.out["greedy_raw"], transformer(file)
    label = file.inputs["class_label"].expand(len(raw))[:, None]
    uniforms = torch.zeros(raw.shape)
    drawn = generate_tokens(Decoder(model, len(raw)), label, raw.shape[1], uniforms, SamplingSettings(top_k=1))
    assert torch.equal(drawn, raw)
    file.check("logits_teacher", model(torch.cat([label, raw[:, :-1]], 1)))


@pytest.mark.parametrize("official", [True, False], ids=["quirk", "corrected"])
@pytest.mark.parametrize("compile", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # raised inside torch.compile
def test_the_middle_between_two_slices_is_the_official_one(official, compile):
    file = Golden("tats_sampling_interp")
    first, last = file.inputs["first"], file.inputs["last"]
    before = torch.cat([torch.full_like(first[:, :1], file.config["sos"]), first], 1)
    expected = file.out["quirk_greedy_middle" if official else "corrected_greedy_middle"].flatten(1)
    decoder = Decoder(transformer(file), len(first), compile=compile)
    noise = torch.zeros(expected.shape)
    for _ in range(2):  # a second segment starts afresh
        drawn = fill_between(
            decoder, before, last, expected.shape[1], noise, SamplingSettings(top_k=1), official=official
        )
        assert torch.equal(drawn, expected)


def test_logits_of_the_middle_are_the_official_ones_and_what_the_sampler_sees():
    file = Golden("tats_sampling_interp")
    first, last, middle = file.inputs["first"], file.inputs["last"], file.out["corrected_greedy_middle"].flatten(1)
    before = torch.cat([torch.full_like(first[:, :1], file.config["sos"]), first], 1)
    p, count = before.shape[1], middle.shape[1]
    model = transformer(file)
    mask = between_mask(p, count, last.shape[1] - 1)
    whole = model(torch.cat([before, middle, last[:, :-1]], 1), mask=mask)[:, p - 1 : p - 1 + count]
    file.check("corrected_logits", whole)
    decoder = Decoder(model, len(first))
    places = torch.cat([torch.arange(p), torch.arange(p + count, p + count + last.shape[1] - 1)])
    ends = torch.cat([before, last[:, :-1]], 1)
    logits = [decoder.prefill(ends, places, torch.ones(len(places), len(places), dtype=torch.bool), p - 1)]
    logits += [decoder.extend(middle[:, i : i + 1], torch.tensor([p + i])) for i in range(count - 1)]
    torch.testing.assert_close(torch.stack(logits, 1), whole, rtol=1e-4, atol=1e-5)
