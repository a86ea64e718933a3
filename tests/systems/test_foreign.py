"""Foreign checkpoints are read, and never run."""

import argparse
import contextlib
import io
import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from pathlib import PurePosixPath

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longtake.errors import UserError
from longtake.systems.foreign import Inert, read_foreign


class Callback:
    """Stands for a class of the trainer that is not on the list."""

    def __init__(self):
        self.best = torch.zeros(2)

    def __setstate__(self, state):
        raise AssertionError("code of the file was run")


class Evil:
    """Unpickles by calling `function(*arguments)`."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def content():
    base = torch.arange(24.0).view(4, 6)
    return {
        "state_dict": OrderedDict(
            a=base,
            b=base.t(),  # a view of the same storage
            c=base[1:3, 2:5],
            half=torch.randn(3).half(),
            whole=torch.tensor([[1, 2], [3, 4]]),
            flag=torch.tensor(True),
            empty=torch.empty(0, 3),
            bf=torch.randn(2).bfloat16(),
            parameter=torch.nn.Parameter(torch.randn(2, 2)),
        ),
        "hyper_parameters": {
            "args": argparse.Namespace(downsample=(4, 8, 8), lr=1e-4, name="x", nested=argparse.Namespace(a=1))
        },
        "callbacks": {Callback: Callback(), "list": [Callback()]},
        "best": np.float64(0.25),
        "count": np.int64(7),
        "set": {1, 2},
        "size": torch.Size((2, 3)),
        "device": torch.device("cpu"),
        "dtype": torch.float16,
        "epoch": 3,
    }


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("protocol", [1, 2, 4, 5])  # PyTorch cannot write 0
def test_reads_what_pytorch_writes(tmp_path, zipped, protocol):
    path, original = tmp_path / "x.ckpt", content()
    torch.save(original, path, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    read = read_foreign(path)
    assert set(read["state_dict"]) == set(original["state_dict"])
    for name, tensor in original["state_dict"].items():
        assert torch.equal(read["state_dict"][name], tensor), name
        assert read["state_dict"][name].dtype == tensor.dtype
    assert type(read["state_dict"]) is dict
    assert read["hyper_parameters"]["args"] == {
        "downsample": (4, 8, 8),
        "lr": 1e-4,
        "name": "x",
        "nested": {"a": 1},
    }
    assert (read["best"], read["count"], read["set"], read["size"]) == (0.25, 7, {1, 2}, (2, 3))
    assert (read["dtype"], read["epoch"]) == (torch.float16, 3)
    assert isinstance(read["callbacks"]["list"][0], Inert)
    assert "Callback" in repr(read["callbacks"]["list"][0])


def test_reads_plain_pickles_and_safetensors(tmp_path):
    from safetensors.torch import save_file

    (tmp_path / "opt.pkl").write_bytes(pickle.dumps(argparse.Namespace(a=[1, 2], path=PurePosixPath("x"))))
    assert read_foreign(tmp_path / "opt.pkl")["a"] == [1, 2]
    save_file({"w": torch.ones(2)}, tmp_path / "w.safetensors")
    assert torch.equal(read_foreign(tmp_path / "w.safetensors")["w"], torch.ones(2))


def test_skipped_entries_are_not_read(tmp_path):
    path = tmp_path / "x.ckpt"
    torch.save({"state_dict": {"w": torch.ones(2)}, "optimizer_states": [torch.ones(9)]}, path)
    assert set(read_foreign(path, skip=("optimizer_states",))) == {"state_dict"}


def cuda_pickle(location: str) -> bytes:
    """A legacy checkpoint whose one tensor lies on `location`."""
    buffer = io.BytesIO()
    torch.save({"w": torch.tensor([1.0, 2.0])}, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue().replace(
        b"X\x03\x00\x00\x00cpu", b"X" + struct.pack("<I", len(location)) + location.encode()
    )


def test_cuda_tensors_come_to_the_cpu(tmp_path):
    path = tmp_path / "cuda.pth"
    path.write_bytes(cuda_pickle("cuda:3"))
    assert b"cuda:3" in path.read_bytes()
    assert torch.equal(read_foreign(path)["w"], torch.tensor([1.0, 2.0]))
    path.write_bytes(path.read_bytes().replace(b"ctorch\nFloatStorage", b"ctorch.cuda\nFloatStorage"))
    assert read_foreign(path)["w"].device.type == "cpu"


CALLS = [
    (os.system, "touch {flag}"),
    (eval, "open({flag!r}, 'w')"),
    (exec, "open({flag!r}, 'w')"),
    (open, "{flag}", "w"),
    (os.mkdir, "{flag}"),
    (__import__, "this"),
    (getattr, "x", "__class__"),
]


@pytest.mark.parametrize("call", CALLS, ids=lambda c: c[0].__name__)
@pytest.mark.parametrize(
    ("form", "protocol"), [("zip", 2), ("zip", 4), ("legacy", 2), ("pickle", 0), ("pickle", 4)]
)
def test_no_code_runs(tmp_path, call, protocol, form, capsys):
    flag, path = tmp_path / "flag", tmp_path / "evil.ckpt"
    function, *arguments = call
    evil = {"state_dict": {"w": torch.ones(1)}, "x": Evil(function, *(a.format(flag=str(flag)) for a in arguments))}
    if form == "pickle":
        path.write_bytes(pickle.dumps(evil["x"], protocol))
        assert isinstance(read_foreign(path), Inert)
    else:
        torch.save(evil, path, pickle_protocol=protocol, _use_new_zipfile_serialization=form == "zip")
        read = read_foreign(path)
        assert isinstance(read["x"], Inert)
        assert torch.equal(read["state_dict"]["w"], torch.ones(1))
    assert not flag.exists()
    assert capsys.readouterr().out == ""


def test_the_evil_files_of_these_tests_are_evil(tmp_path):
    """The check above would fail with an ordinary unpickler."""
    flag = tmp_path / "flag"
    pickle.loads(pickle.dumps(Evil(os.mkdir, str(flag))))
    assert flag.exists()


@pytest.mark.parametrize(
    "raw",
    [
        b"cposix\nsystem\n(S'touch FLAG'\ntR.",
        b"(S'touch FLAG'\nios\nsystem\n.",
        b"(cos\nsystem\nS'touch FLAG'\no.",
        b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x0atouch FLAG\x85R.",
        b"\x80\x04\x8c\x08builtins\x8c\x0deval.__call__\x93\x8c\x0aopen(FLAG)\x85R.",
        b"cos\nsystem\n(S'touch FLAG'\nt\x81.",
    ],
)
def test_every_way_to_call_is_inert(tmp_path, raw, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.pkl").write_bytes(raw)
    assert isinstance(read_foreign("x.pkl"), Inert)
    assert [p.name for p in tmp_path.iterdir()] == ["x.pkl"]


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"\x80\x02c_codecs\nencode\n}X\x04\x00\x00\x00evilK\x01sb.", "change a function"),
        (b"\x80\x02cargparse\nNamespace\n}X\x04\x00\x00\x00evilK\x01sb.", "not a complete"),
        (b"\x82\x01.", "extensions"),
        (b"Nr\xff\xff\xff\xff.", "memory"),
        (b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\x00\x00x.", "not a complete"),
        (b"\x80\x02X\x01\x00\x00\x00aQ.", "outside itself"),
        (b"c_codecs\nencode\n(Vx\nVrot13\ntR.", "encoding"),
        (b"ctorch._utils\n_rebuild_tensor_v2\n(NI0\n(t(ttR.", "no storage"),
        (b"]q\x00h\x00a.", "not a complete"),  # a list that holds itself
        (b"", "not a complete"),
        (b"hello, this is no checkpoint", "not a complete"),
    ],
)
def test_hostile_pickles_are_refused(tmp_path, raw, reason):
    path = tmp_path / "x.pth"
    path.write_bytes(raw)
    with pytest.raises(UserError, match=reason) as caught:
        read_foreign(path)
    assert str(path) in str(caught.value)


def archive(path, data_pkl: bytes, storage: bytes = b"", compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as z:
        z.writestr("a/data.pkl", data_pkl)
        z.writestr("a/data/0", storage)
    return path


STORAGE = object()


def tensor_pickle(numel: int, size: tuple, stride: tuple, offset: int = 0) -> bytes:
    class Pickler(pickle.Pickler):
        def persistent_id(self, obj):
            return ("storage", torch.FloatStorage, "0", "cpu", numel) if obj is STORAGE else None

    buffer = io.BytesIO()
    call = Evil(torch._utils._rebuild_tensor_v2, STORAGE, offset, size, stride, False, OrderedDict())
    Pickler(buffer, 2).dump({"w": call})
    return buffer.getvalue()


def test_the_hand_made_archive_is_sound(tmp_path):
    path = archive(tmp_path / "x.pt", tensor_pickle(4, (2, 2), (2, 1)), struct.pack("<4f", 1, 2, 3, 4))
    assert torch.equal(read_foreign(path)["w"], torch.tensor([[1.0, 2.0], [3.0, 4.0]]))


@pytest.mark.parametrize(
    ("numel", "size", "stride", "offset"),
    [
        (4, (1 << 40,), (0,), 0),
        (4, (3, 2), (2, 1), 0),
        (4, (2,), (1,), 3),
        (4, (-1,), (1,), 0),
        (4, (2, 2), (2,), 0),
    ],
)
def test_tensors_beyond_their_storage_are_refused(tmp_path, numel, size, stride, offset):
    path = archive(tmp_path / "x.pt", tensor_pickle(numel, size, stride, offset), bytes(16))
    with pytest.raises(UserError, match="a tensor in it"):
        read_foreign(path)


def test_zips_that_are_no_checkpoint_or_a_bomb_are_refused(tmp_path):
    bomb = archive(tmp_path / "bomb.pt", tensor_pickle(4, (4,), (1,)), bytes(1 << 24), zipfile.ZIP_DEFLATED)
    assert bomb.stat().st_size < 1 << 17
    with pytest.raises(UserError, match="compressed"):
        read_foreign(bomb)
    other = tmp_path / "other.pt"
    with zipfile.ZipFile(other, "w") as z:
        z.writestr("readme.txt", "hello")
    with pytest.raises(UserError, match="not a PyTorch checkpoint"):
        read_foreign(other)
    short = archive(tmp_path / "short.pt", tensor_pickle(4, (4,), (1,)), bytes(8))
    with pytest.raises(UserError, match="cut short"):
        read_foreign(short)


def test_shared_parts_are_visited_once(tmp_path):
    """2 ** 60 lists if they were not."""
    tree = [1]
    for _ in range(60):
        tree = [tree, tree]
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(tree))
    assert len(read_foreign(tmp_path / "x.pkl")) == 2


@pytest.mark.parametrize("zipped", [True, False])
@given(fraction=st.floats(0, 0.999), flip=st.booleans(), value=st.integers(0, 255))
@settings(max_examples=60, deadline=None)
def test_damaged_files_give_an_error_or_data(tmp_path_factory, zipped, fraction, flip, value):
    """Cut anywhere: a UserError. One byte changed: a UserError, or data that happen to be readable."""
    buffer = io.BytesIO()
    torch.save(content(), buffer, _use_new_zipfile_serialization=zipped)
    raw = bytearray(buffer.getvalue())
    place = int(fraction * len(raw))
    path = tmp_path_factory.mktemp("damaged") / "x.pt"
    if flip:
        raw[place] = value
        path.write_bytes(raw)
        with contextlib.suppress(UserError):
            read_foreign(path)
    else:
        path.write_bytes(raw[:place])
        with pytest.raises(UserError):
            read_foreign(path)


def test_says_when_the_file_is_missing(tmp_path):
    with pytest.raises(UserError, match=r"cannot read .*missing\.ckpt"):
        read_foreign(tmp_path / "missing.ckpt")
