"""Where the weights of a network are: a local folder in Hugging Face form, or a hub id, cached or downloaded.

Only safetensors are read, and where a model of long ago has none its ``pytorch_model.bin``, as tensors and never as a
pickle. A tokenizer's record names its model with a digest of the weights, so that what described or decodes latents is
what made them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from gmtool.errors import UserError
from gmtool.huggingface import REPAIR, hub_folder

MODEL_FILES = ("config.json", "preprocessor_config.json", "*.safetensors", "*.safetensors.index.json")
"""What is fetched of a model."""
PICKLED = "pytorch_model.bin"
"""What is fetched of one without safetensors, such as facebook/vit-mae-base, where the caller can read it."""
RECORDED = "the tokenizer"
"""The role, in messages, of a model that a tokenizer's record names: often no flag of the command gives it."""


def model_folder(source: str, what: str, pickled: bool = False, repair: str = REPAIR) -> Path:
    """The folder of a model's ``config.json`` and weights, fetched from the hub when it is not on this machine.

    source: a folder or a hub id. what: its role, for messages. pickled: whether `PICKLED` will do in place of
    safetensors. repair: see `gmtool.huggingface.REPAIR`. Raises UserError when it is neither or holds no weights,
    MachineError when it cannot be fetched.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        return _checked(folder, what, pickled)
    if folder.is_file():
        raise UserError(f"{what} {source} is a file: give the folder that holds its config.json and .safetensors")
    if source.startswith((".", "/", "~")) or source.count("/") != 1:
        raise UserError(f"{what} {source} is no folder, and no hub id (owner/name) either")
    fetched = hub_folder(source, what, MODEL_FILES, repair)
    if pickled and not any(fetched.glob("*.safetensors")):
        fetched = hub_folder(source, what, (*MODEL_FILES, PICKLED), repair)
    return _checked(fetched, what, pickled)


def model_config(folder: Path, what: str) -> dict[str, Any]:
    """The content of a model folder's ``config.json``. what: the model's role, for messages.

    Raises UserError when it is missing or damaged.
    """
    with reading_model(folder, what):
        return dict(json.loads((folder / "config.json").read_text(encoding="utf-8")))


def model_record(source: str, what: str, pickled: bool = False) -> dict[str, str]:
    """What a tokenizer's settings keep of its model: the folder or hub id, and a digest of the weights files.

    Raises as `model_folder` does.
    """
    place = Path(source).expanduser()
    digest = _digest(model_folder(source, what, pickled))
    return {"model": str(place.resolve()) if place.is_dir() else source, "weights": digest}


def recorded_model(settings: Mapping[str, Any], pickled: bool = False) -> Path:
    """The folder of the model that `model_record` recorded, whatever its weights. Raises as `model_folder` does."""
    source = settings["model"]
    if Path(source).is_absolute() and not (Path(source) / "config.json").is_file():
        raise UserError(f"{RECORDED} {source} is no longer there: put its folder back")
    repair = "put it back into the Hugging Face cache, or set HF_HOME to one that holds it"
    return model_folder(source, RECORDED, pickled, repair)


def recorded_folder(settings: Mapping[str, Any], pickled: bool = False) -> Path:
    """The folder of the model that `model_record` recorded, with the weights of then.

    Raises as `model_folder` does, and UserError when it has other weights.
    """
    folder = recorded_model(settings, pickled)
    if _digest(folder) != settings["weights"]:
        raise UserError(f"{folder} no longer holds the weights that made these latents: encode the images again")
    return folder


@contextmanager
def reading_model(folder: Path, what: str) -> Iterator[None]:
    """Turn what the libraries raise inside of this, for a damaged model, into a UserError that names its folder."""
    from safetensors import SafetensorError

    try:
        yield
    except UnpicklingError as error:
        raise UserError(f"{what} {folder} holds more than tensors in its weights: save them as safetensors") from error
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
    for file in sorted(folder.glob("*.safetensors")) or [folder / PICKLED]:
        with file.open("rb") as weights:
            while block := weights.read(2**24):
                digest.update(block)
    return digest.hexdigest()


def _checked(folder: Path, what: str, pickled: bool) -> Path:
    if not (folder / "config.json").is_file():
        raise UserError(f"{what} {folder} holds no config.json: give a model folder as transformers saves it")
    weights = sorted(folder.glob("*.safetensors")) or [folder / PICKLED] * pickled
    if special := next((file for file in weights if file.exists() and not file.is_file()), None):
        raise UserError(f"{what} {special} is no regular file: give a model folder as transformers saves it")
    if not any(file.is_file() for file in weights):
        raise UserError(f"{what} {folder} holds no .safetensors weights: save it with save_pretrained()")
    return folder
