import pytest
import torch
from goldens import Golden

from longtake.nn.discriminators import PatchDiscriminator
from longtake.nn.losses import discriminator_loss, feature_matching_loss, generator_loss
from longtake.systems.tats.convert import discriminator_state


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["image", "video"])
def test_equals_the_official_code(kind, dtype):
    golden = Golden("tats_discriminators")
    critic = PatchDiscriminator(2 if kind == "image" else 3, width=golden.config["ndf"])
    critic.load_state_dict(discriminator_state(golden.state, f"{kind}_discriminator."))
    critic.to(dtype).eval()
    plural = "images" if kind == "image" else "video"
    real, features = critic(golden.inputs[plural].to(dtype))
    fake, fake_features = critic(golden.inputs[f"fake_{plural}"].to(dtype))
    golden.check(f"{kind}_logits", real)
    for i, feature in enumerate(features):
        golden.check(f"{kind}_feat{i}", feature)
    golden.check(f"{kind}_loss_d_hinge", discriminator_loss(real, fake))
    golden.check(f"{kind}_loss_d_vanilla", discriminator_loss(real, fake, "vanilla"))
    golden.check(f"{kind}_loss_g", generator_loss(fake))
    golden.check(f"{kind}_loss_feat", feature_matching_loss(fake_features[:-1], features[:-1]))
    critic.train()
    golden.check(f"{kind}_train_logits", critic(golden.inputs[plural].to(dtype)).logits)
    golden.check(f"{kind}_train_model1.1.running_mean", critic.units[1][1].running_mean)
    golden.check(f"{kind}_train_model1.1.running_var", critic.units[1][1].running_var)


def test_published_sizes():
    with torch.device("meta"):
        image, video = PatchDiscriminator(2), PatchDiscriminator(3)
        sizes = [tuple(f.shape[1:]) for f in image(torch.empty(1, 3, 128, 128)).features]
        clips = [tuple(f.shape[1:]) for f in video(torch.empty(1, 3, 16, 128, 128)).features]
    assert sizes == [(64, 65, 65), (128, 33, 33), (256, 17, 17), (512, 18, 18), (1, 19, 19)]
    assert clips == [(64, 9, 65, 65), (128, 5, 33, 33), (256, 3, 17, 17), (512, 4, 18, 18), (1, 5, 19, 19)]


def test_feature_matching_leaves_the_real_features_alone():
    real, fake = torch.randn(2, 3, requires_grad=True), torch.randn(2, 3, requires_grad=True)
    feature_matching_loss([fake], [real]).backward()
    assert real.grad is None
    assert fake.grad is not None
