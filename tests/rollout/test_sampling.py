import pytest
import torch
from goldens import Golden
from hypothesis import given, settings
from hypothesis import strategies as st

from longtake.nn.transformer import Transformer, TransformerConfig
from longtake.rollout import engine
from longtake.rollout.engine import Decoder, generate_tokens
from longtake.rollout.sampling import SamplingSettings, filter_logits, sample

LENGTH, VOCABULARY = 24, 40


@pytest.fixture(scope="module")
def transformer() -> Transformer:
    torch.manual_seed(0)
    config = TransformerConfig(vocabulary=VOCABULARY, block=LENGTH, layers=2, heads=2, width=32)
    model = Transformer(config).eval().requires_grad_(False)
    torch.nn.init.normal_(model.positions)
    for name, parameter in model.named_parameters():
        if name.endswith("weight") and "norm" not in name:
            parameter.mul_(8)  # the initial weights give nearly constant logits
    return model


@pytest.fixture(scope="module")
def tokens() -> torch.Tensor:
    return torch.randint(VOCABULARY, (3, LENGTH), generator=torch.Generator().manual_seed(1))


def test_the_filter_is_the_official_one():
    file = Golden("tats_sampling_filter")
    for top_k, top_p in file.config["combos"]:
        name = f"k{top_k}_p{top_p}"
        filtered = filter_logits(file.inputs["logits"], top_k, top_p)
        assert torch.equal(filtered > -torch.inf, file.out[f"kept_{name}"].bool())
        file.check(f"probs_{name}", filtered.softmax(-1))


@given(
    seed=st.integers(0, 10_000),
    top_k=st.integers(0, 50),
    top_p=st.floats(0.05, 1.0),
    temperature=st.floats(0.3, 3.0),
)
@settings(deadline=None, max_examples=60)
def test_evenly_spread_numbers_draw_each_token_as_often_as_the_filter_says(seed, top_k, top_p, temperature):
    logits = torch.randn(1, 30, generator=torch.Generator().manual_seed(seed)) * 2
    many = 20_000
    uniform = (torch.arange(many) + 0.5) / many
    drawn = sample(logits.expand(many, -1), uniform, SamplingSettings(temperature, top_k, top_p))
    share = torch.bincount(drawn, minlength=30) / many
    expected = filter_logits(logits / temperature, top_k, top_p).softmax(-1)[0]
    torch.testing.assert_close(share, expected, rtol=0, atol=2e-4)


def test_the_extreme_numbers_draw_the_most_and_the_least_likely_kept_token():
    logits = torch.tensor([[0.0, 3.0, 1.0, 2.0]]).log_softmax(-1)
    keep_three = SamplingSettings(top_k=3, top_p=1.0)
    assert sample(logits, torch.tensor([0.0]), keep_three).item() == 1
    assert sample(logits, torch.tensor([1 - 2.0**-24]), keep_three).item() == 2


def test_top_p_works_without_top_k():
    # The official sampler skips its whole filter when top_k is off.
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    assert sample(logits, torch.tensor([0.999]), SamplingSettings(top_k=0, top_p=0.6)).item() == 1


def test_top_k_of_one_is_greedy():
    logits = torch.randn(5, 30, generator=torch.Generator().manual_seed(0))
    greedy = sample(logits, torch.full((5,), 0.99), SamplingSettings(top_k=1, top_p=0.5))
    assert torch.equal(greedy, logits.argmax(-1))


@pytest.mark.parametrize(
    "wrong", [{"temperature": 0.0}, {"temperature": float("nan")}, {"top_k": -1}, {"top_p": 0.0}, {"top_p": 1.1}]
)
def test_senseless_settings_are_refused_by_name(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        SamplingSettings(**wrong)


@pytest.fixture(params=["plain", "blocked"])
def layout(request, monkeypatch):
    """Both layouts of float weights, whatever their size."""
    monkeypatch.setattr(engine, "SMALL_WEIGHT", 2**40 if request.param == "plain" else 0)


@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-5), ("bfloat16", 0.04), ("int8", 0.06)])
@pytest.mark.parametrize("prefix", [1, 7])
@pytest.mark.parametrize("rows", [1, 3])
def test_the_decoder_gives_the_transformers_logits(transformer, tokens, layout, precision, tolerance, prefix, rows):
    if precision == "int8" and not torch.backends.mkldnn.is_available():
        pytest.skip("int8 needs oneDNN")
    tokens = tokens[:rows]
    decoder = Decoder(transformer, rows, precision)
    logits = [decoder.prefill(tokens[:, :prefix])]
    logits += [decoder.extend(tokens[:, i : i + 1]) for i in range(prefix, 15)]
    logits.append(decoder.extend(tokens[:, 15:]))  # several at once behind a filled cache
    expected = transformer(tokens)[:, [*range(prefix - 1, 15), LENGTH - 1]]
    error = (torch.stack(logits, 1) - expected).square().mean().sqrt() / expected.std()
    assert error < tolerance


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # raised inside torch.compile
def test_the_compiled_step_gives_the_same_logits(transformer, tokens):
    plain, compiled = Decoder(transformer, 3), Decoder(transformer, 3, compile=True)
    torch.testing.assert_close(compiled.prefill(tokens[:, :4]), plain.prefill(tokens[:, :4]))
    for i in range(4, 12):
        step = tokens[:, i : i + 1]
        torch.testing.assert_close(compiled.extend(step), plain.extend(step), rtol=1e-4, atol=1e-4)


