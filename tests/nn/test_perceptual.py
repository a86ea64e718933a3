import pytest
import torch
from torch import nn

from longtake.errors import UserError
from longtake.nn.perceptual import VGG_CHANNELS, PerceptualDistance, VGG16Features, lpips
from longtake.systems.perceptual import load_lpips


@pytest.fixture(scope="module")
def convolutions():
    """A torchvision vgg16 state dict with random weights (the classifier cut short)."""
    torch.manual_seed(0)
    return VGG16Features().state_dict() | {"classifier.0.weight": torch.zeros(2, 2)}


@pytest.fixture(scope="module")
def heads():
    return {f"lin{i}.model.1.weight": torch.rand(1, c, 1, 1) for i, c in enumerate(VGG_CHANNELS)}


def test_feature_maps_have_the_sizes_of_vgg16():
    maps = VGG16Features()(torch.zeros(1, 3, 32, 48))
    assert [tuple(m.shape[1:]) for m in maps] == [
        (64, 32, 48),
        (128, 16, 24),
        (256, 8, 12),
        (512, 4, 6),
        (512, 2, 3),
    ]


def test_layers_have_the_numbers_of_torchvision(convolutions):
    numbers = sorted({int(k.split(".")[1]) for k in convolutions if k.startswith("features")})
    assert numbers == [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28]


def test_equals_the_definition_of_lpips(convolutions, heads):
    a, b = torch.rand(2, 2, 3, 32, 32, dtype=torch.float64)
    model = lpips({**convolutions, **heads}).double()
    expected = torch.zeros(2, dtype=torch.float64)
    for i, (x, y) in enumerate(zip(model.features(a), model.features(b), strict=True)):
        x, y = (m / (m.pow(2).sum(1, keepdim=True).sqrt() + 1e-10) for m in (x, y))
        expected += nn.functional.conv2d((x - y) ** 2, heads[f"lin{i}.model.1.weight"].double()).mean((1, 2, 3))
    torch.testing.assert_close(model(a, b), expected)
    assert not model.training
    assert not model.train().features.training
    assert not any(p.requires_grad for p in model.parameters())


def test_gradient_reaches_the_image_and_is_finite_where_features_vanish():
    class Dark(nn.Module):
        def forward(self, x):
            return [torch.relu(x - 0.5)]

    a = torch.zeros(1, 3, 4, 4, requires_grad=True)
    b = torch.ones(1, 3, 4, 4)
    distance = PerceptualDistance(Dark())(a, b)
    distance.sum().backward()
    assert distance.shape == (1,)
    assert torch.isfinite(a.grad).all()
    c = torch.full((1, 3, 4, 4), 0.7).index_fill(1, torch.tensor([0]), 0.9).requires_grad_()
    PerceptualDistance(Dark())(c, b).sum().backward()
    assert c.grad.abs().max() > 0


def test_one_channel_images(convolutions, heads):
    model = lpips({**convolutions, **heads})
    a, b = torch.rand(2, 1, 1, 16, 16)
    torch.testing.assert_close(model(a, b), model(a.expand(1, 3, 16, 16), b.expand(1, 3, 16, 16)))


def test_reads_every_layout_in_circulation(tmp_path, convolutions, heads):
    a, b = torch.rand(2, 1, 3, 16, 16)
    expected = lpips({**convolutions, **heads})(a, b)
    folder = tmp_path / "weights"
    folder.mkdir()
    torch.save(convolutions, folder / "vgg16-397923af.pth")
    torch.save(heads, folder / "vgg.pth")
    torch.testing.assert_close(load_lpips(folder)(a, b), expected)

    ends = [4, 9, 16, 23, 30]
    inside = {}
    for key, value in convolutions.items():
        if key.startswith("features"):
            number = int(key.split(".")[1])
            slice_ = 1 + next(i for i, end in enumerate(ends) if number < end)
            inside[f"perceptual_model.net.slice{slice_}.{key.removeprefix('features.')}"] = value
    inside |= {f"perceptual_model.{k}": v for k, v in heads.items()}
    torch.save({"state_dict": inside, "epoch": 1}, tmp_path / "vqgan.ckpt")
    torch.testing.assert_close(load_lpips(tmp_path / "vqgan.ckpt")(a, b), expected)


def test_says_which_weights_are_missing(tmp_path, convolutions):
    torch.save(convolutions, tmp_path / "vgg16.pth")
    with pytest.raises(UserError, match=r"lin0\.model\.1\.weight is missing"):
        load_lpips(tmp_path / "vgg16.pth")
