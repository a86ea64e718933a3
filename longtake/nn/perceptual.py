"""A distance between images in the feature space of a network, and VGG-16 as that network.

LPIPS (Zhang et al., 2018) is this distance on VGG-16 with learned channel weights ("heads"); the VQGAN of TATS
uses it as its perceptual loss (section 2.1). No weights come with the package and none are downloaded: bring your
own, or give any other network that returns feature maps.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longtake.nn.precision import wide

VGG_PLAN = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
VGG_CHANNELS = tuple(block[-1] for block in VGG_PLAN)
EPS = 1e-10


class VGG16Features(nn.Module):
    """The convolutions of VGG-16 (Simonyan and Zisserman, 2015), under the names of torchvision's state dict.

    Images (B, 3, H, W), nominally in [-1, 1], are brought to the mean and spread of ImageNet as LPIPS does; images
    of one channel are repeated. Returns the feature maps after relu1_2, 2_2, 3_3, 4_3 and 5_3. H, W of 16 or more.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self):
        super().__init__()
        layers: list[nn.Module] = []
        self.ends: list[int] = []
        channels = 3
        for block in VGG_PLAN:
            for width in block:
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
                channels = width
            self.ends.append(len(layers) - 1)
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers[:-1])
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188]).view(3, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450]).view(3, 1, 1), persistent=False)

    def forward(self, image: Tensor) -> list[Tensor]:
        x = (image - self.shift) / self.scale
        maps = []
        for i, layer in enumerate(self.features):
            x = layer(x)
            if i in self.ends:
                maps.append(x)
        return maps


class PerceptualDistance(nn.Module):
    """How far two images are apart for a feature network that is not trained with it.

    Feature vectors are scaled to unit length at every place; their squared difference is weighted by channel,
    averaged over places and summed over layers (LPIPS, equation 1). Without `heads` all channels of a layer weigh
    the same, 1 / channels.

    LPIPS means images in [-1, 1]; the released code of TATS gives it [-0.5, 0.5], which is a `scale` of 0.5.
    It also leaves dropout on in its heads while training, which is not done here.
    """

    def __init__(self, features: nn.Module, heads: Sequence[Tensor] | None = None, scale: float = 1.0):
        """`features` maps (B, 3, H, W) to a list of (B, C, h, w); `heads` holds a vector (C,) for each of them;
        `scale` multiplies the images first."""
        super().__init__()
        self.scale = scale
        self.features = features.requires_grad_(False)
        self.layers = None if heads is None else len(heads)
        for i, head in enumerate(heads or ()):
            self.register_buffer(f"head{i}", head.reshape(1, -1, 1, 1).clone())
        self.eval()

    def train(self, mode: bool = True) -> PerceptualDistance:
        """Stays as it is: the feature network always judges in eval mode."""
        return super().train(False)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Images (B, 3, H, W) each -> distances (B,), float32 also under autocast."""
        maps = list(zip(self.features(a * self.scale), self.features(b * self.scale), strict=True))
        if self.layers not in (None, len(maps)):
            raise ValueError(f"{self.layers} heads for {len(maps)} feature maps")
        total = torch.zeros((), device=a.device)
        with torch.autocast(a.device.type, enabled=False):
            for i, (x, y) in enumerate(maps):
                difference = (_unit(x) - _unit(y)).square()
                if self.layers is None:
                    total = total + difference.mean((1, 2, 3))
                else:
                    head = cast(Tensor, getattr(self, f"head{i}"))
                    total = total + (difference * head).sum(1).mean((1, 2))
        return total


def _unit(x: Tensor) -> Tensor:
    # Not x / (|x| + eps): the gradient of that norm is not a number where all features are 0.
    return F.normalize(wide(x), dim=1, eps=EPS)


def lpips(state: Mapping[str, Tensor], scale: float = 1.0) -> PerceptualDistance:
    """LPIPS on VGG-16 from weights in any of the layouts in circulation, alone or with other entries around them.

    Convolutions: torchvision's `features.N.*`, or `net.sliceK.N.*` as the LPIPS modules keep them (the released
    VQGANs of TATS hold one under `perceptual_model.`). Heads: `linK.model.1.weight`.

    Raises:
        ValueError: naming an entry that is missing or has another shape.
    """
    convolutions: dict[str, Tensor] = {}
    heads: dict[int, Tensor] = {}
    for key, value in state.items():
        if m := re.search(r"(?:^|\.)(?:features|slice\d)\.(\d+\.(?:weight|bias))$", key):
            convolutions[m[1]] = value
        elif m := re.search(r"(?:^|\.)lins?\.?(\d)\.model\.1\.weight$", key):
            heads[int(m[1])] = value
    network = VGG16Features()
    for name, own in network.features.state_dict().items():
        _check(f"features.{name}", convolutions.get(name), own.shape)
    for i, channels in enumerate(VGG_CHANNELS):
        _check(f"lin{i}.model.1.weight", heads.get(i), torch.Size((1, channels, 1, 1)))
    network.features.load_state_dict({name: convolutions[name] for name in network.features.state_dict()})
    return PerceptualDistance(network, [heads[i] for i in range(len(VGG_CHANNELS))], scale)


def _check(name: str, value: Tensor | None, shape: torch.Size) -> None:
    if value is None:
        raise ValueError(f"{name} is missing")
    if value.shape != shape:
        raise ValueError(f"{name} has shape {tuple(value.shape)}, not {tuple(shape)}")
