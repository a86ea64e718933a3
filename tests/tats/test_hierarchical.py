"""TATS-hierarchical: a sparse prior, and what lies between two of its slices."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from longtake.data.batch import Batch
from longtake.errors import UserError
from longtake.nn.attention import between_mask
from longtake.rollout.rng import Rng
from longtake.story import Entry, Story
from longtake.systems.base import ModelInfo
from longtake.systems.tats import rollout
from longtake.systems.tats.config import SIZES, TATSConfig, TATSSettings
from longtake.systems.tats.stages import InterpolatorStage, PriorStage
from longtake.systems.tats.system import TATS

EVERY, SLICE = 3, 16
TINY = replace(SIZES["tiny"], every=EVERY)
"""Two sparse slices a window; a slice is 16 tokens and four frames."""
LABELLED = replace(TINY, prior=replace(TINY.prior, condition="label"))


def system(config: TATSConfig = TINY, **settings) -> TATS:
    torch.manual_seed(0)
    made = TATS(config, ModelInfo(10.0, (16, 16), ("a", "b"), (1, 1)))
    with torch.no_grad():
        for network in (made.prior, made.interpolator):
            for parameter in network.parameters():
                if parameter.dim() > 1:
                    parameter.normal_(0, 0.3)
    made.settings = TATSSettings(**{"top_k": 0, "top_p": 1.0, **settings})
    return made.eval()


def stories(made: TATS, frames: int, count: int = 2, **fields) -> list[Story]:
    return [made.check(Story(frames=frames, seed=i, **fields)) for i in range(count)]


def slices(made: TATS, told: list[Story]) -> tuple[torch.Tensor, torch.Tensor]:
    """Sparse tokens and all tokens (B, n, h, w)."""
    rng = Rng([s.seed for s in told])
    sparse = torch.cat(list(rollout.latent_slices(made, told, rng)), 1)
    whole = rollout.with_between(made, told, rng, rollout.latent_slices(made, told, rng))
    return sparse, torch.cat(list(whole), 1)


def test_networks_and_stages():
    made = system()
    assert made.inference == ("vqgan", "sparse_prior", "interpolator")
    assert [s.name for s in made.stages()] == ["vqgan", "sparse_prior", "interpolator"]
    _, sparse, between = made.stages()
    assert sparse.clips["clips"].spec.frames == 8 * EVERY
    assert between.clips["clips"].spec.frames == 4 * (EVERY + 1)
    assert between.trains == ("interpolator",)
    assert between.frozen == ("vqgan",)
    assert made.interpolator.config.block == (EVERY + 1) * SLICE
    assert made.seam_period == 4 * EVERY
    with pytest.raises(ValueError, match="every is 0"):
        replace(TINY, every=0)


@pytest.mark.parametrize("frames", [1, 4, 5, 13, 52, 53])
def test_there_are_enough_slices_and_the_sparse_ones_are_where_they_belong(frames):
    made = system()
    sparse, whole = slices(made, stories(made, frames))
    needed = -(-frames // 4)
    assert needed <= whole.shape[1]
    assert torch.equal(whole[:, ::EVERY], sparse)
    video = torch.cat(list(made.generate(stories(made, frames))), 2)
    assert video.shape == (2, 3, frames, 16, 16)


def test_between_two_slices_it_draws_what_the_whole_network_predicts():
    """Greedy: every middle token is the likeliest under a full pass with the training mask."""
    made = system(top_k=1)
    _, whole = slices(made, stories(made, 40))
    condition = made.condition_tokens(torch.zeros(2, dtype=torch.long))
    for start in range(0, whole.shape[1] - EVERY, EVERY):
        segment = whole[:, start : start + EVERY + 1] + made.offset
        logits, targets = made.predict_between(condition, segment)
        assert torch.equal(logits[..., made.offset :].argmax(-1) + made.offset, targets)


def test_a_segment_depends_on_both_its_ends_and_its_own_noise_only():
    made = system()
    told = stories(made, 40)
    rng = Rng([s.seed for s in told])
    sparse = torch.cat(list(rollout.latent_slices(made, told, rng)), 1)

    def filled(ends: torch.Tensor) -> torch.Tensor:
        return torch.cat(list(rollout.with_between(made, told, rng, iter([ends]))), 1)

    plain, other = filled(sparse), sparse.clone()
    other[:, 2] = (other[:, 2] + 1) % 32
    changed = filled(other)
    assert torch.equal(plain[:, : EVERY + 1], changed[:, : EVERY + 1])  # segment 0: slices 0 to 3
    assert not torch.equal(plain[:, EVERY + 1 : 2 * EVERY], changed[:, EVERY + 1 : 2 * EVERY])
    assert not torch.equal(plain[:, 2 * EVERY + 1 : 3 * EVERY], changed[:, 2 * EVERY + 1 : 3 * EVERY])
    assert torch.equal(plain[:, 3 * EVERY :], changed[:, 3 * EVERY :])
    singly = torch.cat(list(rollout.with_between(made, told, rng, iter(sparse.split(1, 1)))), 1)
    assert torch.equal(singly, plain)
    first = torch.cat(list(rollout.with_between(made, told[:1], Rng([0]), iter([sparse[:1]]))), 1)
    assert torch.equal(first, plain[:1])


def test_the_official_quirk_draws_other_tokens():
    plain, quirk = system(top_k=1), system(top_k=1, official_quirk=True)
    told = stories(plain, 40)
    (sparse, ours), (same, theirs) = slices(plain, told), slices(quirk, told)
    assert torch.equal(sparse, same)
    assert not torch.equal(ours, theirs)


def test_the_first_window_has_settings_of_its_own():
    made, narrow = system(), system(first_top_k=1)
    told = stories(made, 24, count=1)
    a, b = (torch.cat(list(rollout.latent_slices(m, told, Rng([0]))), 1) for m in (made, narrow))
    assert not torch.equal(a[:, :2], b[:, :2])
    again = torch.cat(list(rollout.latent_slices(narrow, told, Rng([7]))), 1)
    assert torch.equal(b[:, :2], again[:, :2])  # greedy: noise does not matter
    assert not torch.equal(b[:, 2:], again[:, 2:])


def test_the_class_in_force_stands_before_every_segment(monkeypatch):
    made = system(LABELLED)
    seen = []
    fill = rollout.fill_between

    def watching(decoder, before, *rest):
        seen.append(int(before[0, 0]))
        return fill(decoder, before, *rest)

    monkeypatch.setattr(rollout, "fill_between", watching)
    story = made.check(Story(frames=48, timeline=(Entry(0.0, "a"), Entry(2.0, "b"))))  # frame 20 on is b
    list(rollout.with_between(made, [story], Rng([0]), rollout.latent_slices(made, [story], Rng([0]))))
    starts = [4 * (EVERY * i + 1) for i in range(len(seen))]
    assert seen == [int(start >= 20) for start in starts]


def test_only_the_middle_is_learned_from_and_it_sees_both_ends():
    made = system(LABELLED)
    stage = InterpolatorStage(made)
    tokens = torch.randint(32, (3, EVERY + 1, 4, 4), generator=torch.Generator().manual_seed(0))
    batch = Batch(tokens=tokens, label=torch.tensor([0, 1, 1]), id=torch.arange(3))

    def loss_of(changed: torch.Tensor) -> float:
        return float(stage._loss(Batch(tokens=changed, label=batch["label"], id=batch["id"]))["loss"].detach())

    loss = loss_of(tokens)
    flat = tokens.flatten(1) + made.offset
    sequence = torch.cat([batch["label"][:, None], flat], 1)
    mask = between_mask(1 + SLICE, (EVERY - 1) * SLICE, SLICE - 1)
    middle = slice(SLICE, EVERY * SLICE)
    logits = made.interpolator(sequence[:, :-1], mask=mask)[:, middle]
    expected = F.cross_entropy(logits.flatten(0, 1), flat[:, middle].flatten())
    assert loss == pytest.approx(float(expected.detach()), rel=1e-5)
    for place in (0, -1):  # an end that changes is seen
        other = tokens.clone()
        other[:, place, 0, 0] = (other[:, place, 0, 0] + 1) % 32
        assert (
            float(stage._loss(Batch(tokens=other, label=batch["label"], id=batch["id"]))["loss"].detach()) != loss
        )
    last = tokens.clone()
    last[:, -1, -1, -1] = (last[:, -1, -1, -1] + 1) % 32  # never an input, as in training by the authors
    assert loss_of(last) == loss


def test_the_sparse_prior_learns_from_every_nth_slice():
    made = system()
    made.vqgan.codebook.initialised.fill_(True)
    frames = torch.rand(2, 3, 8 * EVERY, 16, 16) * 2 - 1
    with torch.no_grad():
        kept = PriorStage(made).derive(Batch(frames=frames))["tokens"]
        assert torch.equal(kept.long(), made.vqgan.tokenize(frames)[:, ::EVERY])
        ends = InterpolatorStage(made).derive(Batch(frames=frames[:, :, : 4 * (EVERY + 1)]))["tokens"]
    assert kept.shape == (2, 2, 4, 4)
    assert ends.shape == (2, EVERY + 1, 4, 4)
    assert PriorStage(made).preview({}) is None


def test_tokens_of_other_steps_are_kept_apart():
    keys = [PriorStage(system(replace(TINY, every=n, frames=24 // n))).derive_key for n in (2, 3)]
    assert keys[0] != keys[1]
    assert PriorStage(TATS(replace(TINY, every=1), ModelInfo(10.0, (16, 16)))).derive_key == ""


def test_without_a_prior_there_is_no_rollout():
    made = TATS(replace(TINY, prior=replace(TINY.prior, layers=0)), ModelInfo(10.0, (16, 16)))
    with pytest.raises(UserError, match="no prior"):
        list(made.generate([Story(frames=4)]))
