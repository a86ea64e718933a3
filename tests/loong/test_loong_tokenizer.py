"""The tokenizer of Loong: causality, arithmetic, size, and the clustering codebook."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from longtake.errors import UserError
from longtake.systems.loong.quantize import ClusteringCodebook
from longtake.systems.loong.tokenizer import Tokenizer, TokenizerConfig

TINY = TokenizerConfig(
    width=4, multipliers=(1, 2, 2), blocks=1, embedding=8, codes=64, compression=(4, 4, 4), groups=2
)


def tokenizer(**changes) -> Tokenizer:
    torch.manual_seed(0)
    made = Tokenizer(replace(TINY, **changes)).double().eval()
    with torch.no_grad():
        made.codebook.embeddings.normal_()
    return made


def clip(frames: int, size: int = 8) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(1, 3, frames, size, size, generator=generator, dtype=torch.float64) * 2 - 1


@pytest.mark.parametrize("separate", [False, True])
def test_the_tokens_of_a_beginning_are_the_beginning_of_the_tokens(separate):
    made, video = tokenizer(separate_first=separate), clip(65)
    with torch.no_grad():
        whole, tokens = made.encode(video), made.tokenize(video)
        shown = made.detokenize(tokens)
        for frames in (1, 5, 17, 61):
            t = made.latents(frames)
            torch.testing.assert_close(made.encode(video[:, :, :frames]), whole[:, :, :t], rtol=0, atol=1e-12)
            assert torch.equal(made.tokenize(video[:, :, :frames]), tokens[:, :t])
            torch.testing.assert_close(made.detokenize(tokens[:, :t]), shown[:, :, :frames], rtol=0, atol=1e-12)


@pytest.mark.parametrize("separate", [False, True])
def test_nothing_sees_the_future(separate):
    made, video = tokenizer(separate_first=separate), clip(17)
    with torch.no_grad():
        before = made.encode(video)
        z = torch.randn(1, 8, 5, 2, 2, dtype=torch.float64)
        shown = made.decoder(z)
        for frame in range(17):
            changed = video.clone()
            changed[:, :, frame:] = 0.5
            after, owner = made.encode(changed), math.ceil(frame / 4)
            assert torch.equal(after[:, :, :owner], before[:, :, :owner])
            assert not torch.equal(after[:, :, owner], before[:, :, owner])
        for latent in range(5):
            other = z.clone()
            other[:, :, latent:] = 0.5
            moved, first = made.decoder(other), made.frames(latent)
            assert torch.equal(moved[:, :, :first], shown[:, :, :first])
            assert not torch.equal(moved[:, :, first], shown[:, :, first])


def test_the_past_is_seen():
    made, video = tokenizer(), clip(17).requires_grad_()
    (gradient,) = torch.autograd.grad(made.encode(video)[:, :, 4].sum(), video)
    assert bool((gradient.abs().sum((0, 1, 3, 4)) > 0).all())


def test_the_frame_arithmetic():
    made = Tokenizer(TINY)
    assert [made.latents(f) for f in (1, 5, 17, 65)] == [1, 2, 5, 17]
    assert [made.frames(t) for t in (0, 1, 2, 5, 17)] == [0, 1, 5, 17, 65]
    with torch.device("meta"):
        full = Tokenizer(TokenizerConfig())
    t, h, w = full.grid(65, 128, 128)
    assert (t, h, w, t * h * w) == (17, 16, 16, 4352)
    assert math.prod(full.grid(17, 128, 128)) == 1280
    with pytest.raises(UserError, match=r"16 frames do not fit this tokenizer.* use 13"):
        made.latents(16)
    with pytest.raises(UserError, match="width is 10"):
        made.encode(torch.zeros(1, 3, 1, 8, 10))
    video = made(torch.zeros(2, 3, 9, 8, 12)).video
    assert video.shape == (2, 3, 9, 8, 12)


@pytest.mark.parametrize(
    ("compression", "multipliers"), [((4, 8, 8), (1, 1, 1, 1)), ((2, 4, 4), (1, 1, 1)), ((4, 2, 2), (1, 1, 1))]
)
def test_other_compressions(compression, multipliers):
    made = tokenizer(compression=compression, multipliers=multipliers)
    video = clip(9, 16)
    with torch.no_grad():
        tokens = made.tokenize(video)
        assert tokens.shape[1:] == made.grid(9, 16, 16)
        assert made.detokenize(tokens).shape == video.shape
    with pytest.raises(ValueError, match="do not fit a compression"):
        replace(TINY, multipliers=(1, 2))
    with pytest.raises(ValueError, match="powers of two"):
        replace(TINY, compression=(4, 6, 6))


def test_the_published_size():
    """246 M (section 4.1): convolutions alone, the codebook's 2.1 M apart; 372 M for the wider public layout."""
    with torch.device("meta"):
        paper = Tokenizer(TokenizerConfig())
        wide = Tokenizer(TokenizerConfig(blocks=4, middle=4, embedding=64))
    size = sum(p.numel() for p in paper.parameters()) - paper.codebook.embeddings.numel()
    assert size == 245_497_859
    assert abs(size / 246e6 - 1) < 0.003
    assert round(sum(p.numel() for p in wide.parameters()) / 1e6) == 372