def test_generating_is_sampling_from_the_full_forward(transformer, tokens):
    chosen = SamplingSettings(temperature=0.9, top_k=12, top_p=0.9)
    uniforms = torch.rand(3, 10, generator=torch.Generator().manual_seed(2))
    drawn = generate_tokens(Decoder(transformer, 3), tokens[:, :5], 10, uniforms, chosen)
    sequence = tokens[:, :5]
    for i in range(10):
        token = sample(transformer(sequence)[:, -1], uniforms[:, i], chosen)
        sequence = torch.cat([sequence, token[:, None]], 1)
    assert torch.equal(drawn, sequence[:, 5:])
    assert len(drawn.unique()) > 5


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_a_row_does_not_depend_on_its_batch(transformer, tokens, layout, precision):
    if precision == "int8" and not torch.backends.mkldnn.is_available():
        pytest.skip("int8 needs oneDNN")
    uniforms = torch.rand(3, 15, generator=torch.Generator().manual_seed(3))
    chosen = SamplingSettings(top_k=12)
    together = generate_tokens(Decoder(transformer, 3, precision), tokens[:, :3], 15, uniforms, chosen)
    single = Decoder(transformer, 1, precision)
    alone = [generate_tokens(single, tokens[i : i + 1, :3], 15, uniforms[i : i + 1], chosen) for i in range(3)]
    assert torch.equal(together, torch.cat(alone))


def test_a_new_window_remembers_nothing(transformer, tokens):
    uniforms = torch.rand(3, 8, generator=torch.Generator().manual_seed(4))
    decoder = Decoder(transformer, 3)
    first = generate_tokens(decoder, tokens[:, :6], 8, uniforms, SamplingSettings())
    generate_tokens(decoder, tokens[:, 6:20], 8, uniforms, SamplingSettings())
    assert torch.equal(generate_tokens(decoder, tokens[:, :6], 8, uniforms, SamplingSettings()), first)


def test_only_allowed_ids_are_drawn(transformer, tokens):
    uniforms = torch.rand(3, 20, generator=torch.Generator().manual_seed(5))
    everything = SamplingSettings(temperature=5.0, top_k=0, top_p=1.0)
    decoder = Decoder(transformer, 3)
    assert generate_tokens(decoder, tokens[:, :2], 20, uniforms, everything).min() < 10
    drawn = generate_tokens(decoder, tokens[:, :2], 20, uniforms, everything, range(10, 30))
    assert drawn.min() >= 10
    assert drawn.max() < 30
    assert len(drawn.unique()) > 10


def test_a_window_may_fill_all_positions_but_not_more(transformer, tokens):
    decoder = Decoder(transformer, 3)
    uniforms = torch.full((3, LENGTH + 1), 0.5)
    # The last drawn token is never fed, so prefix + count may exceed the positions by one.
    assert generate_tokens(decoder, tokens[:, :1], LENGTH, uniforms, SamplingSettings()).shape == (3, LENGTH)
    with pytest.raises(ValueError, match="24 tokens"):
        generate_tokens(decoder, tokens[:, :1], LENGTH + 1, uniforms, SamplingSettings())
    with pytest.raises(ValueError, match="takes 3 rows"):
        decoder.prefill(tokens[:2])


def test_the_transformer_is_left_alone(transformer, tokens):
    before = {name: value.clone() for name, value in transformer.state_dict().items()}
    generate_tokens(Decoder(transformer, 3), tokens[:, :4], 5, torch.full((3, 5), 0.3), SamplingSettings())
    assert all(torch.equal(before[name], value) for name, value in transformer.state_dict().items())
