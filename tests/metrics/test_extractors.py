"""Extractors: weights in the layouts in circulation, made here at random, and what is said of wrong ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import scripted
from torch import Tensor, nn

from longtake.errors import UserError
from longtake.metrics.extractors.base import as_video, resize_frames
from longtake.metrics.extractors.i3d import I3D
from longtake.metrics.extractors.inception import Inception
from longtake.metrics.extractors.registry import make_extractor
from longtake.metrics.extractors.resnext3d import ResNeXt3d
from longtake.systems.base import ModelInfo
from longtake.systems.classifier.config import SIZES
from longtake.systems.classifier.system import Classifier
from longtake.systems.folder import save


def clips(n: int = 2, t: int = 16, size: int = 24, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, t, size, size, 3), dtype=np.uint8)


def randomised(network: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    return network.eval()


def test_i3d_reads_the_layout_of_pytorch_i3d(tmp_path):
    network = randomised(I3D())
    assert sum(p.numel() for p in network.parameters()) == 12_697_264  # pytorch-i3d's InceptionI3d(400)
    names = set(network.state_dict())
    assert {"Conv3d_1a_7x7.conv3d.weight", "Mixed_4f.b3b.bn.running_var", "logits.conv3d.bias"} <= names
    torch.save(network.state_dict(), tmp_path / "i3d.pt")
    extractor = make_extractor(f"i3d={tmp_path / 'i3d.pt'}")
    given = clips(1)
    found = extractor(given)
    with torch.no_grad():
        video = resize_frames(as_video(given, torch.device("cpu")), (224, 224), False) / 127.5 - 1
        expected = network(video)
    np.testing.assert_allclose(found.features, expected.numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.probabilities.sum(1), 1, rtol=1e-5)
    assert (extractor.name, extractor.dim, len(extractor.hash)) == ("i3d-k400", 400, 64)
    assert make_extractor(f"i3d-eps5={tmp_path / 'i3d.pt'}").name == "i3d-k400-eps5"
    wrong = {k: v for k, v in network.state_dict().items() if not k.startswith("Mixed_5b")}
    torch.save(wrong, tmp_path / "wrong.pt")
    with pytest.raises(UserError, match=r"Mixed_5b.* is missing or wrong"):
        make_extractor(f"i3d={tmp_path / 'wrong.pt'}")


def test_inception_reads_the_layout_of_pytorch_fid(tmp_path):
    network = randomised(Inception())
    assert sum(p.numel() for p in network.parameters()) == 21_785_568  # torchvision's, less the last layer
    state = {**network.state_dict(), "fc.weight": torch.zeros(1008, 2048), "fc.bias": torch.zeros(1008)}
    torch.save(state, tmp_path / "fid.pth")
    extractor = make_extractor(f"inception={tmp_path / 'fid.pth'}")
    found = extractor(clips(2, 1))
    assert found.features.shape == (2, 2048)
    assert found.probabilities is None
    alone = extractor(clips(2, 1)[1:])
    np.testing.assert_allclose(alone.features[0], found.features[1], rtol=1e-3, atol=1e-5)
    torch.save({"x": torch.zeros(2)}, tmp_path / "wrong.pth")
    with pytest.raises(UserError, match="Inception of pytorch-fid"):
        make_extractor(f"inception={tmp_path / 'wrong.pth'}")


@pytest.mark.parametrize("stem", [64, 128])
def test_resnext_reads_the_layout_of_its_authors(tmp_path, stem, monkeypatch):
    with torch.device("meta"):
        published = ResNeXt3d(stem=128)
    assert sum(p.numel() for p in published.parameters()) == 48_431_376  # generate_model(101) of the authors
    monkeypatch.setattr(ResNeXt3d.__init__, "__defaults__", (400, (1, 1, 1, 1), 128, 32, 64))
    network = randomised(ResNeXt3d(10, stem=stem))
    state = {f"module.{k}": v for k, v in network.state_dict().items()}
    torch.save({"arch": "resnext-101", "state_dict": state}, tmp_path / "resnext.pth")
    extractor = make_extractor(f"resnext={tmp_path / 'resnext.pth'}")
    found = extractor(clips(2, 16, 40))
    assert found.features.shape == (2, 2048)
    assert found.probabilities.shape == (2, 10)
    assert (extractor.least, extractor.most) == (16, 16)
    del state["module.layer3.0.conv2.weight"]
    torch.save({"state_dict": state}, tmp_path / "wrong.pth")
    with pytest.raises(UserError, match=r"ResNeXt-101 of Kinetics: layer3\.0\.conv2\.weight is missing"):
        make_extractor(f"resnext={tmp_path / 'wrong.pth'}")


class Detector(nn.Module):
    """Called as the detector of StyleGAN-V."""

    def forward(
        self, x: Tensor, rescale: bool = False, resize: bool = False, return_features: bool = False
    ) -> Tensor:
        if rescale:
            x = x / 127.5 - 1
        features = x.mean(dim=[2, 3, 4])
        return features * (2.0 if resize and return_features else 1.0)


class Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x.mean(dim=[2, 3, 4]), x.mean(dim=[2, 3, 4]).softmax(1)


class Wrong(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x


def test_torchscript_is_called_as_its_family_wants(tmp_path):
    given = clips()
    signed = given.mean((1, 2, 3)) / 127.5 - 1
    detector = make_extractor(f"i3d-torchscript={scripted(Detector(), tmp_path / 'd.pt')}")
    np.testing.assert_allclose(detector(given).features, 2 * signed, atol=1e-4)
    own = make_extractor(f"torchscript={scripted(Pair(), tmp_path / 'own.pt')}")
    assert own.name == "own"
    found = own(given)
    np.testing.assert_allclose(found.features, signed, atol=1e-4)
    np.testing.assert_allclose(found.probabilities.sum(1), 1, atol=1e-5)
    with pytest.raises(UserError, match=r"must return \(N, D\) features"):
        make_extractor(f"torchscript={scripted(Wrong(), tmp_path / 'wrong.pt')}")(given)
    (tmp_path / "text.pt").write_text("no")
    with pytest.raises(UserError, match="not a TorchScript file"):
        make_extractor(f"torchscript={tmp_path / 'text.pt'}")


def test_videomae_through_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.VideoMAEConfig(
        image_size=32,
        patch_size=16,
        num_frames=8,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
    )
    torch.manual_seed(0)
    transformers.VideoMAEModel(config).save_pretrained(tmp_path / "tiny")
    extractor = make_extractor(f"videomae={tmp_path / 'tiny'}")
    assert extractor(clips(t=8)).features.shape == (2, 16)
    assert (extractor.least, extractor.most, extractor.name) == (8, 8, "videomae-tiny")
    with pytest.raises(UserError, match=r"config\.json and model\.safetensors"):
        make_extractor(f"videomae={tmp_path}")
    told = (tmp_path / "tiny" / "config.json").read_text()
    (tmp_path / "tiny" / "config.json").write_text(told.replace('"videomae"', '"clip"'))
    with pytest.raises(UserError, match=r"holds no VideoMAE .*says clip"):
        make_extractor(f"videomae={tmp_path / 'tiny'}")
    (tmp_path / "tiny" / "config.json").write_text(told.replace('"num_hidden_layers": 1', '"num_hidden_layers": 2'))
    with pytest.raises(UserError, match=r"holds no VideoMAE .*is missing"):
        make_extractor(f"videomae={tmp_path / 'tiny'}")


def test_a_classifier_is_an_extractor(tmp_path):
    torch.manual_seed(0)
    info = ModelInfo(fps=15, size=(16, 16), classes=("a", "b"), class_counts=(1, 1))
    folder = save(Classifier(SIZES["tiny"], info), tmp_path / "mine")
    extractor = make_extractor(str(folder))
    found = extractor(clips(3, 8, 32))
    assert found.features.shape == (3, extractor.dim)
    assert found.probabilities.shape == (3, 2)
    assert (extractor.name, extractor.classes) == ("mine", ("a", "b"))
    one = extractor(clips(3, 8, 32)[2:])
    np.testing.assert_allclose(one.features[0], found.features[2], atol=1e-5)


def test_wrong_names_say_what_there_is(tmp_path):
    with pytest.raises(UserError, match=r"no extractor 'i4d'; choose i3d=FILE"):
        make_extractor("i4d=x.pt")
    with pytest.raises(UserError, match="there is no file"):
        make_extractor(f"i3d={tmp_path / 'none.pt'}")
    with pytest.raises(UserError, match="neither a model folder"):
        make_extractor("nothing")
    with pytest.raises(UserError, match="is a tats, not a classifier"):
        make_extractor("tats-atari")