@pytest.mark.parametrize(("similarity", "chosen"), [("distance", [1, 0]), ("cosine", [2, 0])])
def test_the_lookup(similarity, chosen):
    book = ClusteringCodebook(3, 2, similarity=similarity).eval()
    with torch.no_grad():
        book.embeddings.copy_(torch.tensor([[3.0, 0.0], [0.0, 2.1], [0.05, 0.3]]))
    z = torch.tensor([[[0.3, 5.0], [2.0, 0.1]]]).requires_grad_()  # the vectors (0.3, 2) and (5, 0.1)
    made = book(z)
    assert made.indices.tolist() == [chosen]
    assert torch.equal(book.nearest(z), made.indices)
    assert torch.allclose(made.values.detach()[0].t(), book.embeddings.detach()[chosen], atol=1e-6)
    made.values.sum().backward()
    assert z.grad is not None
    assert torch.equal(z.grad, torch.ones_like(z))
    error = (z.detach() - book.lookup(made.indices).detach()).square().mean()
    assert float(made.commitment_loss.detach()) == pytest.approx(1.25 * float(error))


def test_codes_are_pulled_by_their_use():
    """Zheng and Vedaldi's update, written out: a fair share keeps a code, none replaces it by a vector."""
    book = ClusteringCodebook(4, 2).train()
    with torch.no_grad():
        book.embeddings.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.2], [-1.0, -0.2]]))
    before = book.embeddings.detach().clone()
    z = torch.tensor([[2.0, 0.1], [0.1, 2.0], [2.0, 0.0], [0.0, 2.0]]).t()[None]
    book(z, torch.Generator().manual_seed(0))
    assert book.shares.tolist() == pytest.approx([0.005, 0.005, 0, 0])
    after = book.embeddings.detach()
    assert torch.equal(after[:2], before[:2])
    alpha = math.exp(-1e-3)
    for row in (2, 3):
        moved = (after[row] - (1 - alpha) * before[row]) / alpha
        assert bool(((z[0].t() - moved).abs().sum(1) < 1e-5).any()), "one of the vectors"
    plain = ClusteringCodebook(4, 2, anchors=False).train()
    start = plain.embeddings.detach().clone()
    plain(z)
    assert torch.equal(plain.embeddings, start)


@pytest.mark.parametrize(("similarity", "odds"), [("distance", math.exp(1.7**2 - 0.3**2)), ("cosine", math.exp(2))])
def test_anchors_rather_take_similar_vectors(similarity, odds):
    book = ClusteringCodebook(2, 2, similarity=similarity).train()
    vectors = torch.tensor([[0.7, 0.0], [-0.7, 0.0]])
    with torch.no_grad():
        book.embeddings.copy_(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))
    generator = torch.Generator().manual_seed(0)
    drawn = [book._anchors(vectors, torch.tensor([0]), generator)[0, 0].item() for _ in range(400)]
    assert sum(d > 0 for d in drawn) / 400 == pytest.approx(odds / (1 + odds), abs=0.05)


def test_anchors_are_drawn_among_so_many_vectors_at_most(monkeypatch):
    monkeypatch.setattr("longtake.systems.loong.quantize.CANDIDATES", 50)
    book = ClusteringCodebook(300, 2).train()
    vectors = torch.arange(400.0).view(200, 2)
    anchors = book._anchors(vectors, torch.arange(300), torch.Generator().manual_seed(0))
    assert anchors.shape == (300, 2)
    assert len(anchors.unique(dim=0)) <= 50
    assert bool((anchors[:, None] == vectors).all(-1).any(1).all()), "each is one of the vectors"


def test_more_codes_live_than_without_anchors():
    used = {}
    for anchors in (True, False):
        torch.manual_seed(0)
        book = ClusteringCodebook(64, 4, anchors=anchors).train()
        optimiser = torch.optim.Adam(book.parameters(), 1e-3)
        for _ in range(60):
            made = book(torch.randn(2, 4, 128) + torch.tensor([3.0, 0, 0, 0]).view(1, 4, 1))
            made.commitment_loss.backward()
            optimiser.step()
            optimiser.zero_grad()
        used[anchors] = float(made.used)
    assert used[True] > used[False] + 0.2
