"""What the pickle inside a torch checkpoint says about tensors, without unpickling it.

A pickle is a program for a small stack machine, and Python's own machine can be told to call anything. This one knows
the instructions that `torch.save` uses for a dictionary of tensors and a fixed list of names; it imports nothing, calls
nothing and sets no attribute. What it builds are numbers, text, tuples, lists, dictionaries and the descriptions below;
any other instruction or name ends the reading. Instructions: the comments of `pickletools` in Python's library.
"""

from __future__ import annotations

import pickle
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

MAX_INSTRUCTIONS = 1 << 17  # `torch.save` takes about 45 a tensor
MAX_DIMS = 8

# Name of the storage class -> dtype, bytes a value.
STORAGES = {
    "torch.FloatStorage": ("f32", 4),
    "torch.HalfStorage": ("f16", 2),
    "torch.BFloat16Storage": ("bf16", 2),
    "torch.DoubleStorage": ("f64", 8),
    "torch.LongStorage": ("i64", 8),
    "torch.IntStorage": ("i32", 4),
    "torch.ShortStorage": ("i16", 2),
    "torch.CharStorage": ("i8", 1),
    "torch.ByteStorage": ("u8", 1),
    "torch.BoolStorage": ("bool", 1),
}


class PickleProblem(Exception):
    """The pickle is damaged, or asks for something that no tensor needs."""


@dataclass(frozen=True)
class Storage:
    """A run of values kept outside the pickle, under `key`."""

    dtype: str
    item_bytes: int
    key: str
    n_values: int


