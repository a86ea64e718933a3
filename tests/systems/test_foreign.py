"""Foreign checkpoints are read, and never run."""

import argparse
import contextlib
import io
import os
import pickle
import struct
import warnings
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


DEEP = 600_000
"""Python's hash of tuples nested so deeply overflows the C stack."""
NESTINGS = {
    "plain": b"\x85" * DEEP,
    "memoized": b"\x85\x94" * DEEP,
    "beside others": b"N\x86" * DEEP,
    "marked": b"\x85N0" * DEEP,
    "from the memo": b"q\x000h\x00\x85" * DEEP,
    "doubled": b"2\x86" * DEEP,
    "as an argument": b"ctorch._utils\n_rebuild_parameter\nq\x010" + b"\x85q\x000(h\x01h\x00o\x85" * DEEP,
}


@pytest.mark.parametrize("nesting", NESTINGS.values(), ids=NESTINGS)
def test_endless_tuples_are_refused(nesting, tmp_path):
    path = tmp_path / "x.pkl"
    path.write_bytes(b"\x80\x04N" + nesting + b"q\x000}h\x00Ns.")
    with pytest.raises(UserError, match="nests tuples"):
        read_foreign(path)


def test_sizes_nest_no_tuples(tmp_path):
    """They take lists, whose depth is not known."""
    path = tmp_path / "x.pkl"
    path.write_bytes(b"\x80\x04ctorch\nSize\nq\x010]" + b"q\x000(h\x01]h\x00ao" * 1000 + b".")
    with pytest.raises(UserError, match="impossible shape"):
        read_foreign(path)


@pytest.mark.parametrize("protocol", range(6))
def test_many_tuples_side_by_side_are_no_nesting(protocol, tmp_path):
    tree = {"state": {(i, (i,)): (i, {"step": (i, frozenset((i, (1, 2, 3))))}) for i in range(2000)}, "deep": 0}
    for _ in range(100):
        tree["deep"] = (tree["deep"],)
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(tree, protocol))
    assert read_foreign(tmp_path / "x.pkl", keep=True)["state"].keys() == tree["state"].keys()


COPIES = {
    "text": (b"X" + struct.pack("<I", 50_000) + b"x" * 50_000, b"c_codecs\nencode\n", b"h\x01h\x00\x85R"),
    "path": (b"X" + struct.pack("<I", 50_000) + b"x" * 50_000, b"cpathlib\nPosixPath\n", b"h\x01h\x00\x85R"),
    "size": (b"](" + b"K\x01" * 50_000 + b"e", b"ctorch\nSize\n", b"h\x01h\x00\x85R"),
    "set": (b"](" + b"".join(b"M" + struct.pack("<H", i) for i in range(50_000)) + b"e",
            b"cbuiltins\nset\n", b"h\x01h\x00\x85R"),
    **{
        name: (b"}(" + b"".join(b"M" + struct.pack("<H", i) + b"N" for i in range(50_000)) + b"u", named, copy)
        for name, named, copy in (
            ("ordered", b"ccollections\nOrderedDict\n", b"h\x01h\x00\x85R"),
            ("namespace", b"cargparse\nNamespace\n", b"h\x01)\x81h\x00b"),
            ("object", b"canything\nelse\n", b"h\x01)\x81h\x00b"),
        )
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", COPIES)
def test_copies_without_end_are_refused(kind, tmp_path):
    """Six bytes a copy: the memory would be a thousand times the file."""
    large, named, copy = COPIES[kind]
    path = tmp_path / "x.pkl"
    for copies in (1, 100):
        path.write_bytes(b"\x80\x02" + large + b"q\x000" + named + b"q\x010](" + copy * copies + b"e.")
        if copies == 1:
            assert len(read_foreign(path, keep=True)) == 1
        else:
            with pytest.raises(UserError, match="too much memory"):
                read_foreign(path, keep=True)


def test_a_nested_storage_again_and_again_is_refused(tmp_path):
    whole = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        torch.save(torch.ones(5000).storage(), whole, _use_new_zipfile_serialization=False)
    data = whole.getvalue()
    head = b"\x80\x04B" + struct.pack("<I", len(data)) + data + b"q\x000ctorch.storage\n_load_from_bytes\nq\x010]("
    (tmp_path / "x.pkl").write_bytes(head + b"h\x01h\x00\x85R" * 10 + b"e.")
    with pytest.raises(UserError, match="too much memory"):
        read_foreign(tmp_path / "x.pkl")


def test_honest_copies_are_not_counted_as_hostile(tmp_path):
    """The densest there are: small numbers in sets, as old protocols write them."""
    content = [set(range(256)) for _ in range(500)]
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(content, 2))
    assert read_foreign(tmp_path / "x.pkl") == content


def test_classes_without_end_are_refused(tmp_path):
    path = tmp_path / "x.pkl"
    path.write_bytes(b"](" + b"".join(b"cm\nc%d\n" % i for i in range(10_001)) + b"e.")
    with pytest.raises(UserError, match="10,000 classes"):
        read_foreign(path)


def test_tensors_of_too_many_dimensions_are_refused(tmp_path):
    path = archive(tmp_path / "x.pt", tensor_pickle(4, (1,) * 65, (1,) * 65), bytes(16))
    with pytest.raises(UserError, match="a tensor in it"):
        read_foreign(path)
