"""The metric files: values written from the definitions, in float64."""

from __future__ import annotations

import numpy as np
import pytest
from goldens import Golden

from longtake.metrics.frechet import frechet_distance
from longtake.metrics.images import histogram_correlation, psnr, ssim
from longtake.metrics.mmd import mmd_of_subsets, polynomial_mmd
from longtake.metrics.scores import coherence, inception_score


class Case:
    def __init__(self, name: str):
        self.golden = Golden(f"metrics_{name}")
        self.inputs = {k: v.numpy() for k, v in self.golden.inputs.items()}

    def check(self, name: str, ours) -> None:
        theirs = {**self.golden.out, **self.golden.out64}[name].numpy()
        atol = float(self.golden.outputs[name]["atol"])
        np.testing.assert_allclose(np.squeeze(ours), np.squeeze(theirs), rtol=0, atol=atol, err_msg=name)


def test_frechet():
    case = Case("frechet")
    a, b = case.inputs["features_a"], case.inputs["features_b"]
    case.check("frechet_unbiased_cov", frechet_distance(a, b))
    case.check("frechet_biased_cov", frechet_distance(a, b, ddof=0))
    case.check("frechet_self", frechet_distance(a, a))
    case.check("frechet_rank_deficient", frechet_distance(a[:12], b))


def test_polynomial_mmd():
    case = Case("polynomial_mmd")
    a, b = case.inputs["features_a"], case.inputs["features_b"]
    case.check("mmd_unbiased", polynomial_mmd(a, b))
    case.check("mmd_biased", polynomial_mmd(a, b, unbiased=False))
    half = len(a) // 2
    case.check("mmd_unbiased_same", polynomial_mmd(a[:half], a[half:]))
    rows = list(zip(case.inputs["subset_rows_a"], case.inputs["subset_rows_b"], strict=True))
    found = mmd_of_subsets(a, b, rows)
    case.check("subset_mmd", found.values)
    case.check("kid_mean", found.mean)
    case.check("kid_std", found.std)


def test_inception_score():
    case = Case("inception_score")
    score = inception_score(case.inputs["probs"], 10)
    case.check("is_splits", score.splits)
    case.check("is_mean", score.mean)
    case.check("is_std", score.std)
    case.check("is_all", score.whole)
    case.check("H_y", score.inter_entropy)
    case.check("H_y_given_x", score.intra_entropy)


def test_coherence():
    case = Case("class_coherence")
    found = coherence(case.inputs["probs"])
    case.check("ccs", found.ccs)
    case.check("ics_mean", found.ics)
    case.check("ics_sum", found.ics_sum)
    case.check("ccs_auc", found.ccs_area)


@pytest.mark.parametrize("bytes_", [True, False])
def test_psnr_and_ssim(bytes_):
    case = Case("ssim_psnr")
    a, b = case.inputs["frames_a"], case.inputs["frames_b"]
    if not bytes_:
        a, b = a / 255, b / 255
    case.check("psnr", psnr(a, b))
    case.check("ssim_uniform7", ssim(a, b))
    case.check("ssim_uint8", ssim(a, b))
    case.check("ssim_gauss11", ssim(a, b, "gauss11"))
    case.check("quirk_ssim_range2", ssim(a, b, data_range=2))
    case.check("psnr_of_mean_mse", -10 * np.log10(np.mean(10 ** (-psnr(a, b) / 10))))


@pytest.mark.parametrize(
    ("name", "bins", "joint"),
    [
        ("per_channel_16", 16, False),
        ("per_channel_64", 64, False),
        ("per_channel_256", 256, False),
        ("joint_8", 8, True),
    ],
)
def test_colour_histograms(name, bins, joint):
    case = Case("colour_histogram")
    frames, brighter = case.inputs["frames"], case.inputs["brighter"]
    first = np.repeat(frames[:1], len(frames), 0)
    ours = np.stack(
        [histogram_correlation(first, frames, bins, joint), histogram_correlation(frames, brighter, bins, joint)], 1
    )
    case.check(f"corr_{name}", ours)
