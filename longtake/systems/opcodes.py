"""Looks through the instructions of a pickle, without following them, for what could harm who follows them."""

from __future__ import annotations

import pickle
import pickletools
from typing import Any, BinaryIO

MAX_PICKLE = 256 << 20
MAX_MEMO = 1 << 22
MAX_NESTING = 500
"""Deepest nesting of tuples: Python hashes them by recursion on the C stack, which it does not guard."""


class RefusedError(Exception):
    """Why a file cannot be read; becomes a UserError with the file's name."""


_TUPLES = {"TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "FROZENSET"}
_PASSING = {"REDUCE", "BUILD", "OBJ", "INST", "NEWOBJ", "NEWOBJ_EX", "DUP", "MEMOIZE"}
"""What can have one of the values that it takes as its result."""


def inspect(file: BinaryIO, start: int, large: bool) -> None:
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
