"""Reads checkpoints written by other programs without running any of the code they name.

A PyTorch file is a pickle, and a pickle is a program: loading one with `torch.load` may run anything. Here a pickle
can name only what stands in `_ALLOWED`; everything else it names becomes an `Inert` object, which takes whatever is
given to it and does nothing. Nothing is ever imported, and CUDA tensors are read to the CPU.

Bounds, past which a file is refused: a zip must be stored uncompressed and hold no more than its own size (so it
cannot be a bomb), one pickle at most 256 MiB unless what all its objects hold is asked for, tuples nested 500 deep,
10,000 unknown classes, copies that its calls make no more than twice what it holds, and a tensor no more elements
than its storage.
"""

from __future__ import annotations

import io
import pickle
import pickletools
import struct
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from longtake.errors import UserError
from longtake.systems.inert import (
    Function,
    Inert,
    Kept,
    NumpyType,
    Record,
    RefusedError,
    encode,
    numpy_scalar,
    reconstruct,
    size_of,
    text,
)

WEIGHTS = (".pth", ".pt", ".ckpt", ".safetensors")
"""Endings of files of weights."""
MAX_PICKLE = 256 << 20
MAX_MEMO = 1 << 22
MAX_NESTING = 500
"""Deepest nesting of tuples: Python hashes them by recursion on the C stack, which it does not guard."""
MAX_STUBS = 10_000
MAX_DIMENSIONS = 64
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "UntypedStorage": torch.uint8,
}


@dataclass(frozen=True)
class _Storage:
    key: str
    dtype: torch.dtype
    numel: int
    raw: memoryview | None = None  # of a storage that stands within the pickle itself
    cost: int = 0  # bytes of the pickle that had to be read for it

    @property
    def nbytes(self) -> int:
        return self.numel * self.dtype.itemsize


@dataclass(frozen=True)
class _Tensor:
    """A tensor whose numbers have not been read yet."""

    storage: _Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


_DAMAGED = (
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    SafetensorError,
    struct.error,
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    RuntimeError,  # also RecursionError and NotImplementedError
    TypeError,
    ValueError,
)  # whatever a damaged or hostile file can make the readers raise


def _rebuild_tensor(storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> Any:
    if not isinstance(storage, _Storage):
        raise RefusedError("a tensor in it has no storage")
    if not (isinstance(size, tuple | list) and isinstance(stride, tuple | list) and len(size) <= MAX_DIMENSIONS):
        raise RefusedError("a tensor in it has an impossible shape")
    size, stride = tuple(size), tuple(stride[: MAX_DIMENSIONS + 1])
    numbers = (offset, *size, *stride)
    if len(size) != len(stride) or not all(type(n) is int and 0 <= n < 1 << 48 for n in numbers):
        raise RefusedError("a tensor in it has an impossible shape")
    count = 1
    for n in size:
        count *= n
    reach = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) + 1 if count else offset
    if reach > storage.numel or count > storage.numel:
        raise RefusedError("a tensor in it is larger than its storage")
    return _Tensor(storage, offset, size, stride)


def _rebuild_parameter(data: Any, *rest: Any) -> Any:
    return data


def _nested_storage(data: Any) -> Any:
    """`torch.storage._load_from_bytes`: a plain pickle holds every storage as a file of its own."""
    if not isinstance(data, bytes):
        raise RefusedError("a storage in it is not described as PyTorch does")
    file = io.BytesIO(data)
    if _unpickle(file, nested=True)[0] != LEGACY_MAGIC:
        raise RefusedError("a storage in it is not described as PyTorch does")
    storage, places = _read_legacy(file, len(data), nested=True)
    if not isinstance(storage, _Storage):
        raise RefusedError("a storage in it is not described as PyTorch does")
    start = places[storage.key]
    raw = memoryview(data)[start : start + storage.nbytes]  # no copy, however often the same bytes are named
    return replace(storage, key=f"nested {id(data)}", raw=raw, cost=len(data))


