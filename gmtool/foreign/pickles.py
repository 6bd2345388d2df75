"""Pickles of numpy arrays and plain data, read without running anything that they name.

A pickle is a program that may call any function of any module. Python's unpickler serves here as the machine that
runs the plain part of it: numbers, texts, tuples, lists and dicts. Every name that it meets is looked up in a short
table and nowhere else, and the table leads to stand-ins that keep what they are given. Nothing of numpy is called but
``np.frombuffer``, on bytes whose type is one of plain numbers; nothing of a listed class is imported. The stand-ins are
made anew for every file, so that one file cannot change how the next is read.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from gmtool.errors import UserError

Name = tuple[str, str]
"""Module and name of a class or function."""


class Record:
    """An object of a class that is not imported: the attributes that the pickle gives it."""


class _Dtype:
    """A type of numbers: ``f8`` and the like, and its byte order."""

    def __init__(self, code: str, *_: object) -> None:
        if not re.fullmatch(r"[biuf]\d{1,2}", code):
            raise ValueError(f"an array of type {code!r}")
        self.code, self.order = code, "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = state[1]

    def read(self, data: bytes) -> np.ndarray:
        return np.frombuffer(data, np.dtype(self.order + self.code))


class _Array:
    """An array, which is complete when ``value`` is there."""

    value: np.ndarray


class _Reconstructed(_Array):
    """``numpy.core.multiarray._reconstruct``: made empty, then given its state."""

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, state: tuple[int, tuple[int, ...], _Dtype, bool, bytes]) -> None:
        _, shape, dtype, by_columns, data = state
        self.value = dtype.read(data).reshape(shape, order="F" if by_columns else "C")


class _FromBuffer(_Array):
    """``numpy.core.numeric._frombuffer``: made at once, in protocol 5."""

    def __init__(self, data: bytes, dtype: _Dtype, shape: tuple[int, ...], order: str) -> None:
        self.value = dtype.read(data).reshape(shape, order="F" if order == "F" else "C")


class _Scalar(_Array):
    """``numpy.core.multiarray.scalar``: one number, kept as an array of shape ()."""

    def __init__(self, dtype: _Dtype, data: bytes) -> None:
        self.value = dtype.read(data).reshape(())


class _Latin1(bytes):
    """``_codecs.encode``: how the protocols before 3 write bytes."""

    def __new__(cls, text: str, _encoding: str) -> _Latin1:
        return super().__new__(cls, text.encode("latin1"))


class _NoBytes(bytes):
    """``bytes()``: how the protocols before 3 write no bytes at all."""

    def __new__(cls) -> _NoBytes:
        return super().__new__(cls)


_NUMPY: dict[Name, type] = {
    ("numpy", "dtype"): _Dtype,
    ("numpy", "ndarray"): Record,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _Reconstructed for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): _Scalar for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _FromBuffer for core in ("core", "_core")},
    ("_codecs", "encode"): _Latin1,
    ("__builtin__", "bytes"): _NoBytes,
}


_DAMAGE = (pickle.UnpicklingError, EOFError, ValueError, TypeError, LookupError, AttributeError, OverflowError)
"""What the unpickler raises at a file that is no pickle, and the stand-ins at what does not fit together."""


class _Reader(pickle.Unpickler):
    """Looks names up in a table of its own."""

    def __init__(self, file: Any, path: Path, classes: Collection[Name]) -> None:
        super().__init__(file)
        self._path = path
        known = _NUMPY | dict.fromkeys(classes, Record)
        self._table = {name: type(base.__name__, (base,), {}) for name, base in known.items()}

    def find_class(self, module_name: str, global_name: str, /) -> type:
        """The stand-in of a name. Raises UserError for any other."""
        found = self._table.get((module_name, global_name))
        if found is None:
            hint = "; save it again by pickle.dump" if module_name.partition(".")[0] == "joblib" else ""
            raise UserError(
                f"{self._path} asks for {module_name}.{global_name}, which is not data: it is not read{hint}"
            )
        return found


def read_pickle(path: Path, classes: Collection[Name]) -> Any:
    """The content of a pickle of plain data, arrays (see `as_array`), and objects of ``classes`` (see `Record`).

    Raises UserError, without having run anything, when it holds something else or is damaged.
    """
    with path.open("rb") as file:
        try:
            return _Reader(file, path, classes).load()
        except _DAMAGE as error:
            reason = " ".join(str(error).split())[:120]
            raise UserError(f"{path} is no pickle of arrays, or is damaged: {reason}") from error


def as_array(value: object) -> np.ndarray | None:
    """An array or number of numpy's that `read_pickle` found; None for anything else."""
    found = value.__dict__.get("value") if isinstance(value, _Array) else None
    return found if isinstance(found, np.ndarray) else None
