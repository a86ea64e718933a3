"""Which times clips are seen at."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from goldens import Golden

from longtake.config import from_dict
from longtake.data.clips import Noise
from longtake.errors import UserError
from longtake.rollout.rng import Rng
from longtake.systems.stylegan_v.config import SIZES, StyleGANVConfig
from longtake.systems.stylegan_v.stages import draw_times

CASES = [
    {"frames": 3, "sampling": "octaves", "distance": 32, "length": 300},
    {"frames": 3, "sampling": "octaves", "distance": 16, "length": 20},  # no longer distance fits the video
    {"frames": 3, "sampling": "uniform", "distance": 31, "length": 100},  # the official range ends before 32
    {"frames": 2, "sampling": "octaves", "distance": 32, "length": 64},
]


def histograms(times: np.ndarray, length: int) -> list[np.ndarray]:
    span, offset = np.rint(times[:, -1] - times[:, 0]).astype(int), times[:, 0]
    second = np.rint(times[:, 1] - offset)
    return [
        np.bincount(span, minlength=34),
        np.bincount(np.minimum(offset * 16 / (length - span), 15).astype(int), minlength=16),
        np.bincount(np.minimum(second * 16 / span, 15).astype(int), minlength=16),
    ]


def alike(ours: np.ndarray, theirs: np.ndarray) -> bool:
    """Two-sample chi-square, within six deviations of its mean."""
    seen = (ours + theirs) > 0
    a, b = ours[seen].astype(float), theirs[seen].astype(float)
    ratio = np.sqrt(b.sum() / a.sum())
    statistic = ((a * ratio - b / ratio) ** 2 / (a + b)).sum()
    freedom = max(1, seen.sum() - 1)
    return statistic < freedom + 6 * np.sqrt(2 * freedom)


def config(case: dict) -> StyleGANVConfig:
    wanted = {k: case[k] for k in ("frames", "sampling", "distance")}
    return replace(SIZES["tiny"], horizon=case["length"], **wanted)


def drawn(made: StyleGANVConfig, count: int) -> torch.Tensor:
    """Times of clips beside real ones of long videos, of which all distances are equally likely."""
    return draw_times(made, torch.tensor(made.distances)[torch.randint(len(made.distances), (count,))])


@pytest.mark.parametrize("number", range(4))
def test_times_of_made_clips_are_distributed_as_the_official_ones(number):
    golden, case = Golden("sgv_frame_sampling"), CASES[number]
    torch.manual_seed(0)
    times = drawn(config(case), 20_000).numpy()
    whole = np.rint(np.diff(times))
    assert (whole >= 1).all()
    np.testing.assert_allclose(np.diff(times), whole, atol=1e-9)
    assert times.min() >= 0
    assert times.max() <= case["length"] - 1
    fractional = golden.config["cases"][number]["use_fractional_t"]
    span, offset, second = histograms(times, case["length"])
    assert alike(span, golden.out[f"span_hist_case{number}"].numpy())
    if fractional:  # and then the official gaps are not quite whole, so that some fall into the bin below
        assert alike(offset, golden.out[f"offset_hist_case{number}"].numpy())
    else:
        assert alike(second, golden.out[f"second_hist_case{number}"].numpy())


@pytest.mark.parametrize("number", range(4))
def test_times_of_real_clips_are_distributed_as_the_official_ones(number):
    """All of them where the official ones fall on frames, else how far they reach."""
    golden, case = Golden("sgv_frame_sampling"), CASES[number]
    mode, rng = config(case).mode, Rng(["draw"])
    draws = [mode.indices(case["length"], case["frames"], 0, Noise(rng, i)) for i in range(3000)]
    ours = histograms(np.stack(draws), case["length"])
    known = ("span", "offset", "second")[: 1 if golden.config["cases"][number]["use_fractional_t"] else 3]
    for name, histogram in zip(known, ours, strict=False):
        assert alike(histogram, golden.out[f"{name}_hist_case{number}"].numpy()), name


def test_the_paper_draws_every_distance():
    assert SIZES["paper"].distances == list(range(2, 33))
    assert replace(SIZES["paper"], sampling="octaves").distances == [2, 4, 8, 16, 32]


def test_a_single_frame_and_consecutive_ones():
    single = replace(SIZES["tiny"], frames=1)
    assert drawn(single, 5).shape == (5, 1)
    row = replace(SIZES["tiny"], frames=4, sampling="consecutive", horizon=10)
    times = drawn(row, 100)
    assert torch.equal(times.diff(dim=1), torch.ones(100, 3, dtype=torch.float64))
    assert (times == times.round()).all()
    assert set(times[:, 0].tolist()) == set(map(float, range(7)))


def test_made_clips_span_what_real_ones_beside_them_do():
    """Or of short videos the gaps alone, which the discriminator is told, would give made clips away."""
    spans = torch.tensor([2, 5, 7, 8]).repeat(50)
    times = draw_times(SIZES["tiny"], spans)
    torch.testing.assert_close(times[:, -1] - times[:, 0], spans.double(), rtol=0, atol=1e-9)
    assert (times.diff(dim=1) > 0.5).all()


def test_consecutive_frames_begin_anywhere_alike():
    torch.manual_seed(0)
    row = replace(SIZES["tiny"], frames=4, sampling="consecutive", horizon=10)
    counts = np.bincount(drawn(row, 7000)[:, 0].long().numpy())
    assert len(counts) == 7
    assert np.abs(counts - 1000).max() < 6 * np.sqrt(1000)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"frames": 20, "distance": 8}, "do not fit a distance of 8"),
        ({"horizon": 8}, "horizon of 8 frames is too short for clips of 9"),
        ({"discriminator": {"kind": "image+video"}}, "16 or more consecutive frames"),
        ({"motion": {"spacing": 0}}, "spacing above 0"),
        ({"motion": {"spacing": float("nan")}}, "spacing is nan but must be 0 or more"),
        ({"stage": {"gamma_every": 0}}, "gamma_every is 0 but must be 1 or more"),
        ({"stage": {"gamma": -1.0}}, "gamma is -1.0 but must be 0 or more"),
        ({"stage": {"augment": {"most": 2.0}}}, "most is 2.0 but must be between 0 and 1"),
        ({"motion": {"shortest": 2000}}, "shortest <= longest"),
    ],
)
def test_settings_that_do_not_go_together(fields, message):
    with pytest.raises(UserError, match=message):
        from_dict(StyleGANVConfig, fields, "recipe", SIZES["tiny"])