_ALLOWED: dict[tuple[str, str], Callable[..., Any]] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("copyreg", "_reconstructor"): reconstruct,
    ("copy_reg", "_reconstructor"): reconstruct,
    ("_codecs", "encode"): encode,
    ("builtins", "set"): set,
    ("__builtin__", "set"): set,
    ("pathlib", "PosixPath"): text,
    ("pathlib", "WindowsPath"): text,
    ("torch", "Size"): size_of,
    ("torch", "device"): text,
    ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _rebuild_parameter,
    ("torch.storage", "_load_from_bytes"): _nested_storage,
    ("numpy", "dtype"): NumpyType,
    ("numpy.core.multiarray", "scalar"): numpy_scalar,
    ("numpy._core.multiarray", "scalar"): numpy_scalar,
}


class _Unpickler(pickle.Unpickler):
    """Names nothing but what is allowed; `storages` lists those the pickle refers to, by key."""

    def __init__(self, data: bytes, keep: bool, nested: bool):
        super().__init__(io.BytesIO(data), encoding="latin1")
        self.nested = nested
        self.base = Kept if keep else Inert
        self.left = 2 * len(data) + 4096
        self.named: dict[tuple[str, str], Any] = {}
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        if self.nested and name == "_load_from_bytes":
            raise RefusedError("a storage in it holds others")
        if module in ("torch", "torch.cuda", "torch.storage") and name in _DTYPES:
            return _DTYPES[name]
        if module == "torch" and isinstance(dtype := torch.__dict__.get(name), torch.dtype):
            return dtype
        if (module, name) not in self.named:
            self.named[module, name] = self._make(module, name)
        return self.named[module, name]

    def _make(self, module: str, name: str) -> Any:
        """What stands for something that is named for the first time."""
        if (module, name) in _ALLOWED:
            return Function(_ALLOWED[module, name], self.pay)
        if len(self.named) >= MAX_STUBS:
            raise RefusedError(f"it names more than {MAX_STUBS:,} classes")
        base = Record if (module, name) == ("argparse", "Namespace") else self.base
        return type("Stub", (base,), {"origin": f"{module}.{name}", "pay": staticmethod(self.pay)})

    def pay(self, made: Any) -> None:
        """Counts what a call has copied: a few bytes of pickle can ask again and again for a copy of one large
        object, but of an honest file every part is copied once. An entry is counted as 3 bytes."""
        if isinstance(made, _Storage):
            self.left -= made.cost
        elif isinstance(made, str | bytes):
            self.left -= len(made)
        elif isinstance(made, dict | set | tuple):
            self.left -= 3 * len(made)
        if self.left < 0:
            raise RefusedError("its pickle asks for too much memory")

    def persistent_load(self, pid: Any) -> Any:
        if not (isinstance(pid, tuple) and len(pid) >= 5 and pid[0] == "storage"):
            raise RefusedError("it refers to something outside itself")
        _, dtype, key, _, numel = pid[:5]
        if not (isinstance(dtype, torch.dtype) and isinstance(key, str) and type(numel) is int and numel >= 0):
            raise RefusedError("a storage in it is not described as PyTorch does")
        if len(pid) > 5 and pid[5] is not None:
            raise RefusedError("it was written by a PyTorch older than 0.4")
        storage = _Storage(key, dtype, numel)
        if self.storages.setdefault(key, storage) != storage:
            raise RefusedError(f"storage {key} is described twice, differently")
        return storage


def _unpickle(file: BinaryIO, keep: bool = False, nested: bool = False) -> tuple[Any, dict[str, _Storage]]:
    """The next pickle of `file`, which is left just behind it, and the storages it refers to."""
    start = file.tell()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # unknown escapes in the strings of damaged files
        _inspect(file, start, keep)
        length = file.tell() - start
        file.seek(start)
        unpickler = _Unpickler(file.read(length), keep, nested)
        return unpickler.load(), unpickler.storages


