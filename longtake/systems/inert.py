"""What stands in for the objects of foreign checkpoints: they hold things and do nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np


class RefusedError(Exception):
    """Why a file cannot be read; becomes a UserError with the file's name."""


class Inert:
    """Stands for an object of a class that is not on the list; `origin` says which. It can do nothing."""

    origin = ""

    def __new__(cls, *args: Any, **kwargs: Any) -> Inert:
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, item: Any) -> None:
        pass

    def extend(self, items: Any) -> None:
        pass

    def add(self, item: Any) -> None:
        pass

    def __repr__(self) -> str:
        return f"<inert {self.origin}>"


class Record(dict):
    """An `argparse.Namespace` as a mapping of its names."""

    pay: Callable[[Any], None] = staticmethod(lambda state: None)
    """Told of every state that is copied."""

    def __init__(self, *args: Any, **kwargs: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.pay(state)
            self.update({k: v for k, v in dict.items(state) if isinstance(k, str)})


class Kept(Record):
    """Any other object as a mapping: what it was made from stands under "()", beside its state and its items."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Kept:
        made = super().__new__(cls)
        if args:
            dict.__setitem__(made, "()", args)
        return made

    def append(self, item: Any) -> None:
        pass

    def extend(self, items: Any) -> None:
        pass

    def add(self, item: Any) -> None:
        pass


def encode(characters: Any, encoding: Any = "latin1") -> bytes:
    """Bytes in pickles of protocol 2 come as text."""
    if encoding != "latin1" or not isinstance(characters, str):
        raise RefusedError("it holds text in an unexpected encoding")
    return characters.encode("latin1")


class NumpyType:
    """A numpy dtype, as pickled: a code such as "f8", then its byte order; `dtype` is None if not numeric."""

    def __init__(self, code: Any, *rest: Any):
        numeric = code in {"b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"}
        self.dtype = np.dtype(code) if numeric else None

    def __setstate__(self, state: Any) -> None:
        if self.dtype is not None and isinstance(state, tuple) and state[1:2] == (">",):
            self.dtype = self.dtype.newbyteorder(">")


def numpy_scalar(kind: Any, raw: Any) -> Any:
    dtype = kind.dtype if isinstance(kind, NumpyType) else None
    if dtype is None or not isinstance(raw, bytes) or len(raw) != dtype.itemsize:
        return Inert()
    return np.frombuffer(raw, dtype)[0].item()


def reconstruct(cls: Any, *rest: Any) -> Any:
    """`copyreg._reconstructor`, by which old protocols make an empty object."""
    return cls() if isinstance(cls, type) and issubclass(cls, Inert | Record) else Inert()


def text(*parts: Any) -> str:
    return "/".join(p for p in parts if isinstance(p, str))


def size_of(numbers: Any = ()) -> tuple[int, ...]:
    """`torch.Size`; of numbers alone, or it would nest tuples by way of lists (see `foreign._inspect`)."""
    if not isinstance(numbers, tuple | list) or not all(type(n) is int for n in numbers):
        raise RefusedError("a tensor in it has an impossible shape")
    return tuple(numbers)


class Function:
    """One allowed callable, sealed: a pickle can call it but not set anything on it. `pay` is told what it made."""

    __slots__ = ("_pay", "_run")

    def __init__(self, run: Callable[..., Any], pay: Callable[[Any], None]):
        self._run, self._pay = run, pay

    def __call__(self, *args: Any) -> Any:
        made = self._run(*args)
        self._pay(made)
        return made

    def __setstate__(self, state: Any) -> None:
        raise RefusedError("its pickle tries to change a function")
