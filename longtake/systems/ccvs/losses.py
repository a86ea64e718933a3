"""What the networks of CCVS minimise: each function names its equation."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longtake.systems.ccvs.autoencoder import Decoded

VGG19_PLAN = ((64, 2), (128, 2), (256, 4), (512, 4), (512, 1))
"""Channels and convolutions of each block, as far as the first of the last block."""
VGG19_WEIGHTS = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1.0)


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Equation 5, with the usual sign: E softplus(-real) + E softplus(fake). Scores (B, 1)."""
    return F.softplus(-real.float()).mean() + F.softplus(fake.float()).mean()


def generator_loss(fake: Tensor) -> Tensor:
    """Equation 6, with the usual sign: E softplus(-fake). (The paper writes both for a critic of fakes.)"""
    return F.softplus(-fake.float()).mean()


def slope_penalty(critic: nn.Module, real: Tensor) -> Tensor:
    """R1: the mean squared norm of the critic's gradient at real examples (B, ...), without weights."""
    real = real.detach().requires_grad_(True)
    scores = critic(real.view_as(real))  # a view: counting operations hooks what a module is given, no leaves
    (slope,) = torch.autograd.grad(scores.sum(), real, create_graph=True)
    return slope.float().square().flatten(1).sum(1).mean()


def flow_loss(decoded: Decoded, flow: Tensor, occluded: Tensor) -> Tensor:
    """First term of equation 7, summed over the levels: squared error where the context is to be seen.

    Args:
        decoded: flows of B frames with one context each, in pixels of the coarsest level.
        flow: (B, 2, H, W) true flow in pixels.
        occluded: (B, 1, H, W) bool.
    """
    finest = 2 ** (len(decoded.flows) - 1)
    total = flow.new_zeros(())
    for found in decoded.flows:
        size = found.shape[-2:]
        wanted = F.interpolate(flow / finest, size=size, mode="bilinear")
        seen = F.interpolate(occluded.to(flow), size=size, mode="bilinear") < 0.5
        error = (found.float() - wanted).square() * seen
        total = total + error.sum() / (2 * seen.sum()).clamp_min(1)
    return total


def mask_loss(decoded: Decoded, occluded: Tensor, official: bool = False) -> Tensor:
    """Second term of equation 7, at the finest level: a frame's own features where the context is occluded, the
    context's elsewhere. (As printed the equation has the mask the other way round than equation 1.)

    With `official` only the first half is asked for, as in the released code: the mask is pushed to 1 where the
    context is occluded, and nowhere to 0. A young model then stops looking at its context altogether.
    """
    share, hidden = decoded.masks[-1].float().sigmoid(), occluded.float()
    error = (share - hidden).square()
    return (error * hidden).sum() / hidden.sum().clamp_min(1) if official else error.mean()


def token_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Equation 8: mean cross-entropy. logits (B, m, V), targets (B, m)."""
    return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())


class VGG19Distance(nn.Module):
    """Equation 4's second term: absolute differences of VGG-19 features after relu1_1, 2_1, 3_1, 4_1 and 5_1,
    averaged a layer and weighted by 1/32, 1/16, 1/8, 1/4 and 1. Images go in as they are, as in the released code.

    No weights come with the package; `state` holds torchvision's (`features.N.*`).
    """

    def __init__(self, state: dict[str, Tensor]):
        super().__init__()
        layers: list[nn.Module] = []
        self.ends: list[int] = []
        channels = 3
        for width, count in VGG19_PLAN:
            if layers:
                layers.append(nn.MaxPool2d(2))
            for i in range(count):
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
                channels = width
                if i == 0:
                    self.ends.append(len(layers) - 1)
        self.features = nn.Sequential(*layers)
        own = self.features.state_dict()
        self.features.load_state_dict({k: state[f"features.{k}"] for k in own})
        self.requires_grad_(False)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Images (B, 3, H, W) each -> scalar."""
        total, weights = a.new_zeros(()), iter(VGG19_WEIGHTS)
        for i, layer in enumerate(self.features):
            a, b = layer(a), layer(b)
            if i in self.ends:
                total = total + next(weights) * F.l1_loss(a, b)
        return total


def is_vgg19(state: dict) -> bool:
    """Whether a state dict is torchvision's VGG-19, whose third block has a fourth convolution."""
    return "features.16.weight" in state and "features.34.weight" in state
