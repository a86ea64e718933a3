"""Released pickles, in the structure that the official trainer writes."""

import io
import pickle
import sys
import types
import warnings
from pathlib import Path

import pytest
import torch
from goldens import Golden

from longtake.errors import UserError
from longtake.systems import folder
from longtake.systems.foreign import read_foreign
from longtake.systems.stylegan_v.convert import convert, read_official, tensors

FREQUENCIES = "synthesis.motion_encoder.time_encoder.freqs"
SOURCE = "raise AssertionError('code of the file was run')\n"


def refuse(*arguments, **named):
    raise AssertionError("code of the file was run")


class Persistent:
    """A module that is kept with its source: a call that would run it."""

    def __init__(self, meta: dict):
        self.meta = meta

    def __reduce__(self):
        return sys.modules["src.torch_utils.persistence"]._reconstruct_persistent_obj, (self.meta,)


@pytest.fixture(autouse=True)
def strangers(monkeypatch):
    """Stand-ins for the official modules, as far as pickles name them; they fail when they are used."""
    for module, attribute in (
        ("src.torch_utils.persistence", "_reconstruct_persistent_obj"),
        ("src.dnnlib.util", "EasyDict"),
        ("omegaconf.dictconfig", "DictConfig"),
        ("omegaconf.nodes", "AnyNode"),
        ("training.layers", "TemporalDifferenceEncoder"),
    ):
        if attribute.startswith("_"):
            made = types.FunctionType(refuse.__code__, globals())
        else:
            made = type(attribute, (dict,), {"__setstate__": refuse})
        made.__module__, made.__qualname__, made.__name__ = module, attribute, attribute
        parts = module.split(".")
        for i in range(1, len(parts) + 1):
            name = ".".join(parts[:i])
            if i == len(parts) or name not in sys.modules:
                monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
        setattr(sys.modules[module], attribute, made)


def stranger(name: str, state: dict | None = None, items: dict | None = None):
    """An object of one of those classes."""
    module, _, attribute = name.rpartition(".")
    made = getattr(sys.modules[module], attribute)(items or {})
    made.__dict__.update(state or {})
    return made


def config_node(values: dict, parent=None):
    """A configuration as OmegaConf pickles it: every value a node, every node with its parent."""
    node = stranger("omegaconf.dictconfig.DictConfig")
    content = {
        name: config_node(value, node)
        if isinstance(value, dict)
        else stranger("omegaconf.nodes.AnyNode", {"_val": value, "_parent": node})
        for name, value in values.items()
    }
    node.__dict__.update({"_content": content, "_parent": parent})
    return node


def module(name: str, state: dict, cfg):
    """A module with the tensors of a flat state dict, each level kept with its source."""
    children: dict[str, dict] = {}
    own = {}
    for key, value in state.items():
        head, _, rest = key.partition(".")
        if rest:
            children.setdefault(head, {})[rest] = value
        else:
            own[head] = value
    buffers = {k: v for k, v in own.items() if k in ("w_avg", "freqs", "phase_scales", "resample_filter")}
    inside = {
        "training": False,
        "_parameters": {k: torch.nn.Parameter(v.clone(), False) for k, v in own.items() if k not in buffers},
        "_buffers": buffers,
        "_modules": {k: module(k, v, cfg) for k, v in children.items()},
        "cfg": cfg,
        "conv_clamp": 256,
    }
    if name == "time_encoder" and "const_embed.weight" in state:  # the one class that is not kept with its source
        return stranger("training.layers.TemporalDifferenceEncoder", inside)
    meta = {"type": "class", "version": 6, "module_src": SOURCE, "class_name": name, "state": inside}
    return Persistent(meta)


def snapshot(path: Path, g: dict, d: dict | None = None, **changes) -> Path:
    cfg = config_node({"motion": {"motion_z_distance": 16, "kernel_size": 11}, "use_noise": False})
    other = {k: v + 1 if v.is_floating_point() and "freqs" not in k else v for k, v in g.items()}
    content = {
        "training_set_kwargs": stranger("src.dnnlib.util.EasyDict", items={"path": "/data"}),
        "G": module("Generator", other, cfg),
        "D": module("Discriminator", d, cfg) if d else None,
        "G_ema": module("Generator", g, cfg),
        "augment_pipe": None,
        "G_opt": {"state": torch.ones(3)},
        "stats": {"cur_nimg": 5},
        **changes,
    }
    path.write_bytes(pickle.dumps(content, protocol=4))
    return path


def golden_states() -> tuple[dict, dict]:
    golden = Golden("sgv_training_step_32")
    return tuple({k.removeprefix(p): v for k, v in golden.state.items() if k.startswith(p)} for p in ("G.", "D."))  # type: ignore[return-value]