@dataclass(frozen=True)
class StoredTensor:
    """A tensor as a part of a storage; offset and strides in values."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(frozen=True)
class _Name:
    """A name of the allowed list, not what it names."""

    name: str


def read_tensors(data: bytes) -> dict[str, StoredTensor]:
    """The tensors of a pickled dictionary, by key; entries of other kinds are left out.

    Raises:
        PickleProblem: see there. Its text is hostile: escape it before showing it.
    """
    found = _Machine(data).run()
    if not isinstance(found, dict):
        raise PickleProblem("holds no dictionary of tensors")
    return {key: x for key, x in found.items() if isinstance(key, str) and isinstance(x, StoredTensor)}


# -- the names that a pickle may use, each with what REDUCE does for it


def _is_count(x: object) -> bool:
    return type(x) is int and x >= 0


def _rebuild_tensor(storage: object, offset: object, shape: object, strides: object, *_: object) -> StoredTensor:
    if (
        not isinstance(storage, Storage)
        or not _is_count(offset)
        or not isinstance(shape, tuple)
        or not isinstance(strides, tuple)
        or not len(shape) == len(strides) <= MAX_DIMS
        or not all(map(_is_count, shape + strides))
    ):
        raise PickleProblem("describes a tensor in a way that torch does not")
    return StoredTensor(storage, offset, shape, strides)  # type: ignore[arg-type]


def _rebuild_parameter(tensor: object, *_: object) -> StoredTensor:
    if not isinstance(tensor, StoredTensor):
        raise PickleProblem("describes a parameter in a way that torch does not")
    return tensor


def _ordered_dict(*items: object) -> dict[Any, Any]:
    if items:
        raise PickleProblem("describes an OrderedDict in a way that torch does not")
    return {}


_CALLS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": _ordered_dict,
    "torch._utils._rebuild_tensor": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
    "torch._utils._rebuild_parameter_with_state": _rebuild_parameter,
}

# -- the instructions, by what they take

_NEW: dict[bytes, Callable[[], object]] = {
    pickle.NONE: lambda: None,
    pickle.NEWTRUE: lambda: True,
    pickle.NEWFALSE: lambda: False,
    pickle.EMPTY_TUPLE: tuple,
    pickle.EMPTY_LIST: list,
    pickle.EMPTY_DICT: dict,
}
_NUMBERS = {
    pickle.BININT: struct.Struct("<i"),
    pickle.BININT1: struct.Struct("<B"),
    pickle.BININT2: struct.Struct("<H"),
    pickle.BINFLOAT: struct.Struct(">d"),
}
_TEXTS = {
    pickle.SHORT_BINUNICODE: struct.Struct("<B"),
    pickle.BINUNICODE: struct.Struct("<I"),
    pickle.BINUNICODE8: struct.Struct("<Q"),
}
_PUTS = {pickle.BINPUT: struct.Struct("<B"), pickle.LONG_BINPUT: struct.Struct("<I")}
_GETS = {pickle.BINGET: struct.Struct("<B"), pickle.LONG_BINGET: struct.Struct("<I")}
_TUPLES = {pickle.TUPLE1: 1, pickle.TUPLE2: 2, pickle.TUPLE3: 3}
_BYTE, _LENGTH = struct.Struct("<B"), struct.Struct("<Q")


class _Machine:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def run(self) -> object:
        for _ in range(MAX_INSTRUCTIONS):
            op = self._take(1)
            if op == pickle.STOP:
                return self._pop()
            if not (self._make(op) or self._combine(op)):
                raise PickleProblem(f"uses the pickle instruction {op!r}, which no tensor needs")
        raise PickleProblem(f"takes more than {MAX_INSTRUCTIONS} pickle instructions")

    # -- the program text and the stack

    def _take(self, n: int) -> bytes:
        end = self._at + n
        if end > len(self._data):
            raise PickleProblem("ends in the middle of the pickle")
        taken = self._data[self._at : end]
        self._at = end
        return taken

    def _number(self, layout: struct.Struct) -> Any:
        return layout.unpack(self._take(layout.size))[0]

    def _text(self, n: int) -> str:
        try:
            return self._take(n).decode("utf-8", "surrogatepass")
        except UnicodeDecodeError:
            raise PickleProblem("has text that is not UTF-8") from None

    def _line(self) -> str:
        end = self._data.find(b"\n", self._at)
        line = self._text((end if end >= 0 else len(self._data)) - self._at)
        self._take(1)
        return line

    def _pop(self) -> Any:
        if len(self._stack) <= (self._marks[-1] if self._marks else 0):
            raise PickleProblem("takes more from the pickle's stack than is there")
        return self._stack.pop()

    def _pop_to_mark(self) -> list[Any]:
        if not self._marks:
            raise PickleProblem("has no mark where the pickle needs one")
        mark = self._marks.pop()
        items = self._stack[mark:]
        del self._stack[mark:]
        return items

    def _top(self, kind: type | tuple[type, ...]) -> Any:
        top = self._pop()
        if not isinstance(top, kind):
            raise PickleProblem("changes something in the pickle that cannot be changed so")
        self._stack.append(top)
        return top

    # -- instructions; both return whether `op` was theirs

    def _make(self, op: bytes) -> bool:
        """Puts a value of the program text, of the memo, or a new one on the stack."""
        push = self._stack.append
        if op in _NEW:
            push(_NEW[op]())
        elif op in _NUMBERS:
            push(self._number(_NUMBERS[op]))
        elif op in _TEXTS:
            push(self._text(self._number(_TEXTS[op])))
        elif op == pickle.LONG1:
            push(int.from_bytes(self._take(self._number(_BYTE)), "little", signed=True))
        elif op in _GETS:
            index = self._number(_GETS[op])
            if index not in self._memo:
                raise PickleProblem("refers to something that the pickle has not made")
            push(self._memo[index])
        elif op == pickle.GLOBAL:
            push(self._name(self._line(), self._line()))
        elif op == pickle.STACK_GLOBAL:
            name, module = self._pop(), self._pop()
            push(self._name(module, name))
        else:
            return False
        return True

    def _combine(self, op: bytes) -> bool:
        """Works on what is on the stack."""
        push = self._stack.append
        if op in _PUTS or op == pickle.MEMOIZE:
            index = len(self._memo) if op == pickle.MEMOIZE else self._number(_PUTS[op])
            self._memo[index] = self._top(object)
        elif op == pickle.MARK:
            self._marks.append(len(self._stack))
        elif op == pickle.TUPLE:
            push(tuple(self._pop_to_mark()))
        elif op in _TUPLES:
            items = [self._pop() for _ in range(_TUPLES[op])]
            push(tuple(reversed(items)))
        elif op == pickle.APPEND:
            item = self._pop()
            self._top(list).append(item)
        elif op == pickle.APPENDS:
            items = self._pop_to_mark()
            self._top(list).extend(items)
        elif op == pickle.SETITEM:
            value, key = self._pop(), self._pop()
            self._set_items([key, value])
        elif op == pickle.SETITEMS:
            self._set_items(self._pop_to_mark())
        elif op == pickle.BUILD:  # attributes, such as `_metadata` of a state dict: not for us
            self._pop()
            self._top((dict, StoredTensor))
        elif op == pickle.BINPERSID:
            push(self._storage(self._pop()))
        elif op == pickle.REDUCE:
            arguments, called = self._pop(), self._pop()
            push(self._call(called, arguments))
        elif op == pickle.PROTO:
            self._take(1)
        elif op == pickle.FRAME:
            self._number(_LENGTH)
        else:
            return False
        return True

    def _set_items(self, pairs: list[Any]) -> None:
        target = self._top(dict)
        # Other keys could be nested so deep that hashing them overflows the C stack.
        if len(pairs) % 2 or not all(type(key) in (str, int) for key in pairs[::2]):
            raise PickleProblem("has a dictionary with keys that are neither text nor numbers")
        target.update(zip(pairs[::2], pairs[1::2]))

    def _name(self, module: object, name: object) -> _Name:
        if not (isinstance(module, str) and isinstance(name, str)):
            raise PickleProblem("has a name that is not text")
        full = f"{module}.{name}"
        if full not in _CALLS and full not in STORAGES:
            raise PickleProblem(f"asks for {full[:200]}, which is no part of a tensor; only tensors are read")
        return _Name(full)

    def _call(self, called: object, arguments: object) -> object:
        if not isinstance(called, _Name) or called.name not in _CALLS or not isinstance(arguments, tuple):
            raise PickleProblem("calls something that cannot be called")
        try:
            return _CALLS[called.name](*arguments)
        except TypeError:  # too few arguments
            raise PickleProblem(f"calls {called.name} in a way that torch does not") from None

    def _storage(self, reference: object) -> Storage:
        match reference:
            case ("storage", _Name(name), str(key), str(), int(n)) if name in STORAGES and n >= 0:
                return Storage(*STORAGES[name], key, n)
        raise PickleProblem("refers to its data in a way that torch does not")
