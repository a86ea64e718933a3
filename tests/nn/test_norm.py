import torch

from longtake.nn.norm import make_norm


def test_frame_norm_treats_every_frame_by_itself():
    norm = make_norm("frame", 8)
    torch.nn.init.normal_(norm.weight)
    x = torch.randn(2, 8, 5, 3, 3)
    single = torch.cat([norm(x[:, :, t : t + 1]) for t in range(5)], 2)
    torch.testing.assert_close(norm(x), single)
    clip = make_norm("group", 8)
    clip.load_state_dict(norm.state_dict())
    assert not torch.allclose(clip(x), norm(x), atol=1e-3)


def test_frame_norm_of_images_is_group_norm():
    x = torch.randn(2, 64, 3, 3)
    torch.testing.assert_close(make_norm("frame", 64, 2)(x), torch.nn.functional.group_norm(x, 32, eps=1e-6))
