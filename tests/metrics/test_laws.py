"""What each metric must obey, whatever the features."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longtake.metrics.diversity import change_as_flow, diversity, moving_parts, nearest_distances
from longtake.metrics.estimate import (
    extrapolate,
    frechet_interval,
    inception_interval,
    mean_interval,
    median_ratio_interval,
    percentiles,
)
from longtake.metrics.frechet import Moments, frechet_distance
from longtake.metrics.images import histogram_correlation, psnr, ssim
from longtake.metrics.mmd import polynomial_mmd, subset_mmd, video_mmd
from longtake.metrics.scores import coherence, inception_score
from longtake.metrics.seam import first_join, joins, seam_ratio, strongest_period


def features(n: int, dim: int = 6, seed: int = 0, shift: float = 0.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, dim)) @ (np.eye(dim) + np.tri(dim) / dim) + shift


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=8), st.integers(0, 5))
def test_moments_do_not_care_how_features_arrive(sizes, seed):
    x = features(sum(sizes) + 2, seed=seed)
    whole, parts, at = Moments.of(x), Moments(x.shape[1]), 0
    for size in [*sizes, 2]:
        parts.add(x[at : at + size])
        at += size
    np.testing.assert_allclose(parts.mean, x.mean(0), atol=1e-12)
    np.testing.assert_allclose(parts.covariance(), np.cov(x.T), atol=1e-12)
    np.testing.assert_allclose(parts.covariance(0), whole.covariance(0), atol=1e-12)


def test_moments_far_from_zero_keep_their_covariance():
    x = features(500)
    np.testing.assert_allclose(Moments.of(x + 1e7).covariance(), Moments.of(x).covariance(), rtol=1e-5)


@settings(max_examples=15, deadline=None)
@given(st.integers(2, 40), st.integers(2, 40), st.integers(0, 9))
def test_frechet_is_symmetric_and_zero_on_itself(m, n, seed):
    a, b = features(m, seed=seed), features(n, seed=seed + 1, shift=0.3)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-5, abs=1e-6)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)


def test_frechet_of_a_shift_is_its_square():
    a = features(400)
    assert frechet_distance(a, a + 0.5) == pytest.approx(6 * 0.25, rel=1e-6)


def test_distances_grow_with_noise():
    a, b, rng = features(600), features(600, seed=1), np.random.default_rng(2)
    noise = rng.normal(size=b.shape)
    for measure in (frechet_distance, polynomial_mmd):
        values = [measure(a, b + s * noise) for s in (0, 0.5, 1, 2)]
        assert values == sorted(values)


def test_kernel_distance_is_unbiased():
    rng = np.random.default_rng(0)
    values = [polynomial_mmd(rng.normal(size=(20, 4)), rng.normal(size=(25, 4))) for _ in range(300)]
    assert abs(np.mean(values)) < 3 * np.std(values) / 300**0.5
    biased = [polynomial_mmd(rng.normal(size=(20, 4)), rng.normal(size=(25, 4)), False) for _ in range(20)]
    assert np.mean(biased) > 0.1


def test_kernel_sums_in_blocks_equal_one_block(monkeypatch):
    a, b = features(23), features(31, seed=1)
    whole = polynomial_mmd(a, b)
    monkeypatch.setattr("longtake.metrics.mmd.CHUNK", 7)
    assert polynomial_mmd(a, b) == pytest.approx(whole, rel=1e-10)
    same = subset_mmd(a, b, 5, 10, seed=1)
    assert np.array_equal(same.values, subset_mmd(a, b, 5, 10, seed=1).values)


def clips_of_videos(videos: int, clips: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Clips that are like the others of their video, (videos * clips, 4), and the video of each."""
    rng = np.random.default_rng(seed)
    of = np.repeat(rng.permutation(videos), clips)
    return rng.normal(size=(videos, 4))[of] + 0.1 * rng.normal(size=(len(of), 4)), of


