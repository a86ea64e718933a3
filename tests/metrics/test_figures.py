"""From records to figures: which clips are paired, what an interval is of, what a note says."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from longtake.metrics import summary
from longtake.metrics.mmd import polynomial_mmd
from longtake.metrics.protocol import FIRST_16, PROTOCOLS

PROTOCOL = replace(PROTOCOLS["longtake-1"], clips=(FIRST_16,), bootstrap=20)


class Named:
    name, most = "x", None


def sides(videos: int, real: int, clips: int = 1, dim: int = 4, seed: int = 0):
    """Records of generated videos, and a real side of several clips a video that are much alike."""
    rng = np.random.default_rng(seed)
    records = [{"x/clip/16": rng.normal(size=(1, dim))} for _ in range(videos)]
    of = np.repeat(np.arange(real), clips)
    near = rng.normal(size=(real, dim))[of] + 0.1 * rng.normal(size=(len(of), dim))
    return records, {"clip/16": near, "of/16": of}


def test_clips_of_one_video_are_not_paired():
    records, real = sides(64, 16, clips=4)
    found = summary.distances(PROTOCOL, Named(), records, real)["KVD16[x]"]
    fake = np.concatenate([r["x/clip/16"] for r in records])
    kernel = (real["clip/16"] @ real["clip/16"].T / 4 + 1) ** 3
    apart, other = real["of/16"][:, None] != real["of/16"], ~np.eye(64, dtype=bool)
    expected = polynomial_mmd(fake, real["clip/16"]) - kernel[other].mean() + kernel[apart].mean()
    assert found.value == pytest.approx(expected, rel=1e-9)
    alone = summary.distances(PROTOCOL, Named(), *sides(64, 64))["KVD16[x]"]
    records, real = sides(64, 64)
    fake = np.concatenate([r["x/clip/16"] for r in records])
    assert alone.value == pytest.approx(polynomial_mmd(fake, real["clip/16"]), rel=1e-9)


def test_a_kernel_distance_has_an_interval_over_videos_however_many_clips():
    widths = []
    for n in (64, 512):
        found = summary.distances(PROTOCOL, Named(), *sides(n, n))["KVD16[x]"]
        low, high = found.interval
        assert low < found.value < high
        widths.append(high - low)
    assert widths[1] < 0.6 * widths[0]
    quick = replace(PROTOCOL, bootstrap=0)
    assert summary.distances(quick, Named(), *sides(64, 64))["KVD16[x]"].interval is None


def test_of_one_real_video_there_is_no_kernel_distance():
    found = summary.distances(PROTOCOL, Named(), *sides(64, 1, clips=16))
    assert "FVD16[x]" in found
    assert "KVD16[x]" not in found


def test_few_real_videos_are_named_however_many_their_clips():
    few = summary.distances(PROTOCOL, Named(), *sides(64, 6, clips=16))
    assert "real clips of only 6 videos" in few["FVD16[x]"].note
    assert "real clips of only 6 videos" in few["KVD16[x]"].note
    many = summary.distances(PROTOCOL, Named(), *sides(64, 16, clips=2))
    assert not any("real clips" in figure.note for figure in many.values())


def test_a_distance_is_extrapolated_only_from_many_more_videos_than_features():
    assert "FVD16[x]-infinity" in summary.distances(PROTOCOL, Named(), *sides(64, 40, dim=8))
    found = summary.distances(PROTOCOL, Named(), *sides(64, 40, dim=9))
    assert "FVD16[x]-infinity" not in found
    assert "bias at" not in found["FVD16[x]"].note


def test_frames_of_one_video_are_not_extrapolated_as_if_they_were_videos():
    rng = np.random.default_rng(0)
    records = [{"x/frames": rng.normal(size=(16, 4))} for _ in range(20)]
    real = {"frames": rng.normal(size=(320, 4)), "of/frames": np.repeat(np.arange(20), 16)}
    found = summary.frame_distances(PROTOCOL, Named(), records, real)
    assert set(found) == {"FID[x]", "KID[x]"}
    more = [{"x/frames": rng.normal(size=(16, 4))} for _ in range(80)]
    note = summary.frame_distances(PROTOCOL, Named(), more, real)["FID[x]-infinity"].note
    assert note.startswith("bias at N=80: ")


def test_the_interval_of_the_area_is_of_the_area():
    sure = np.eye(2)
    stays, leaves = sure[[0, 0, 0]], sure[[0, 0, 1]]
    figures, _ = summary.classes(PROTOCOL, Named(), [{"x/classes": leaves}] * 5)
    assert figures["CCS-area[x]"].value == 0.75
    assert figures["CCS-area[x]"].interval == (0.75, 0.75)  # all videos are alike
    mixed = [{"x/classes": stays if i % 2 else leaves} for i in range(40)]
    found = summary.classes(PROTOCOL, Named(), mixed)[0]["CCS-area[x]"]
    assert found.value == pytest.approx(0.875)
    assert 0.83 < found.interval[0] < 0.875 < found.interval[1] < 0.92


def test_the_interval_of_an_inception_score_is_of_its_mean_and_not_of_a_split():
    rng = np.random.default_rng(0)
    many = [{"x/classes": rng.dirichlet(np.full(5, 0.2), 1)} for _ in range(500)]
    for records in (many, many[:60]):  # ten splits, and one
        found = summary.classes(PROTOCOL, Named(), records)[0]["IS[x]"]
        low, high = found.interval
        assert found.value == pytest.approx((low + high) / 2)
        assert low < found.value < high
    p = np.concatenate([r["x/classes"] for r in many])[np.random.default_rng(42).permutation(500)]
    spread = np.std([np.exp(np.sum(q * np.log(q / q.mean(0)), 1).mean()) for q in np.split(p, 10)])
    whole = summary.classes(PROTOCOL, Named(), many)[0]["IS[x]"].interval
    assert whole[1] - whole[0] == pytest.approx(2 * 1.96 * spread / 10**0.5, rel=0.6)


def test_the_interval_of_the_nearest_distance_is_of_a_median():
    train = {"clip/16": np.zeros((1, 1))}
    test = {"clip/16": np.ones((12, 1)), "of/16": np.arange(12)}
    distances = np.concatenate([np.linspace(0.9, 1.1, 60), np.full(20, 1000.0)])  # a mean would be far away
    records = [{"x/clip/16": np.array([[d]])} for d in distances]
    found = summary.memorisation(Named(), records, train, test)["nearest-train[x]"]
    low, high = found.interval
    assert 0.9 < low < found.value < high < 1.2


def test_frames_are_numbered_from_the_beginning_of_the_video():
    def record(length: int) -> dict:
        base = {"differences": np.ones(length - 1), "signature": np.zeros((length, 192))}
        frame = np.zeros((2, 2, 3), np.uint8)
        return {**base, "first": frame, "last": frame, "psnr": np.arange(length), "ssim": np.arange(length)}

    after = summary.over_time([record(20)] * 2, [], None, given=15)[0]
    assert (after["PSNR@16"].value, after["SSIM@30"].value) == (0, 14)
    assert after["PSNR@16"].note == "frame 16 of the video, 15 of them given"
    assert "PSNR@45" not in after
    whole = summary.over_time([record(45)] * 2, [], None)[0]
    assert [whole[f"PSNR@{n}"].value for n in (16, 30, 45)] == [15, 29, 44]
    assert not {"PSNR@16", "PSNR@45"} & set(summary.over_time([record(20)] * 2, [], None, given=16)[0])
