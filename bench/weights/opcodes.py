"""A pickle's opcodes, looked over before anything builds what they ask for."""

from __future__ import annotations

import pickle
import pickletools
from typing import Any, ClassVar

from results.errors import BenchError

MEMO_OPCODES = ("PUT", "BINPUT", "LONG_BINPUT")
DEEPEST = 1000
"""Levels of containers in one another: the interpreter hashes and compares tuples by recursion, without a limit."""


class CodeRefused(pickle.UnpicklingError):
    """A pickle names something that is not data; nothing in it was run."""


class Bomb(BenchError):
    """A file asks for more memory or time than its own size accounts for."""


def check_opcodes(content: Any, start: int = 0) -> int:
    """Return where the pickle that begins at `start` of `content` (a mapped file, or BytesIO) ends.

    Raises Bomb for a memo that is larger than the file (the C reader would allocate it before it looked) and for
    containers nested so deep that hashing them would end the process; CodeRefused for classes by number.
    """
    content.seek(start)
    depths = _Depths()
    try:
        for opcode, argument, position in pickletools.genops(content):
            if opcode.name in MEMO_OPCODES and int(argument or 0) > (position or 0) - start + 1:
                raise Bomb(f"its memo would hold {argument:,} entries, more than the file accounts for; do not use it")
            if opcode.name.startswith("EXT"):
                raise CodeRefused("a class by its number in copyreg")
            depths.follow(opcode, argument)
    except (ValueError, EOFError, IndexError, KeyError) as error:
        raise BenchError("its pickle is truncated or damaged; fetch the file again") from error
    return int(content.tell())


class _Depths:
    """The reader's stack with nothing on it but how deep each object is nested, in a cell that its mutations update."""

    MARK: ClassVar[list[int]] = []
    FILLING: ClassVar[set[str]] = {"APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD"}

    def __init__(self) -> None:
        self.stack: list[list[int]] = []
        self.memo: dict[int, list[int]] = {}

    def follow(self, opcode: pickletools.OpcodeInfo, argument: Any) -> None:
        """Do to the depths what `opcode` does to objects. Raises IndexError or KeyError for what is not there."""
        stack, name = self.stack, opcode.name
        if name in MEMO_OPCODES or name == "MEMOIZE":
            self.memo[len(self.memo) if name == "MEMOIZE" else int(argument)] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(self.memo[int(argument)])
        elif name == "MARK":
            stack.append(self.MARK)
        elif name == "POP":
            stack.pop()
        elif name == "DUP":
            stack.append(stack[-1])
        elif not opcode.stack_before:
            if opcode.stack_after:
                stack.append([0])
        else:
            self._consume(opcode)

    def _consume(self, opcode: pickletools.OpcodeInfo) -> None:
        before, taken = len(opcode.stack_before), []
        if pickletools.markobject in opcode.stack_before:
            while (cell := self.stack.pop()) is not self.MARK:
                taken.append(cell)
            before = opcode.stack_before.index(pickletools.markobject)
        below = [self.stack.pop() for _ in range(before)]
        if opcode.name in self.FILLING:
            held = below.pop()
            deepest = max((cell[0] for cell in (*taken, *below)), default=-1) + 1
            held[0] = max(held[0], deepest)
        else:
            held = [max((cell[0] for cell in (*taken, *below)), default=-1) + 1]
        if held[0] > DEEPEST:
            raise Bomb(f"its containers are nested more than {DEEPEST:,} levels deep; do not use it")
        if opcode.stack_after:
            self.stack.append(held)