_TUPLES = {"TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "FROZENSET"}
_PASSING = {"REDUCE", "BUILD", "OBJ", "INST", "NEWOBJ", "NEWOBJ_EX", "DUP", "MEMOIZE"}
"""What can have one of the values that it takes as its result."""


def _inspect(file: BinaryIO, start: int, large: bool) -> None:
    """Walks through the instructions of a pickle without following them; refuses those that could do harm."""
    depths = _Depths()
    for opcode, argument, position in pickletools.genops(file):
        if opcode.name.startswith("EXT"):
            raise RefusedError("its pickle uses registered extensions")
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and not 0 <= int(argument or 0) < MAX_MEMO:
            raise RefusedError("its pickle asks for too much memory")
        if not large and position is not None and position - start > MAX_PICKLE:
            raise RefusedError(f"its pickle is larger than {MAX_PICKLE >> 20} MiB")
        depths.follow(opcode, argument)


class _Depths:
    """The stack of a pickle's machine, of every value only how deeply tuples are nested in it.

    What can change (lists, dicts, objects) counts as 0, because it cannot be hashed; so tuples nest through
    instructions alone.
    """

    def __init__(self):
        self.stack: list[int] = []
        self.marks: list[int] = []
        self.memo: dict[int, int] = {}

    def follow(self, opcode: pickletools.OpcodeInfo, argument: Any) -> None:
        """One instruction."""
        name, stack = opcode.name, self.stack
        if name == "MARK":
            self.marks.append(len(stack))
        elif name == "POP" and self.marks and self.marks[-1] == len(stack):
            self.marks.pop()
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            self.memo[int(argument)] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(self.memo[int(argument)])
        else:
            depth = max(self._take(opcode), default=0)
            depth = depth + 1 if name in _TUPLES else depth if name in _PASSING else 0
            if depth > MAX_NESTING:
                raise RefusedError(f"its pickle nests tuples more than {MAX_NESTING} deep")
            if name == "MEMOIZE":
                self.memo[len(self.memo)] = depth
            stack += [depth] * len(opcode.stack_after)

    def _take(self, opcode: pickletools.OpcodeInfo) -> list[int]:
        """The values that an instruction takes off the stack."""
        kinds = opcode.stack_before
        bottom = len(self.stack) - len(kinds)
        if pickletools.markobject in kinds:
            bottom = self.marks.pop() - kinds.index(pickletools.markobject)
        if bottom < 0:
            raise pickle.UnpicklingError("its pickle takes more than there is")
        taken = self.stack[bottom:]
        del self.stack[bottom:]
        return taken


def _resolve(tree: Any, read: Callable[[_Storage], bytearray]) -> Any:
    """`tree` with its tensors read and every container a plain dict, list or tuple."""
    storages: dict[str, torch.Tensor] = {}
    done: dict[int, Any] = {}  # by identity: shared parts are visited once

    def tensor(t: _Tensor) -> torch.Tensor:
        s = t.storage
        if s.key not in storages:
            raw = read(s) if s.raw is None else bytearray(s.raw)
            if len(raw) != s.nbytes:
                raise RefusedError(f"it is cut short: storage {s.key} has {len(raw)} of {s.nbytes} bytes")
            storages[s.key] = torch.frombuffer(raw, dtype=s.dtype) if raw else torch.empty(0, dtype=s.dtype)
        return storages[s.key].as_strided(t.size, t.stride, t.offset)

    def visit(x: Any) -> Any:
        if id(x) not in done:
            if isinstance(x, _Tensor):
                done[id(x)] = tensor(x)
            elif isinstance(x, Kept):  # known before what it holds, which may be itself
                done[id(x)] = whole = {}
                whole.update({k: visit(v) for k, v in dict.items(x)})
            elif isinstance(x, dict):
                done[id(x)] = {k: visit(v) for k, v in dict.items(x)}
            elif isinstance(x, list):
                done[id(x)] = [visit(v) for v in x]
            elif isinstance(x, tuple):
                done[id(x)] = tuple(visit(v) for v in x)
            else:
                done[id(x)] = x
        return done[id(x)]

    return visit(tree)


def _without(tree: Any, skip: Collection[str]) -> Any:
    return {k: v for k, v in dict.items(tree) if k not in skip} if isinstance(tree, dict) else tree


def _read_zip(path: Path, skip: Collection[str], keep: bool) -> Any:
    with zipfile.ZipFile(path) as archive:
        entries = {e.filename: e for e in archive.infolist()}
        if any(e.compress_type != zipfile.ZIP_STORED for e in entries.values()):
            raise RefusedError("its zip is compressed, which PyTorch never does")
        if sum(e.file_size for e in archive.infolist()) > path.stat().st_size:
            raise RefusedError("its zip claims more than it can hold")
        pickles = [name for name in entries if name.split("/")[-1] == "data.pkl"]
        if len(pickles) != 1:
            raise RefusedError("its zip is not a PyTorch checkpoint")
        if entries[pickles[0]].file_size > MAX_PICKLE:
            raise RefusedError(f"its pickle is larger than {MAX_PICKLE >> 20} MiB")
        root = pickles[0].removesuffix("data.pkl")
        if root + "byteorder" in entries and archive.read(root + "byteorder") != b"little":
            raise RefusedError("its numbers are big-endian")
        tree, _ = _unpickle(io.BytesIO(archive.read(pickles[0])), keep)

        def read(storage: _Storage) -> bytearray:
            name = f"{root}data/{storage.key}"
            if name not in entries:
                raise RefusedError(f"storage {storage.key} is missing")
            return bytearray(archive.read(name))

        return _resolve(_without(tree, skip), read)


def _read_legacy(file: BinaryIO, size: int, nested: bool = False) -> tuple[Any, dict[str, int]]:
    """What follows the magic number in a file of `size` bytes: the tree, and where each storage lies."""
    _unpickle(file, nested=nested)  # the protocol version
    _unpickle(file, nested=nested)  # the sizes of the writer's integers
    tree, storages = _unpickle(file, nested=nested)
    keys, _ = _unpickle(file, nested=nested)
    places: dict[str, int] = {}
    for key in keys:
        (numel,) = struct.unpack("<q", file.read(8))
        if storages[key].numel != numel:
            raise RefusedError(f"storage {key} has another size than its tensors say")
        places[key] = file.tell()
        file.seek(storages[key].nbytes, io.SEEK_CUR)
    if file.tell() > size:
        raise RefusedError("it is cut short")
    return tree, places


def _read_pickles(path: Path, skip: Collection[str], keep: bool) -> Any:
    """The format before PyTorch 1.6 (pickles, then the storages one behind the other), or a plain pickle."""
    with path.open("rb") as file:
        tree, _ = _unpickle(file, keep)
        places: dict[str, int] = {}
        if tree == LEGACY_MAGIC:
            tree, places = _read_legacy(file, path.stat().st_size)

        def read(storage: _Storage) -> bytearray:
            file.seek(places[storage.key])
            return bytearray(file.read(storage.nbytes))

        return _resolve(_without(tree, skip), read)


def read_foreign(path: Path | str, skip: Collection[str] = (), keep: bool = False) -> Any:
    """What a .pt, .pth, .ckpt, .pkl or .safetensors file holds, as plain dicts, lists, tuples, numbers and tensors.

    Objects of any other class are `Inert`, or with `keep` dicts of what they hold (see `Kept`; a pickle may then be
    of any size); an `argparse.Namespace` is a `dict`. The entries `skip` of the outermost dict are left out and
    their tensors not read (the state of optimisers is most of many a file). Raises UserError if the file is
    missing, damaged, hostile or not a checkpoint.
    """
    path = Path(path)
    try:
        if path.suffix == ".safetensors":
            return _without(load_file(path), skip)
        with path.open("rb") as file:
            zipped = file.read(4) == b"PK\x03\x04"
        return (_read_zip if zipped else _read_pickles)(path, skip, keep)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}; give a checkpoint file") from error
    except RefusedError as error:
        raise UserError(f"{path} cannot be used: {error}; give a file as PyTorch writes it") from error
    except _DAMAGED as error:
        raise UserError(f"{path} is not a complete checkpoint ({error}); get it again") from error
