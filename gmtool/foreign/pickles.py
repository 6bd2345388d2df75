"""Pickles of arrays and plain data, read without running anything that they name.

A pickle is a program that may call any function of any module. Here its opcodes, which `pickletools` reads, only move
data: numbers, texts, tuples, lists and dicts are made; a class or function is a `Name`, and what would be a call of it
is a `Record` of the name, the arguments and the state. Nothing is imported, nothing is called. Keys of dicts are plain
too, since hashing a few nested tuples that share their parts may take for ever.
"""

from __future__ import annotations

import pickletools
import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from gmtool.errors import UserError
from gmtool.foreign.reading import reading


class Name(NamedTuple):
    """A class or function that a pickle names, which is not imported."""

    module: str
    name: str


@dataclass(eq=False, repr=False)
class Record:
    """What a pickle would make by calling ``name`` with ``arguments``: neither imported nor called.

    state: what it would be given after it is made, such as its attributes; items: its entries, where it is a dict.
    """

    name: Name
    arguments: tuple[Any, ...]
    state: Any = None
    items: dict[Any, Any] = field(default_factory=dict)


_ARRAYS = frozenset(
    (
        *(Name("numpy", name) for name in ("dtype", "ndarray")),
        *(Name(f"numpy.{core}.multiarray", name) for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
        *(Name(f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")),
        Name("_codecs", "encode"),  # how the protocols before 3 write bytes,
        Name("__builtin__", "bytes"),  # and no bytes at all
    )
)
"""All that numpy's arrays and numbers name, in every protocol."""

_VALUES = frozenset(
    opcode.name
    for opcode in pickletools.opcodes
    if opcode.arg and not opcode.stack_before and opcode.stack_after not in ([], [pickletools.anyobject])
)
"""Opcodes whose argument is a value: a number, a text or bytes."""

_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}

_HASHING = ("OrderedDict", "Counter", "set", "frozenset")
"""Classes that hash what is in a list that they are called with."""

_LONGEST_KEY = 16
"""Entries of a tuple that is a key, at most."""

PERSISTENT = Name("", "persistent")
"""Name of the `Record` that stands for an object outside the pickle."""


def read_pickle(path: Path, classes: Collection[Name]) -> Any:
    """The content of a pickle of plain data, arrays (see `as_array`), and objects of ``classes`` (see `Record`).

    Raises UserError, without having run anything, when it names something else or is damaged.
    """
    known = _ARRAYS | set(classes)
    with reading(path, "a pickle of arrays"), path.open("rb") as file:
        return run_pickle(file, path, known.__contains__)


def run_pickle(file: IO[bytes], path: Path, known: Callable[[Name], bool]) -> Any:
    """The content of the pickle ``file``, in ``path``, in a time that grows with its length alone.

    Raises UserError for a name that is not ``known``; when it is damaged, any exception, for the caller to turn into
    one that names the file (`gmtool.foreign.reading.reading`).
    """
    machine = _Machine(file)
    for name in machine.run():
        if not known(name):
            hint = "; save it again by pickle.dump" if name.module.partition(".")[0] == "joblib" else ""
            asked = ascii(f"{name.module}.{name.name}")[1:-1]
            raise UserError(f"{path} asks for {asked:.80}, which is not data: it is not read{hint}")
    return machine.result


def as_array(value: object) -> np.ndarray | None:
    """An array or number of numpy's that `read_pickle` found; None for anything else.

    Raises ValueError or TypeError when its parts do not fit together, or when it holds more than numbers.
    """
    if not isinstance(value, Record):
        return None
    match value.name.name, value.arguments, value.state:
        case "_reconstruct", _, (_, tuple(shape), dtype, by_columns, data):
            order = "F" if by_columns else "C"
        case "_frombuffer", (data, dtype, tuple(shape), order), _:
            pass
        case "scalar", (dtype, data), _:
            shape, order = (), "C"
        case _:
            return None
    flat: np.ndarray = np.frombuffer(_as_bytes(data), _as_dtype(dtype))
    return flat.reshape(shape, order="F" if order == "F" else "C")


def _as_bytes(value: object) -> bytes | bytearray:
    match value:
        case bytes() | bytearray():
            return value
        case Record(name=("_codecs", "encode"), arguments=(str(text), _)):
            return text.encode("latin1")
        case Record(name=("__builtin__", "bytes"), arguments=()):
            return b""
    raise TypeError("an array without bytes")


def _as_dtype(value: object) -> np.dtype:
    """Plain numbers of a byte order: ``<f8`` and the like."""
    match value:
        case Record(name=("numpy", "dtype"), arguments=(str(code), *_), state=(_, str(order), *_)):
            if re.fullmatch(r"[biuf]\d{1,2}", code) and order in ("<", ">", "=", "|"):
                return np.dtype(order + code)
    raise ValueError("an array of something else than numbers")


class _Machine:
    """Runs a pickle's opcodes on a stack of data."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._stack: list[Any] = []
        self._below: list[list[Any]] = []  # the stacks under the marks
        self._memo: dict[int, Any] = {}
        self.result: Any = None

    def run(self) -> Iterator[Name]:
        """Run to the end, after which ``result`` is there; yields each name when it is met."""
        for opcode, argument, _ in pickletools.genops(self._file):
            if opcode.name == "STOP":
                self.result = self._stack.pop()
            elif opcode.name == "GLOBAL":
                module, _, name = str(argument).partition(" ")
                yield self._named(module, name)
            elif opcode.name == "STACK_GLOBAL":
                name, module = self._stack.pop(), self._stack.pop()
                yield self._named(module, name)
            else:
                self._step(opcode.name, argument)

    def _named(self, module: object, name: object) -> Name:
        if not (isinstance(module, str) and isinstance(name, str)):
            raise TypeError("a name that is no text")
        self._stack.append(Name(module, name))
        return Name(module, name)

    def _step(self, opcode: str, argument: Any) -> None:
        """One opcode but those of names and the last."""
        stack = self._stack
        match opcode:
            case "PROTO" | "FRAME":
                pass
            case _ if opcode in _VALUES:
                stack.append(argument)
            case _ if opcode in _CONSTANTS:
                stack.append(_CONSTANTS[opcode])
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_DICT":
                stack.append({})
            case "MARK":
                self._below.append(stack)
                self._stack = []
            case "POP" if stack:
                stack.pop()
            case "POP" | "POP_MARK":
                self._since_mark()
            case "DUP":
                stack.append(stack[-1])
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                self._memo[argument] = stack[-1]
            case "MEMOIZE":
                self._memo[len(self._memo)] = stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                stack.append(self._memo[argument])
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                values = [stack.pop() for _ in range(int(opcode[-1]))]
                stack.append(tuple(reversed(values)))
            case "TUPLE":
                self._push(tuple, self._since_mark())
            case "LIST":
                self._push(list, self._since_mark())
            case "DICT":
                self._push(_as_dict, self._since_mark())
            case "APPEND":
                value = stack.pop()
                _expect(list, stack[-1]).append(value)
            case "APPENDS":
                values = self._since_mark()
                _expect(list, self._stack[-1]).extend(values)
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                _items(stack[-1])[_key(key)] = value
            case "SETITEMS":
                values = self._since_mark()
                _items(self._stack[-1]).update(_as_dict(values))
            case "REDUCE" | "NEWOBJ":
                arguments, name = stack.pop(), stack.pop()
                stack.append(_called(_expect(Name, name), _expect(tuple, arguments)))
            case "BUILD":
                state = stack.pop()
                _expect(Record, stack[-1]).state = state
            case "PERSID" | "BINPERSID":
                about = argument if opcode == "PERSID" else stack.pop()
                stack.append(Record(PERSISTENT, tuple(map(_plain, _expect(tuple, about)))))
            case _:
                raise ValueError(f"{opcode} makes no plain data")

    def _since_mark(self) -> list[Any]:
        """Pop all above the last mark, and the mark."""
        values, self._stack = self._stack, self._below.pop()
        return values

    def _push(self, kind: Any, values: Any) -> None:
        self._stack.append(kind(values))


def _called(name: Name, arguments: tuple[Any, ...]) -> Record:
    if name.name in _HASHING:
        for argument in arguments:
            for member in argument if isinstance(argument, (list, tuple)) else ():
                _key(member)
    return Record(name, arguments)


def _expect(kind: type, value: Any) -> Any:
    if type(value) is not kind:
        raise TypeError(f"a {type(value).__name__} in the place of a {kind.__name__}")
    return value


def _items(value: Any) -> dict[Any, Any]:
    """The entries of a dict, or of an object that is one."""
    return value.items if isinstance(value, Record) else _expect(dict, value)


def _as_dict(values: list[Any]) -> dict[Any, Any]:
    """A dict of keys and values in turn."""
    return dict(zip(map(_key, values[::2]), values[1::2], strict=True))


def _plain(value: Any) -> Any:
    """A value that is no container. Raises TypeError for any other."""
    if not isinstance(value, (str, int, float, bytes, Name, type(None))):
        raise TypeError(f"a {type(value).__name__} in the place of a text or number")
    return value


def _key(value: Any) -> Any:
    """A key that is hashed at once: plain, or a short tuple of plain values. Raises TypeError for any other."""
    if type(value) is tuple and len(value) <= _LONGEST_KEY:
        return tuple(map(_plain, value))
    return _plain(value)