def test_kernel_distance_of_videos_with_several_clips_is_unbiased():
    found, naive = [], []
    for seed in range(300):
        (a, of_a), (b, of_b) = clips_of_videos(12, 1, seed), clips_of_videos(6, 8, 1000 + seed)
        found.append(video_mmd(a, b, of_a, of_b).value)
        naive.append(polynomial_mmd(a, b))
    error = np.std(found) / len(found) ** 0.5
    assert abs(np.mean(found)) < 3 * error
    assert np.mean(naive) > 3 * np.std(naive) / len(naive) ** 0.5


def test_kernel_distance_leaves_out_the_pairs_within_a_video(monkeypatch):
    (a, of_a), (b, of_b) = clips_of_videos(5, 3, 0), clips_of_videos(4, 2, 1)
    of_a, a = of_a[1:], a[1:]  # not all of the same number of clips

    def mean(x, y, pairs):
        return ((x @ y.T / 4 + 1) ** 3)[pairs].mean()

    everywhere = np.ones((len(a), len(b)), bool)
    expected = mean(a, a, of_a[:, None] != of_a) + mean(b, b, of_b[:, None] != of_b) - 2 * mean(a, b, everywhere)
    assert video_mmd(a, b, of_a, of_b).value == pytest.approx(expected, rel=1e-10)
    monkeypatch.setattr("longtake.metrics.mmd.CHUNK", 4)
    assert video_mmd(a, b, of_a, of_b).value == pytest.approx(expected, rel=1e-10)


def test_kernel_distance_of_one_clip_a_video_is_the_plain_one():
    a, b = features(23), features(31, seed=1, shift=0.1)
    alone = np.random.default_rng(0).permutation(31)
    assert video_mmd(a, b, np.arange(23), alone).value == pytest.approx(polynomial_mmd(a, b), rel=1e-10)


def test_resampled_kernel_distances_lie_around_the_value():
    (a, of_a), (b, of_b) = clips_of_videos(40, 2, 0), clips_of_videos(30, 2, 1)
    found = video_mmd(a, b + 0.5, of_a, of_b, 400)
    low, high = percentiles(found.resampled)
    assert low < found.value < high
    assert abs(found.resampled.mean() - found.value) < 0.3 * found.resampled.std()
    two = video_mmd(a[:4], b, of_a[:4], of_b, 200)  # of two videos, half of the resamples have no pair
    assert 50 < len(two.resampled) < 150


def test_the_extrapolated_distance_is_nearer_the_truth():
    real, truth = features(6000, 20), 20 * 0.04
    found = [extrapolate(features(200, 20, s, shift=0.2), real, np.arange(200), 1) for s in range(1, 6)]
    assert found[0].sizes[-1] == 200
    assert found[0].distances[0] > found[0].distances[-1]
    assert (
        abs(np.mean([f.value for f in found]) - truth) < abs(np.mean([f.distances[-1] for f in found]) - truth) / 2
    )


