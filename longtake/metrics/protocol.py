"""Protocols: everything a number depends on, written out under a name.

Numbers of different protocols are never comparable; `longtake compare` keeps them in different columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from longtake.errors import UserError


@dataclass(frozen=True)
class ClipKind:
    """A clip that a Frechet or kernel distance is measured on."""

    name: str
    """In FVD16[...]."""
    frames: int
    stride: int = 1

    @property
    def span(self) -> int:
        """Frames of video it covers, from the first to the last."""
        return (self.frames - 1) * self.stride + 1


FIRST_16, FIRST_128 = ClipKind("16", 16), ClipKind("128", 128)
SUBSAMPLED_128 = ClipKind("128-subsample8", 16, 8)


@dataclass(frozen=True)
class Protocol:
    """How real and generated videos are drawn and compared.

    Generated videos are measured as the bytes that would be written, before any video codec; real ones as decoded
    from the library, resized with an antialiasing filter to the model's size where theirs is larger. Generated
    clips start at the first frame that was not given.
    """

    name: str
    source: str
    """Where it comes from, and what is ours in it."""
    clips: tuple[ClipKind, ...]
    """Clips of the distances."""
    frames: int
    """Frames of a generated video, unless the user says otherwise."""
    fake_videos: int
    """Generated videos, unless the user says otherwise."""
    real_videos: int
    """At most so many real videos of those that are as long as the clip."""
    real_split: Literal["train", "test", "all"]
    """Where the real videos of the distances come from. Conditions always come from the test split."""
    real_choice: Literal["spread", "first"] = "spread"
    """Which, where there are more: evenly spread over the library's order, which is that of names and so often of
    classes, or the first ones."""
    real_start: Literal["first", "random", "spread"] = "random"
    """Where a real clip starts: at the first frame, at a random one (seeded), or `clips_a_video` evenly spread."""
    clips_a_video: int = 1
    """Real clips a video."""
    covariance: Literal["unbiased", "biased"] = "unbiased"
    """Divided by N - 1 or by N."""
    to_bytes: Literal["round", "truncate"] = "round"
    """How a generated frame becomes bytes."""
    window: int = 16
    """Frames of the windows of all curves over time."""
    splits: int = 10
    """Of the inception score."""
    bootstrap: int = 100
    """Resamples of the videos behind the interval of a Frechet distance or an inception score; kernel distances,
    means and medians cost less and take 1,000. 0: no intervals of distances and of inception scores."""
    least_videos: int = 16
    """Fewer videos than this, real or generated, are refused."""
    trusted_videos: int = 2048
    """Fewer than this, and Frechet distances are marked as biased."""


PROTOCOLS = {
    p.name: p
    for p in (
        Protocol(
            name="longtake-1",
            source=(
                "ours: test split only, evenly spread real clips, unbiased covariance, intervals by bootstrap, "
                "and, where generated videos are many, an estimate of the bias by extrapolating over their "
                "number, as FID-infinity does"
            ),
            clips=(FIRST_16, FIRST_128, SUBSAMPLED_128),
            frames=1024,
            fake_videos=256,
            real_videos=2048,
            real_split="test",
            real_start="spread",
            clips_a_video=16,
        ),
        Protocol(
            name="stylegan-v",
            source=(
                "StyleGAN-V (Skorokhodov et al., CVPR 2022): fvd2048_16f, fvd2048_128f, fvd2048_128f_subsample8f; "
                "training videos, one random clip each, biased covariance, frames cut to bytes. Its code takes the "
                "first videos by name that are long enough, so do we; its random starts have no fixed seed, ours "
                "have"
            ),
            clips=(FIRST_16, FIRST_128, SUBSAMPLED_128),
            frames=128,
            fake_videos=2048,
            real_videos=2048,
            real_split="train",
            real_choice="first",
            covariance="biased",
            to_bytes="truncate",
        ),
        Protocol(
            name="tats",
            source=(
                "TATS (Ge et al., ECCV 2022): 2,048 clips of 16 frames against as many random training clips, "
                "unbiased covariance; curves over 1,024 frames in windows of 16. Its I3D has eps 1e-5 (i3d-eps5)"
            ),
            clips=(FIRST_16,),
            frames=1024,
            fake_videos=2048,
            real_videos=2048,
            real_split="train",
        ),
        Protocol(
            name="recall-thesis",
            source=(
                "the thesis on VAE-GAN recall (section 5.3.5): 64 generated videos, first 16 and first 128 frames, "
                "against all training videos that are long enough. 64 is far too few for 400 features: every "
                "distance is marked as biased"
            ),
            clips=(FIRST_16, FIRST_128),
            frames=1024,
            fake_videos=64,
            real_videos=1_000_000,
            real_split="train",
            real_start="first",
        ),
        Protocol(
            name="loong-long",
            source=(
                "Loong (Wang et al., 2024), section 4.2: long videos (27 s) with captions of held-out ones. The "
                "paper takes the longest, ours are evenly spread over the test split; it does not say how clips "
                "are drawn: ours are the first 16 and 128 frames"
            ),
            clips=(FIRST_16, FIRST_128),
            frames=173,
            fake_videos=1000,
            real_videos=1000,
            real_split="test",
            real_start="first",
        ),
    )
}


def find_protocol(name: str) -> Protocol:
    """The protocol of that name.

    Raises:
        UserError: there is none.
    """
    if name not in PROTOCOLS:
        raise UserError(f"there is no protocol {name!r}; choose one of {', '.join(PROTOCOLS)}", code=2)
    return PROTOCOLS[name]
