"""The record that every file and folder of gmtool carries: what it is, how it was made, and from what.

It is JSON: an attribute of the HDF5 files, ``config.json`` in a run, ``sampling.json`` beside samples. A stage reads
its inputs' manifests before anything else, so that the wrong file is refused at once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np

from gmtool import __version__
from gmtool.errors import UserError

FORMAT = 1
"""Version of the files' layout. A reader refuses a higher one."""

CHECKSUM = "checksum"
"""The entry that a manifest's JSON text has beside the manifest's own: a digest of all others."""

T = TypeVar("T")

Kind = Literal["latents", "gmm", "run", "samples", "sweep", "decoder", "reconstruction", "likelihood"]

KINDS: Mapping[str, tuple[str, str]] = {
    "latents": ("a latents file", "gmtool encode"),
    "gmm": ("a fitted mixture", "gmtool fit-gmm"),
    "run": ("a training run", "gmtool train"),
    "samples": ("a folder of samples", "gmtool sample"),
    "sweep": ("a sweep", "gmtool sweep"),
    "decoder": ("a trained decoder", "gmtool train-decoder"),
    "reconstruction": ("a folder of reconstructions", "gmtool reconstruct"),
    "likelihood": ("a likelihood", "gmtool likelihood"),
}
"""Each kind of artifact in words, and the command that makes it."""


RECORDS: Mapping[str, str] = {
    "decoder": "training.json",
    "run": "config.json",
    "samples": "sampling.json",
    "sweep": "sweep.json",
    "reconstruction": "reconstruction.json",
}
"""The file that holds the manifest in those artifacts that are folders; HDF5 files hold it in an attribute, and a
likelihood is one.

A decoder comes first: its folder also holds a ``config.json``, which is diffusers'.
"""


@dataclass(frozen=True)
class Array:
    """Shape, type and unit of one stored array; its checksum where it is read as a whole, else empty."""

    shape: tuple[int, ...]
    dtype: str
    unit: str
    checksum: str = ""


@dataclass(frozen=True)
class Input:
    """An artifact or a set of images that a stage read: its role, where it was, and the fingerprint of its content."""

    role: str
    path: str
    fingerprint: str


@dataclass(frozen=True)
class Manifest:
    """What an artifact is and where it came from.

    kind: what it is, a key of `KINDS`. stage: the command that made it. config: that stage's resolved settings, as
    JSON values. fingerprint: a digest of the content. inputs: its source artifacts. arrays: name -> shape, dtype,
    unit. details: what else readers of this kind of artifact need (tokenizer, architecture, counts), as JSON values.
    """

    kind: str
    stage: str
    fingerprint: str
    config: Mapping[str, Any]
    inputs: tuple[Input, ...] = ()
    arrays: Mapping[str, Array] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)
    gmtool: str = __version__
    format: int = FORMAT

    def to_json(self) -> str:
        """The manifest as indented JSON text, with a checksum of itself; paths are written as text."""
        text = json.dumps(asdict(self), indent=1, default=str)
        return json.dumps({**json.loads(text), CHECKSUM: fingerprint([text])}, indent=1)

    def input(self, role: str) -> Input | None:
        """The input of this role, or None."""
        return next((entry for entry in self.inputs if entry.role == role), None)


def parse_manifest(text: str | bytes, path: Path) -> Manifest:
    """The manifest in a JSON text read from ``path``.

    Raises UserError when it is not one, is of a newer format, or was changed since it was written.
    """
    try:
        raw = json.loads(text)
        known = raw.pop(CHECKSUM, None)  # older versions wrote none
        if known is not None and known != fingerprint([json.dumps(raw, indent=1)]):
            raise UserError(
                f"the manifest of {path} was changed since gmtool wrote it: make it again, or restore a copy "
                f'(if the change was meant, remove its entry "{CHECKSUM}")'
            )
        if raw["format"] > FORMAT:
            raise UserError(f"{path} was written by gmtool {raw['gmtool']}, newer than this one: upgrade gmtool")
        return Manifest(
            kind=_expect(str, raw["kind"]),
            stage=_expect(str, raw["stage"]),
            fingerprint=_expect(str, raw["fingerprint"]),
            config=_expect(dict, raw["config"]),
            inputs=tuple(
                Input(**{name: _expect(str, text) for name, text in entry.items()}) for entry in raw["inputs"]
            ),
            arrays={
                name: Array(
                    tuple(_expect(int, size) for size in array["shape"]),
                    _expect(str, array["dtype"]),
                    _expect(str, array["unit"]),
                    _expect(str, array.get("checksum", "")),
                )
                for name, array in raw["arrays"].items()
            },
            details=_expect(dict, raw["details"]),
            gmtool=_expect(str, raw["gmtool"]),
            format=raw["format"],
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} holds no readable gmtool manifest ({error!r}): make it again") from error


def _expect(kind: type[T], value: object) -> T:
    if not isinstance(value, kind):
        raise TypeError(f"{value!r} is no {kind.__name__}")
    return value


def expect_kind(manifest: Manifest, kind: Kind, path: Path) -> None:
    """Raise UserError, naming the command that makes the right artifact, unless ``manifest`` is of ``kind``."""
    if manifest.kind != kind:
        actual, _ = KINDS.get(manifest.kind, (f"of the unknown kind {manifest.kind}", ""))
        wanted, command = KINDS[kind]
        raise UserError(f"{path} is {actual}, not {wanted}: give what `{command}` writes")


def fingerprint(parts: Iterable[bytes | str | np.ndarray]) -> str:
    """A 128-bit BLAKE2b digest, in hexadecimal, of a sequence of texts, bytes and arrays (with shape and dtype)."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        if isinstance(part, np.ndarray):
            head, body = f"{part.dtype.str}{part.shape}".encode(), np.ascontiguousarray(part).tobytes()
        else:
            head, body = b"", part.encode() if isinstance(part, str) else part
        digest.update(f"{len(head)}:{len(body)}:".encode())
        digest.update(head)
        digest.update(body)
    return digest.hexdigest()


def file_fingerprint(path: Path) -> str:
    """The digest of a file's bytes, read in pieces."""
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while piece := file.read(2**22):
            digest.update(piece)
    return digest.hexdigest()