def test_a_snapshot_becomes_a_model(tmp_path):
    g, d = golden_states()
    path = snapshot(tmp_path / "network-snapshot-000001.pkl", g, d)
    official = read_official(path)
    for name, state in (("G_ema", g), ("D", d)):
        assert official.networks[name].keys() == state.keys()
        assert all(torch.equal(official.networks[name][k], v) for k, v in state.items())
    assert not torch.equal(official.networks["G"]["mapping.fc0.weight"], g["mapping.fc0.weight"])
    c = official.config
    assert (c.frames, c.size, c.condition, c.sampling) == (3, (32, 32), "none", "octaves")
    assert (c.motion.spacing, c.motion.shortest, c.motion.longest) == (16.0, 16.0, 1024.0)
    assert (c.synthesis.base, c.synthesis.most, c.synthesis.clamp) == (384, 16, 256.0)
    assert (c.discriminator.divisor, c.discriminator.gaps) == (2, 64)
    system = convert([path], 25.0, None)
    folder.save(system, tmp_path / "model")
    again = folder.load(tmp_path / "model")
    assert (again.name, again.info.fps) == ("stylegan_v", 25.0)
    own, saved = system.networks["generator"].state_dict(), again.networks["generator"].state_dict()
    assert all(torch.equal(saved[k], v) for k, v in own.items())
    kept = folder.read_state(tmp_path / "model")
    assert torch.equal(kept["discriminator.head.out.weight"], d["b4.out.weight"])


def test_a_snapshot_with_classes_and_no_discriminator(tmp_path):
    golden = Golden("sgv_generator_64_label")
    g = {k.removeprefix("G."): v for k, v in golden.state.items()}
    system = convert([snapshot(tmp_path / "x.pkl", g)], 30.0, (64, 64))
    assert system.info.classes == ("0", "1", "2", "3")
    assert system.accepts == {"label"}
    assert system.inference == ("generator",)
    with torch.no_grad():
        w = system.eval().networks["generator"].mapping(golden.inputs["z"], golden.inputs["c"])
    golden.check("w", w)


def test_several_files_are_refused(tmp_path):
    with pytest.raises(UserError, match="one file, got 2"):
        convert([tmp_path / "a.pkl", tmp_path / "b.pkl"], 25.0, None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda g: {k: v for k, v in g.items() if "const" not in k}, "no StyleGAN-V generator"),
        (lambda g: {**g, "synthesis.b8.conv1.noise_strength": torch.zeros(())}, "noise inputs"),
        (lambda g: {**g, "synthesis.motion_encoder.rnn.bias_ih_l0": torch.zeros(4)}, "an LSTM"),
        (lambda g: {k: v for k, v in g.items() if "mapping.fc0" not in k}, "not a complete StyleGAN-V"),
        (lambda g: {**g, FREQUENCIES: torch.linspace(0.01, 0.4, 8)[None]}, "octaves"),
        (lambda g: {**g, "synthesis.b8.conv1.weight": torch.zeros(3, 3, 3, 3)}, "another shape"),
        (lambda g: {**g, "synthesis.b8.conv9.weight": torch.zeros(3)}, "an unknown"),
        (lambda g: {**g, FREQUENCIES: g[FREQUENCIES] * 0}, "not a complete StyleGAN-V"),
        (lambda g: {**g, FREQUENCIES: g[FREQUENCIES][:, :-1]}, "octaves"),
        (lambda g: {**g, FREQUENCIES: torch.zeros(())}, "not a complete StyleGAN-V"),
        (lambda g: {**g, "synthesis.motion_encoder.conv.1.weight": torch.zeros(())}, "not a complete StyleGAN-V"),
        (lambda g: {**g, "synthesis.b4.input.input.const": torch.zeros(())}, "not a complete StyleGAN-V"),
        (lambda g: {**g, "synthesis.b1000003.conv1.weight": torch.zeros(1, 1, 1, 1)}, "resolutions"),
        (lambda g: {**g, "synthesis.b2048.conv1.weight": torch.zeros(1, 1, 1, 1)}, "resolutions"),
        (lambda g: {**g, "mapping.fc0.weight": torch.zeros(0, 1 << 40)}, "empty"),
        (lambda g: {**g, "mapping.fc0.weight": torch.zeros(1 << 20, 1)}, "another shape"),  # 4 TiB if it were built
    ],
)
def test_other_networks_are_refused(change, message, tmp_path):
    g, _ = golden_states()
    with pytest.raises(UserError, match=message):
        convert([snapshot(tmp_path / "x.pkl", change(g))], 25.0, None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: {k: v for k, v in d.items() if not k.startswith("b")}, "not a complete StyleGAN-V"),
        (lambda d: {**d, "b0.conv0.weight": torch.zeros(1)}, "not a complete StyleGAN-V"),
        (lambda d: {**d, "time_encoder.const_embed.weight": torch.zeros(3)}, "not a complete StyleGAN-V"),
        (lambda d: {**d, "mapping.embed.weight": torch.zeros(())}, "not a complete StyleGAN-V"),
        (lambda d: {k: v for k, v in d.items() if k != "b4.out.weight"}, "lacks"),
    ],
)
def test_other_discriminators_are_refused(change, message, tmp_path):
    g, d = golden_states()
    with pytest.raises(UserError, match=message):
        convert([snapshot(tmp_path / "x.pkl", g, change(d))], 25.0, None)


