import pytest
import torch
from conftest import lightning
from goldens import FOLDER, Golden

from longtake.errors import UserError
from longtake.nn.discriminators import PatchDiscriminator
from longtake.nn.transformer import Transformer, TransformerConfig
from longtake.systems.tats.convert import Official, read_official
from longtake.systems.tats.vqgan import VQGAN

VQGAN_FILE = FOLDER / "tats_vqgan_tiny.ckpt"
CLASS_FILE = FOLDER / "tats_transformer_class_tiny.ckpt"
CLASS_VQGAN_FILE = FOLDER / "tats_vqgan_for_transformer_tiny.ckpt"


def build(official: Official) -> tuple[VQGAN, Transformer]:
    vqgan = VQGAN(official.vqgan).eval()
    vqgan.load_state_dict(official.networks["vqgan"])
    p = official.prior
    assert p is not None
    prior = Transformer(TransformerConfig(p.vocabulary, p.block, p.layers, p.heads, p.width)).eval()
    prior.load_state_dict(official.networks["prior"])
    return vqgan, prior


@torch.no_grad()
def test_a_vqgan_gives_the_official_numbers():
    official = read_official(VQGAN_FILE)
    golden = Golden("tats_vqgan_488_batch_replicate")
    vqgan = VQGAN(official.vqgan).eval()
    vqgan.load_state_dict(official.networks["vqgan"])
    tokens = vqgan.tokenize(golden.inputs["clip0"] * 2)
    golden.check("indices0", tokens)
    golden.check("frames0", vqgan.detokenize(tokens) / 2)
    assert (official.frames, official.size, official.frame_step, official.prior) == (16, 32, 1, None)
    assert official.hyper_parameters()["vqgan"]["compression"] == (4, 8, 8)


def test_the_codebook_goes_on_where_it_was():
    official = read_official(VQGAN_FILE)
    golden = Golden("tats_vqgan_488_batch_replicate")
    vqgan = VQGAN(official.vqgan)
    vqgan.load_state_dict(official.networks["vqgan"])
    assert torch.equal(vqgan.codebook.counts, golden.state["codebook.N"])
    assert torch.equal(vqgan.codebook.sums, golden.state["codebook.z_avg"])
    vqgan.train()(golden.inputs["clip0"] * 2)
    # A codebook that begins anew would hold vectors of this clip and counts of one.
    torch.testing.assert_close(vqgan.codebook.counts.sum(), golden.state["codebook.N"].sum() * 0.99 + 0.01 * 64)


@pytest.mark.parametrize("files", [(CLASS_VQGAN_FILE, CLASS_FILE), (CLASS_FILE, CLASS_VQGAN_FILE)])
@torch.no_grad()
def test_a_pair_gives_the_official_logits_from_pixels(files):
    official = read_official(*files)
    golden = Golden("tats_transformer_class")
    vqgan, prior = build(official)
    tokens = vqgan.tokenize(golden.inputs["video"] * 2).flatten(1)
    golden.check("z_indices", tokens)
    condition = golden.inputs["label"].view(-1, 1)
    targets = tokens + official.prior.offset
    golden.check("targets", targets)
    sequence = torch.cat([condition, targets], 1)[:, :-1]
    golden.check("logits", prior(sequence)[:, condition.shape[1] - 1 :])
    assert official.prior.condition == "label"
    assert (official.prior.unmasked, official.prior.every) == (0, 1)


@torch.no_grad()
def test_a_transformer_alone_does_when_its_clips_tell_the_compression(tmp_path):
    golden = Golden("tats_transformer_sparse_uncond")
    path = lightning(
        tmp_path / "gpt.ckpt",
        golden.state,
        n_head=2,
        unconditional=True,
        sequence_length=32,
        resolution=8,
        sample_every_n_latent_frames=4,
    )
    official = read_official(path)
    assert official.vqgan.compression == (4, 4, 4)
    assert official.prior.condition == "none"
    assert (official.prior.offset, official.prior.every) == (0, 4)
    vqgan, prior = build(official)
    tokens = vqgan.tokenize(golden.inputs["video"] * 2)[:, ::4].flatten(1)
    golden.check("z_indices", tokens)
    golden.check("logits", prior(torch.cat([torch.zeros_like(tokens[:, :1]), tokens[:, :-1]], 1)))


