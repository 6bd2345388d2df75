"""Pickles of arrays are read as they are; whatever else a pickle may ask for is not done."""

import datetime
import io
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from gmtool.errors import UserError
from gmtool.foreign.pickles import Name, Record, as_array, read_pickle

ARRAYS = [
    np.arange(12.0).reshape(3, 4),
    np.asfortranarray(np.arange(12, dtype=np.float32).reshape(3, 4)),
    np.arange(20, dtype=">i4")[::3],
    np.array([True, False]),
    np.zeros((0, 3)),
    np.array(1.5),
]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_arrays_and_plain_data(tmp_path: Path, protocol: int) -> None:
    content = {"arrays": ARRAYS, "number": np.float64(0.1), "plain": [1, "text", None, (2.5, True, {"a": {1: -2}})]}
    path = tmp_path / "file.pkl"
    path.write_bytes(pickle.dumps(content, protocol))
    read = read_pickle(path, ())
    for array, read_back in zip(ARRAYS, read["arrays"], strict=True):
        value = as_array(read_back)
        assert value is not None and value.dtype == array.dtype
        np.testing.assert_array_equal(value, array)
    assert as_array(read["number"]) == 0.1
    assert read["plain"] == content["plain"]
    assert as_array(read["plain"]) is None


def test_a_listed_class_is_kept_as_a_record_and_not_imported(tmp_path: Path) -> None:
    path = tmp_path / "file.pkl"
    # an object of a class of a module that is not there, with one attribute
    path.write_bytes(b"\x80\x02cno_such_module\nThing\n)\x81}X\x01\x00\x00\x00nK\x07sb.")
    thing = read_pickle(path, [Name("no_such_module", "Thing")])
    assert isinstance(thing, Record)
    assert (thing.name, thing.arguments, thing.state) == (("no_such_module", "Thing"), (), {"n": 7})
    with pytest.raises(UserError, match=r"asks for no_such_module\.Thing, which is not data"):
        read_pickle(path, ())


class Calls:
    """Pickled, it is a call."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call


MARK = "gmtool-was-here"


@pytest.mark.parametrize(
    "harmful",
    [
        Calls(os.system, f"touch {MARK}"),
        Calls(eval, f"open({MARK!r}, 'w')"),
        Calls(exec, f"open({MARK!r}, 'w')"),
        Calls(getattr, os, "system"),
        Calls(io.open, MARK, "w"),
        Calls(np.load, MARK),
        Calls(np.ndarray, (2,)),
        Calls(os.mkdir, MARK),
        {"model": [Calls(os.mkdir, MARK)]},
        datetime.datetime(2026, 1, 1),
    ],
    ids=["system", "eval", "exec", "getattr", "open", "load", "ndarray", "mkdir", "nested", "datetime"],
)
def test_nothing_that_a_pickle_names_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, harmful: object) -> None:
    monkeypatch.chdir(tmp_path)
    if isinstance(harmful, Calls) and harmful.call[0] is getattr:
        raw = b"cbuiltins\ngetattr\n(cos\nsystem\nVx\ntR."
    else:
        raw = pickle.dumps(harmful, 2)
    (tmp_path / "file.pkl").write_bytes(raw)
    if isinstance(harmful, Calls) and harmful.call[0] is np.ndarray:
        assert as_array(read_pickle(tmp_path / "file.pkl", ())) is None  # a record of the name, and no array
    else:
        with pytest.raises(UserError, match="which is not data: it is not read") as caught:
            read_pickle(tmp_path / "file.pkl", ())
        assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["file.pkl"]


@pytest.mark.parametrize(
    "raw",
    [
        b"\x80\x04\x8c\x0dnumpy.dtype\x8c\x00\x93.",  # the module and the name written otherwise
        b"\x80\x04\x8c\x05numpy\x8c\x15dtype.__init__.__call\x93.",  # a dotted path through a known name
        b"\x80\x04\x8c\x05numpy\x8c\x1adtype.__init__.__globals__\x93.",
        b"\x80\x02\x82\x01.",  # an extension code
        b"Pid\n.",  # a persistent id
        b"\x80\x04K\x01",  # cut short
        b"",
        b"no pickle at all",
        b"cnumpy\ndtype\n\x93.",
    ],
)
def test_tricks_and_damage_are_one_line(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "file.pkl"
    path.write_bytes(raw)
    with pytest.raises(UserError, match=r"file\.pkl") as caught:
        read_pickle(path, ())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("then", "instead"),
    [
        (b"K\x04\x85", b"K\x7f\x85"),  # more numbers than there are
        (b"i8", b"O8"),  # pointers, in the place of numbers
        (b"i8", b"V8"),
        (b"<", b"N"),  # an order of bytes that there is not
    ],
)
def test_an_array_that_does_not_fit_together_is_none(tmp_path: Path, then: bytes, instead: bytes) -> None:
    path, raw = tmp_path / "file.pkl", pickle.dumps(np.arange(4), 2)
    assert then in raw
    path.write_bytes(raw.replace(then, instead))
    record = read_pickle(path, ())
    with pytest.raises((ValueError, TypeError)):
        as_array(record)


def test_joblib_is_named(tmp_path: Path) -> None:
    import joblib

    joblib.dump({"means_": np.arange(3.0)}, tmp_path / "file.pkl")
    with pytest.raises(UserError, match=r"asks for joblib\..*save it again by pickle.dump"):
        read_pickle(tmp_path / "file.pkl", ())
