"""Where the weights of a network are: a local folder in Hugging Face form, or a hub id, cached or downloaded.

Only safetensors are read, never pickles. A tokenizer's record names its model with a digest of the weights, so that
what described or decodes latents is what made them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gmtool.errors import UserError
from gmtool.huggingface import hub_folder

MODEL_FILES = ("config.json", "preprocessor_config.json", "*.safetensors", "*.safetensors.index.json")
"""What is fetched of a model."""


def model_folder(source: str, what: str) -> Path:
    """The folder of a model's ``config.json`` and weights, fetched from the hub when it is not on this machine.

    source: a folder or a hub id. what: its role, for messages. Raises UserError when it is neither or holds no
    safetensors, MachineError when it cannot be fetched.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        return _checked(folder, what)
    if folder.is_file():
        raise UserError(f"{what} {source} is a file: give the folder that holds its config.json and .safetensors")
    if source.startswith((".", "/", "~")) or source.count("/") != 1:
        raise UserError(f"{what} {source} is no folder, and no hub id (owner/name) either")
    return _checked(hub_folder(source, what, MODEL_FILES), what)


def model_config(folder: Path, what: str) -> dict[str, Any]:
    """A model folder's ``config.json``. Raises UserError when it is damaged."""
    with one_line(folder, what):
        return dict(json.loads((folder / "config.json").read_text(encoding="utf-8")))


def model_record(source: str, what: str) -> dict[str, str]:
    """What a tokenizer's settings keep of its model: the folder or hub id, and a digest of the weights files.

    Raises as `model_folder` does.
    """
    place = Path(source).expanduser()
    digest = _digest(model_folder(source, what))
    return {"model": str(place.resolve()) if place.is_dir() else source, "weights": digest}


def recorded_folder(settings: Mapping[str, Any], what: str) -> Path:
    """The folder of a recorded model. Raises UserError when it is gone or has other weights."""
    folder = model_folder(settings["model"], what)
    if _digest(folder) != settings["weights"]:
        raise UserError(f"{folder} no longer holds the weights that made these latents: encode the images again")
    return folder


@contextmanager
def one_line(folder: Path, what: str) -> Iterator[None]:
    """Turn what the libraries raise for a damaged model into a UserError."""
    from safetensors import SafetensorError

    try:
        yield
    except (
        OSError,
        ValueError,
        LookupError,
        ArithmeticError,
        RuntimeError,
        TypeError,
        AttributeError,
        MemoryError,
        ImportError,
        SafetensorError,
    ) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{what} {folder} cannot be loaded: {reason}") from error


def _digest(folder: Path) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb") as weights:
            while block := weights.read(2**24):
                digest.update(block)
    return digest.hexdigest()


def _checked(folder: Path, what: str) -> Path:
    if not (folder / "config.json").is_file():
        raise UserError(f"{what} {folder} holds no config.json: give a model folder as transformers saves it")
    weights = sorted(folder.glob("*.safetensors"))
    if special := next((file for file in weights if file.exists() and not file.is_file()), None):
        raise UserError(f"{what} {special} is no regular file: give a model folder as transformers saves it")
    if not any(file.is_file() for file in weights):
        raise UserError(f"{what} {folder} holds no .safetensors weights: save it with save_pretrained()")
    return folder
