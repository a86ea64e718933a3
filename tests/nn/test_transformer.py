from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longtake.nn.attention import causal_mask
from longtake.nn.cache import KVCache
from longtake.nn.transformer import Transformer, TransformerConfig

LENGTH = 12


@pytest.fixture(scope="module")
def transformer() -> Transformer:
    torch.manual_seed(0)
    model = Transformer(TransformerConfig(vocabulary=11, block=LENGTH, layers=2, heads=2, width=16)).double()
    for parameter in model.parameters():  # the initial weights give nearly constant logits
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def tokens() -> torch.Tensor:
    return torch.randint(11, (3, LENGTH), generator=torch.Generator().manual_seed(1))


@given(cuts=st.sets(st.integers(1, LENGTH - 1)))
@settings(deadline=None)
def test_cached_passes_give_the_uncached_logits_wherever_the_sequence_is_cut(transformer, tokens, cuts):
    cache = transformer.new_cache(3)
    borders = [0, *sorted(cuts), LENGTH]
    parts = [transformer(tokens[:, a:b], cache) for a, b in pairwise(borders)]
    torch.testing.assert_close(torch.cat(parts, 1), transformer(tokens), rtol=0, atol=1e-12)
    assert cache.length == LENGTH


@given(position=st.integers(0, LENGTH - 1))
@settings(deadline=None)
def test_a_token_changes_its_own_and_later_logits_only(transformer, tokens, position):
    other = tokens.clone()
    other[:, position] = (other[:, position] + 1) % 11
    difference = (transformer(tokens) - transformer(other)).abs().amax((0, 2))
    assert (difference[:position] == 0).all()
    assert (difference[position:] > 1e-6).all()


def test_an_explicit_causal_mask_is_the_default(transformer, tokens):
    masked = transformer(tokens, mask=causal_mask(LENGTH, 0))
    torch.testing.assert_close(masked, transformer(tokens), rtol=0, atol=1e-12)


def test_an_open_mask_lets_early_tokens_see_late_ones(transformer, tokens):
    opened = transformer(tokens, mask=torch.ones(LENGTH, LENGTH, dtype=torch.bool))
    assert (opened - transformer(tokens)).abs().amax((0, 2))[0] > 1e-3


def test_last_only_is_the_last_row(transformer, tokens):
    last = transformer(tokens, last_only=True)
    assert last.shape == (3, 1, 11)
    torch.testing.assert_close(last[:, 0], transformer(tokens)[:, -1], rtol=0, atol=1e-12)


def test_rows_of_a_batch_are_independent(transformer, tokens):
    alone = torch.cat([transformer(row[None]) for row in tokens])
    torch.testing.assert_close(transformer(tokens), alone, rtol=0, atol=1e-12)


def test_a_reset_cache_is_as_good_as_new(transformer, tokens):
    cache = transformer.new_cache(3)
    transformer(tokens, cache)
    cache.reset()
    torch.testing.assert_close(transformer(tokens[:, :4], cache), transformer(tokens[:, :4]))


def test_extra_positions_are_added_to_the_learned_ones(transformer, tokens):
    extra = torch.randn(LENGTH, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    expected = transformer(tokens, positions=extra)
    moved = Transformer(transformer.config).double()
    moved.load_state_dict({**transformer.state_dict(), "positions": transformer.positions + extra})
    torch.testing.assert_close(moved(tokens), expected, rtol=0, atol=1e-12)


def test_too_many_tokens_are_refused(transformer, tokens):
    with pytest.raises(ValueError, match="has 12 positions; 13 tokens"):
        transformer(torch.cat([tokens, tokens[:, :1]], 1))
    cache = transformer.new_cache(3, length=4)
    with pytest.raises(ValueError, match="holds 4 tokens"):
        transformer(tokens[:, :5], cache)


def test_a_width_that_the_heads_do_not_divide_is_refused():
    with pytest.raises(ValueError, match="3 heads"):
        TransformerConfig(vocabulary=5, block=4, layers=1, heads=3, width=16)


def test_the_cache_does_not_move():
    cache = KVCache(layers=1, batch=1, heads=1, length=4, head_width=2)
    before = cache.keys.data_ptr()
    keys, _ = cache.write(0, torch.ones(1, 1, 3, 2), torch.ones(1, 1, 3, 2))
    assert keys.data_ptr() == cache.keys.data_ptr() == before


def test_dropout_acts_in_training_only(tokens):
    torch.manual_seed(0)
    model = Transformer(TransformerConfig(11, LENGTH, layers=1, heads=2, width=16, dropout=0.5))
    assert not torch.equal(model(tokens), model(tokens))
    model.eval()
    assert torch.equal(model(tokens), model(tokens))


def test_the_published_size_has_the_published_number_of_parameters():
    with torch.device("meta"):
        model = Transformer(TransformerConfig(vocabulary=16384, block=1024, layers=24, heads=16, width=1024))
    assert sum(parameter.numel() for parameter in model.parameters()) == 336_914_432


def test_initial_weights_follow_the_official_code():
    torch.manual_seed(0)
    model = Transformer(TransformerConfig(vocabulary=200, block=8, layers=1, heads=2, width=64))
    assert (model.positions == 0).all()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert (parameter == 0).all()
        elif "norm" in name:
            assert (parameter == 1).all()
        elif name != "positions":
            assert parameter.std().item() == pytest.approx(0.02, rel=0.1)
