"""Model folders: what does not fit is named, nothing in them is executed."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from longtake.errors import UserError
from longtake.story import Story
from longtake.systems import folder
from longtake.systems.base import ModelInfo, System
from longtake.systems.tats.config import SIZES
from longtake.systems.tats.system import TATS


@pytest.fixture(scope="module")
def system() -> System:
    torch.manual_seed(0)
    return TATS(SIZES["tiny"], ModelInfo(15.0, (16, 16), ("a", "b"), (3, 1)))


@pytest.fixture
def model(system, tmp_path) -> Path:
    return folder.save(system, tmp_path / "model", card="# a card\n")


def edit(path: Path, change) -> None:
    state = load_file(path)
    change(state)
    save_file(state, path)


def test_a_folder_holds_what_it_says(system, model):
    assert sorted(p.name for p in model.iterdir()) == ["card.md", "config.json", "model.safetensors"]
    again = folder.load(model)
    assert (again.config, again.info, again.name) == (system.config, system.info, "tats")
    one, two = folder.inference_state(system), folder.inference_state(again)
    assert one.keys() == two.keys() == folder.read_state(model).keys()
    assert all(torch.equal(one[k], two[k]) for k in one)
    assert {k.split(".")[0] for k in one} == {"vqgan", "prior"}
    assert folder.weights_hash(one) == folder.weights_hash(two)


def test_half_precision_on_disk_and_in_use(system, tmp_path):
    folder.save(system, tmp_path / "half", dtype=torch.float16)
    state = folder.read_state(tmp_path / "half")
    assert state["prior.head.weight"].dtype == torch.float16
    assert state["vqgan.codebook.initialised"].dtype == torch.bool
    loaded = folder.load(tmp_path / "half")
    assert {p.dtype for p in loaded.networks["prior"].parameters()} == {torch.float32}
    loaded = folder.load(tmp_path / "half", dtype=torch.bfloat16)
    assert {p.dtype for p in loaded.networks["prior"].parameters()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("prior.head.weight"), "does not fit the network prior: it lacks head.weight"),
        (lambda s: s.update({"vqgan.extra": torch.ones(1)}), "the network vqgan: it has an unknown extra"),
        (
            lambda s: s.update({"prior.head.weight": torch.ones(2, 2)}),
            "the network prior: it has another shape of head.weight; check size and settings",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_named(model, change, message):
    edit(model / "model.safetensors", change)
    with pytest.raises(UserError, match=message):
        folder.load(model)


def test_damaged_weights(model):
    file = model / "model.safetensors"
    whole = file.read_bytes()
    for content in (b"", whole[:7], whole[: len(whole) // 2], b"\xff" * 64, pickle.dumps({"a": 1})):
        file.write_bytes(content)
        with pytest.raises(UserError, match=r"model.safetensors is damaged or missing"):
            folder.load(model)
    file.unlink()
    with pytest.raises(UserError, match=r"has no model\.safetensors"):
        folder.load(model)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "3", '{"model_type": "llama"}', '{"system": {}, "config": {}, "info": {}}', "null"]
)
def test_a_configuration_that_is_not_ours(model, text):
    (model / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"config\.json is not the configuration of a longtake model"):
        folder.load(model)


def test_a_configuration_of_another_version(model):
    raw = json.loads((model / "config.json").read_text())
    for change, message in (
        ({"system": "tat"}, "there is no system 'tat'"),
        ({"config": {**raw["config"], "colour": 1}}, "has no setting 'colour'"),
        ({"info": {"fps": 15.0}}, "lacks the setting 'size'"),
    ):
        (model / "config.json").write_text(json.dumps({**raw, **change}))
        with pytest.raises(UserError, match=message):
            folder.load(model)


def test_large_models_are_sharded(system, tmp_path, monkeypatch):
    monkeypatch.setattr(folder, "SHARD", "40KB")
    model = folder.save(system, tmp_path / "model")
    names = sorted(p.name for p in model.iterdir())
    assert "model.safetensors" not in names
    assert "model.safetensors.index.json" in names
    assert len([n for n in names if n.endswith(".safetensors")]) > 1
    state, expected = folder.read_state(model), folder.inference_state(system)
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[k], expected[k]) for k in state)
    video = torch.cat(list(folder.load(model).generate([Story(frames=5)])), 2)
    assert torch.equal(video, torch.cat(list(system.generate([Story(frames=5)])), 2))
    shard = next(p for p in model.glob("model-*"))
    shard.unlink()
    with pytest.raises(UserError, match=rf"{shard.name} is damaged or missing"):
        folder.load(model)


def test_saving_again_leaves_no_file_of_another_sharding(system, tmp_path, monkeypatch):
    model = folder.save(system, tmp_path / "model")
    with monkeypatch.context() as patch:
        patch.setattr(folder, "SHARD", "40KB")
        folder.save(system, model)
        assert not (model / "model.safetensors").exists()
    folder.save(system, model)
    assert sorted(p.name for p in model.iterdir()) == ["config.json", "model.safetensors"]


@pytest.mark.parametrize(
    "name", ["../secret.safetensors", "/tmp/secret.safetensors", "sub/../../secret.safetensors"]
)
def test_an_index_that_leaves_its_folder_is_refused(model, name):
    shutil.move(model / "model.safetensors", model.parent / "secret.safetensors")
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"prior.head.weight": name}}))
    with pytest.raises(UserError, match="names a weight file outside its folder; the model is not to be trusted"):
        folder.load(model)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {"a": 3}}'])
def test_a_damaged_index(model, text):
    (model / "model.safetensors").unlink()
    (model / "model.safetensors.index.json").write_text(text)
    with pytest.raises(UserError, match=r"index\.json is damaged"):
        folder.load(model)


def test_a_failed_save_leaves_the_folder_as_it_was(system, model, monkeypatch):
    before = {p.name: p.read_bytes() for p in model.iterdir()}
    monkeypatch.setattr(folder, "to_dict", lambda value: object())  # the configuration cannot be written
    with pytest.raises(TypeError, match="not JSON serializable"):
        folder.save(system, model, state={"x": torch.ones(1)})
    assert {p.name: p.read_bytes() for p in model.iterdir()} == before


def test_nothing_is_unpickled(model, monkeypatch):
    def refuse(*args, **options):
        pytest.fail("something was unpickled")

    monkeypatch.setattr(pickle, "load", refuse)
    monkeypatch.setattr(pickle, "Unpickler", refuse)
    monkeypatch.setattr(torch, "load", refuse)
    torch.save({"prior.head.weight": torch.ones(1)}, model / "pytorch_model.bin")
    assert folder.load(model).name == "tats"


def test_what_cannot_be_found_is_named(tmp_path):
    with pytest.raises(UserError, match="is neither a model folder, a bundled model") as caught:
        folder.find(tmp_path / "none")
    assert caught.value.code == 2
    with pytest.raises(UserError, match="nor a reachable Hub id"):
        folder.find("nothing-of-this-name")