def test_nothing_is_extrapolated_from_few_videos():
    real, fake = features(500, 10), features(80, 10, 1)
    assert min(extrapolate(fake, real, np.arange(80), 1).sizes) == 20
    assert extrapolate(fake[:76], real, np.arange(76), 1) is None  # a quarter of them is 19, less than twice 10
    frames = np.repeat(fake[:20], 16, 0)
    assert extrapolate(frames, real, np.arange(320) // 16, 1) is None  # of 20 videos, however many frames


def test_frames_of_a_video_are_extrapolated_together():
    real, fake = features(500, 4), features(64, 4, 1)
    alone = extrapolate(fake, real, np.arange(64), 0)
    frames = extrapolate(np.repeat(fake, 16, 0), real, np.arange(1024) // 16, 0)
    assert frames.sizes == alone.sizes
    assert frames.value == pytest.approx(alone.value, rel=1e-6)  # copies add nothing to a biased covariance


def test_the_interval_covers_the_value_and_shrinks():
    few, many = features(40, shift=0.2), features(1000, shift=0.2)
    real = features(1000, seed=5)
    widths = []
    for fake in (few, many):
        low, high = frechet_interval(fake, real, np.arange(len(fake)), np.arange(len(real)), 1, 30)
        assert low < frechet_distance(fake, real) < high
        widths.append(high - low)
    assert widths[1] < widths[0]
    videos = np.arange(1000) // 100
    many = many + features(10, seed=7)[videos]
    low, high = frechet_interval(many, real, np.arange(1000), np.arange(1000), 1, 30)
    wide = frechet_interval(many, real, videos, np.arange(1000), 1, 30)
    assert wide[1] - wide[0] > 2 * (high - low)  # ten videos of a hundred clips are not a thousand videos
    assert frechet_interval(few, real, np.arange(40), np.arange(1000), 1, 0) is None


def test_mean_interval():
    values = np.random.default_rng(0).normal(size=400)
    low, high = mean_interval(values)
    assert low < values.mean() < high
    assert mean_interval(values[:1]) is None


def test_the_interval_of_an_inception_score_covers_as_often_as_it_says():
    rng, truth, hits, widths = np.random.default_rng(0), np.exp(np.log(4) - 0.5 * np.log(2)), 0, []
    for _ in range(60):  # four classes; half of the clips are certain, the other half hold two for possible
        p = np.eye(4)[rng.integers(0, 4, 200)]
        p[::2] = 0.5 * p[::2] + 0.5 * np.roll(p[::2], 1, axis=1)
        low, high = inception_interval(p, 2, 50)
        hits += low < truth < high
        widths.append(high - low)
    assert hits >= 52
    assert max(widths) < 0.5
    assert inception_interval(p, 1, 0) is None
    assert inception_interval(p[:1], 1, 50) is None


def test_the_interval_of_a_ratio_of_medians_knows_both_sides():
    rng = np.random.default_rng(0)
    a, b, of_b = rng.lognormal(0, 2, 300), rng.lognormal(0, 0.1, 300), np.arange(300) // 50
    low, high = median_ratio_interval(a, b, of_b)
    assert low < np.median(a) / np.median(b) < high < a.mean()
    together = b + rng.normal(size=6)[of_b] * 0.4 + 2  # six videos, not three hundred clips
    wide, narrow = (np.subtract(*median_ratio_interval(a * 0 + 1, together, of)) for of in (of_b, np.arange(300)))
    assert abs(wide) > 2 * abs(narrow)
    assert median_ratio_interval(a[:1], b, of_b) is None


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 12), st.integers(10, 60), st.integers(0, 9))
def test_inception_score_lies_between_one_and_the_number_of_classes(classes, n, seed):
    p = np.random.default_rng(seed).dirichlet(np.full(classes, 0.3), n)
    score = inception_score(p, 5)
    assert 1 - 1e-9 <= score.whole <= classes + 1e-9
    assert score.inter_entropy <= np.log(classes) + 1e-9
    certain = np.eye(classes)[np.arange(classes * 3) % classes]
    assert inception_score(certain, 1).whole == pytest.approx(classes)
    assert inception_score(np.full((n, classes), 1 / classes), 2).whole == pytest.approx(1)


def test_coherence_of_videos_that_stay_and_videos_that_leave():
    stay = np.tile(np.eye(3)[[0, 1, 2]] * 0.94 + 0.02, (5, 1, 1))
    assert coherence(stay).ccs.tolist() == [1] * 5
    np.testing.assert_allclose(coherence(stay).ics, 0, atol=1e-12)
    leave = stay.copy()
    leave[3:] = leave[3:, [1, 2, 0]]
    found = coherence(leave)
    assert found.ccs.tolist() == [1, 1, 1, 0, 0]
    assert found.ccs_area == pytest.approx(0.625)
    assert found.ics[4] > 1
    np.testing.assert_allclose(found.ics_sum, 3 * found.ics)


