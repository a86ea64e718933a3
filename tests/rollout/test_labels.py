"""Classes that a story does not tell."""

import torch

from longtake.rollout.labels import draw_labels
from longtake.rollout.rng import Rng


def test_classes_follow_their_frequencies_and_all_are_likely_where_none_was_seen():
    rng = Rng(range(2000))
    seen = draw_labels(rng, (3, 0, 1), 3).bincount(minlength=3) / 2000
    assert seen[1] == 0
    assert abs(float(seen[0]) - 0.75) < 0.04
    unseen = draw_labels(rng, (0, 0), 2).bincount(minlength=2) / 2000
    assert (unseen - torch.tensor([0.5, 0.5])).abs().max() < 0.05