def test_a_transformer_alone_that_does_not_tell_needs_help():
    with pytest.raises(UserError, match=r"does not tell the compression .* give the VQGAN's \.ckpt too"):
        read_official(CLASS_FILE)
    assert read_official(CLASS_FILE, compression=(4, 4, 4)).vqgan.compression == (4, 4, 4)


def test_the_interpolation_mask_tells_its_slice(tmp_path):
    golden = Golden("tats_transformer_interp")
    args = {"n_head": 2, "unconditional": True, "sequence_length": 20, "resolution": 12}
    found = read_official(lightning(tmp_path / "a.ckpt", golden.state, **args))
    assert (found.prior, found.interpolator.unmasked) == (None, 9)
    causal = Golden("tats_transformer_class")
    path = lightning(tmp_path / "b.ckpt", causal.state, n_head=2, cond_stage_key="label")
    assert read_official(path, compression=(4, 4, 4)).prior.unmasked == 0


def test_discriminators_come_along(tmp_path):
    critics = Golden("tats_discriminators")
    state = Golden("tats_vqgan_488_batch_replicate").state | critics.state
    networks = read_official(lightning(tmp_path / "v.ckpt", state, downsample=(4, 8, 8))).networks
    for dims, name in ((2, "image_discriminator"), (3, "video_discriminator")):
        PatchDiscriminator(dims, width=5).load_state_dict(networks[name])


@pytest.mark.parametrize(("official", "ours"), [(None, "replicate"), ("constant", "zeros"), ("reflect", "reflect")])
def test_padding_of_the_file(tmp_path, official, ours):
    """Older files do not say it: they replicate."""
    state = Golden("tats_vqgan_444_batch_zero").state
    args = {"downsample": [4, 4, 4]} | ({"padding_type": official} if official else {})
    config = read_official(lightning(tmp_path / "v.ckpt", state, **args)).vqgan
    assert (config.padding.time, config.padding.space) == (ours, ours)
    assert config.official_partial_padding == (ours != "replicate")
    assert (config.hidden, config.embedding, config.codes, config.norm) == (4, 8, 32, "batch")


def test_frames_are_counted_after_the_stride(tmp_path):
    """Tai-chi: 64 frames of which every 4th is kept."""
    state = Golden("tats_vqgan_444_batch_zero").state
    args = {"downsample": [4, 4, 4], "sequence_length": 64, "sample_every_n_frames": 4, "resolution": 128}
    official = read_official(lightning(tmp_path / "v.ckpt", state, **args))
    assert (official.frames, official.frame_step, official.size) == (16, 4, 128)


@pytest.mark.parametrize(
    ("name", "args", "sizes", "message"),
    [
        ("vqgan_444_batch_zero", {"lr": 1.0}, {}, r"does not say its compression"),
        ("vqgan_444_batch_zero", {"downsample": (4, 8, 8)}, {}, r"has 2 stages, which does not fit"),
        (
            "vqgan_444_batch_zero",
            {"downsample": (4, 4, 4), "padding_type": "mirror"},
            {},
            r"unknown padding 'mirror'",
        ),
        ("transformer_class", {"cond_stage_key": "label"}, {}, r"number of attention heads"),
        ("transformer_class", {"n_head": 2, "unconditional": True}, {}, r"does not fit condition 'none'"),
        ("discriminators", {"lr": 1.0}, {}, r"holds no TATS network"),
    ],
)
def test_what_is_missing_is_named(tmp_path, name, args, sizes, message):
    path = lightning(tmp_path / "x.ckpt", Golden(f"tats_{name}").state, sizes, **args)
    with pytest.raises(UserError, match=message):
        read_official(path)


def test_a_transformer_without_any_vqgan_is_refused(tmp_path):
    state = {k: v for k, v in Golden("tats_transformer_class").state.items() if k.startswith("transformer.")}
    path = lightning(tmp_path / "x.ckpt", state, n_head=2, cond_stage_key="label")
    with pytest.raises(UserError, match="does not embed its VQGAN"):
        read_official(path)
    assert read_official(path, CLASS_VQGAN_FILE).prior.offset == 5


@pytest.mark.parametrize("content", [[1, 2], {"state_dict": {}}, {"state_dict": None}])
def test_files_without_weights_are_refused(tmp_path, content):
    torch.save(content, tmp_path / "x.ckpt")
    with pytest.raises(UserError, match="holds no weights"):
        read_official(tmp_path / "x.ckpt")
    with pytest.raises(UserError, match="no checkpoint given"):
        read_official()
