"""What stands in for the objects of foreign checkpoints: they hold things and do nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


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