def frames(t: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (t, 24, 20, 3), dtype=np.uint8)


def test_frame_metrics_fall_with_noise():
    a, rng = frames(), np.random.default_rng(1)
    values = []
    for level in (0.02, 0.1, 0.3):
        b = np.clip(a / 255 + rng.normal(size=a.shape) * level, 0, 1)
        values.append((psnr(a, b).mean(), ssim(a, b).mean(), ssim(a, b, "gauss11").mean()))
    assert values == sorted(values, reverse=True)
    assert np.isinf(psnr(a, a)).all()
    np.testing.assert_allclose(ssim(a, a), 1)
    np.testing.assert_allclose(histogram_correlation(a, a), 1)
    with pytest.raises(ValueError, match="uniform7 or gauss11"):
        ssim(a, a, "square")


@settings(max_examples=20, deadline=None)
@given(st.integers(4, 20), st.floats(1.5, 6), st.integers(0, 9))
def test_a_seam_is_found_and_its_absence_too(period, jump, seed):
    rng = np.random.default_rng(seed)
    smooth = 0.1 + 0.01 * rng.random(239)
    assert seam_ratio(smooth, period) == pytest.approx(1, abs=0.05)
    seamed = smooth.copy()
    seamed[period - 1 :: period] *= jump
    assert seam_ratio(seamed, period) == pytest.approx(jump, rel=0.1)
    found, ratio = strongest_period(seamed)
    assert found % period == 0
    assert ratio > 1 + (jump - 1) * 0.8


def test_joins_may_begin_later_than_their_period_says():
    flat = np.ones(300)
    flat[[64, 124, 184, 244]] = 3.0  # Loong: a second piece begins at frame 65, then one every 60 frames
    assert seam_ratio(flat, 60, 65) == pytest.approx(3)
    assert seam_ratio(flat, 60) == pytest.approx(1, abs=0.2)
    assert seam_ratio(flat[:64], 60, 65) == 1


@pytest.mark.parametrize(
    ("period", "first", "given", "expected"),
    [
        (8, None, 0, 8),
        (8, None, 1, 7),
        (8, None, 8, 8),
        (8, None, 16, 8),
        (8, None, 17, 7),
        (60, 65, 1, 64),
        (60, 65, 65, 60),
        (60, 65, 69, 56),
        (15, 16, 16, 15),
    ],
)
def test_joins_are_counted_from_the_first_frame_that_was_not_given(period, first, given, expected):
    assert first_join(period, first, given) == expected
    kept = joins(period, first, 400) - given  # numbers of differences among the frames that are kept
    assert joins(period, expected, 400 - given).tolist() == kept[kept >= 0].tolist()


def test_without_joins_or_motion_there_is_no_seam():
    assert seam_ratio(np.ones(5), 10) == 1
    assert seam_ratio(np.zeros(50), 10) == 1
    assert strongest_period(np.ones(4)) == (0, 1.0)


def test_diversity():
    one = frames(4) / 255
    assert diversity(np.stack([one, one])) == 0
    other = 1 - one
    assert diversity(np.stack([one, other])) == pytest.approx(((one - other) ** 2).mean())
    still = np.zeros((6, 16, 16, 3))
    moving = still.copy()
    for t in range(6):
        moving[t, 4:6, t : t + 2] = 1
    masks = np.stack([moving_parts(change_as_flow(x)) for x in (still, moving)])
    assert not masks[0].all()
    assert diversity(np.stack([still, moving]), masks[[1, 1]]) > diversity(np.stack([still, moving]))


def test_copies_of_training_clips_have_a_nearest_distance_of_zero():
    train = features(50)
    found = nearest_distances(np.concatenate([train[:3], train[:3] + 1]), train, chunk=2)
    np.testing.assert_allclose(found[:3], 0, atol=1e-6)
    expected = np.linalg.norm((train[:3] + 1)[:, None] - train[None], axis=2).min(1)
    np.testing.assert_allclose(found[3:], expected)
