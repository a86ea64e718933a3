"""Choosing among candidates by a discriminator."""

from __future__ import annotations

import torch

from longtake.rollout.reject import best_clips


def clips() -> torch.Tensor:
    """(2, 3, 3, 4, 2, 2): candidate i of video b is 10 b + i in its first frame, and grows by 100 a frame."""
    value = 10 * torch.arange(2.0)[:, None] + torch.arange(3.0)
    time = 100 * torch.arange(4.0)
    return (value[..., None] + time)[:, :, None, :, None, None].expand(2, 3, 3, 4, 2, 2)


def test_the_highest_score_wins_in_each_video():
    order = torch.tensor([1.0, 3.0, 2.0, 9.0, 8.0, 7.0])
    seen = []

    def score(batch):
        seen.append(batch)
        return order

    chosen, which = best_clips(clips(), score)
    assert which.tolist() == [1, 0]
    assert torch.equal(chosen, torch.stack([clips()[0, 1], clips()[1, 0]]))
    assert torch.equal(seen[0], clips().flatten(0, 1))


def test_later_clips_are_judged_at_their_join():
    before = -torch.ones(2, 3, 1, 2, 2) - torch.arange(2.0).view(2, 1, 1, 1, 1)
    seen = []

    def score(batch):
        seen.append(batch)
        return batch[:, 0, 1, 0, 0]

    chosen, which = best_clips(clips(), score, before)
    assert which.tolist() == [2, 2]
    assert chosen.shape == (2, 3, 4, 2, 2)
    (joined,) = seen
    assert joined.shape == (6, 3, 4, 2, 2)
    assert joined[:, 0, 0, 0, 0].tolist() == [-1.0] * 3 + [-2.0] * 3
    assert torch.equal(joined[:, :, 1:], clips().flatten(0, 1)[:, :, :3])


def test_patches_are_averaged():
    patches = torch.tensor([[[5.0, 0.0]], [[2.0, 2.0]], [[3.0, 3.0]]])
    _, which = best_clips(clips()[:1], lambda batch: patches)
    assert which.tolist() == [2]


def test_a_single_candidate_asks_no_one():
    def score(batch):
        raise AssertionError

    chosen, which = best_clips(clips()[:, :1], score)
    assert torch.equal(chosen, clips()[:, 0])
    assert which.tolist() == [0, 0]