@pytest.mark.parametrize("spacing", [float("nan"), float("inf"), 1 << 2000])
def test_a_spacing_that_is_no_number_is_refused(spacing, tmp_path):
    g, _ = golden_states()
    path = snapshot(tmp_path / "x.pkl", g, G={"cfg": {"motion_z_distance": spacing}})
    with pytest.raises(UserError, match="not a complete StyleGAN-V"):
        convert([path], 25.0, None)


def test_another_size_is_refused(tmp_path):
    g, _ = golden_states()
    with pytest.raises(UserError, match="makes frames of 32x32"):
        convert([snapshot(tmp_path / "x.pkl", g)], 25.0, (64, 64))


class Evil:
    def __reduce__(self):
        import os

        return os.system, ("touch " + str(Evil.mark),)


def test_hostile_objects_do_nothing(tmp_path):
    Evil.mark = tmp_path / "was-here"
    g, _ = golden_states()
    path = snapshot(tmp_path / "x.pkl", g, training_set_kwargs=Evil(), vis=[Evil()])
    assert convert([path], 25.0, None).name == "stylegan_v"
    assert not Evil.mark.exists()


class Storage:
    """A tensor's storage whose bytes are any pickle."""

    def __init__(self, data: bytes):
        self.data = data

    def __reduce__(self):
        return torch.storage._load_from_bytes, (self.data,)


class Rebuilt:
    def __init__(self, storage):
        self.storage = storage

    def __reduce__(self):
        return torch._utils._rebuild_tensor_v2, (self.storage, 0, (2,), (1,), False, {})


@pytest.mark.parametrize(
    "data",
    [b"", b"no pickle", pickle.dumps(1), pickle.dumps({"a": 1}), "cut", "nested", "text"],
    ids=["empty", "noise", "number", "dict", "cut", "nested", "text"],
)
def test_hostile_storages_are_refused(data, tmp_path):
    whole = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # PyTorch would rather not have storages saved by themselves
        torch.save(torch.ones(2).storage(), whole, _use_new_zipfile_serialization=False)
    if data == "cut":
        data = whole.getvalue()[:-3]
    elif data == "nested":
        buffer = io.BytesIO()
        torch.save(Storage(whole.getvalue()), buffer, _use_new_zipfile_serialization=False)
        data = buffer.getvalue()
    path = tmp_path / "x.pkl"
    path.write_bytes(pickle.dumps({"w": Rebuilt(Storage(data))}))
    with pytest.raises(UserError):
        read_foreign(path, keep=True)
    path.write_bytes(pickle.dumps({"w": Rebuilt(Storage(whole.getvalue()))}))
    assert torch.equal(read_foreign(path)["w"], torch.ones(2))


def test_endless_modules_are_refused():
    loop: dict = {"_modules": {}}
    loop["_modules"]["again"] = loop
    with pytest.raises(UserError, match="without end"):
        list(tensors(loop, set()))


def test_modules_in_two_places_are_refused():
    """A child under two names at each level would be visited 2 ** 30 times."""
    tree: dict = {"_parameters": {"w": torch.ones(1)}}
    for _ in range(30):
        tree = {"_modules": {"a": tree, "b": tree}}
    with pytest.raises(UserError, match="without end or twice"):
        list(tensors(tree, set()))
    activation: dict = {"_parameters": {}, "_modules": {}}  # without weights of its own it may be shared
    leaf = {"_parameters": {"w": torch.ones(1)}}
    assert [name for name, _ in tensors({"_modules": {"a": activation, "b": leaf, "c": activation}}, set())] == [
        "b.w"
    ]


def test_what_objects_hold_is_kept_where_asked_for(tmp_path):
    path = tmp_path / "x.pkl"
    path.write_bytes(pickle.dumps({"cfg": config_node({"a": 1})}))
    read = read_foreign(path, keep=True)["cfg"]
    assert read["_content"]["a"]["_val"] == 1
    assert read["_content"]["a"]["_parent"] is read
    assert "_content" not in str(read_foreign(path)["cfg"])
