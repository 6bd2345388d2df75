"""Files of named tensors (safetensors): whole or not at all, with the permissions of any other file.

They carry a checksum of each tensor, which reading verifies. Files without, of older versions and of other programs,
are read as they are.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import xxhash
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from gmtool.artifacts.files import PART_SUFFIX, reading, written_aside
from gmtool.errors import UserError

CHECKSUMS = "gmtool.checksums"
"""The entry of a file's metadata that holds the checksums of its tensors, a JSON object by name."""


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors (...) by name aside, then rename the file to ``path``. Raises OSError when the disk is full."""
    with written_aside(path) as part:
        stored = {name: tensor.detach().cpu().contiguous() for name, tensor in sorted(tensors.items())}
        checksums = {name: tensor_checksum(tensor) for name, tensor in stored.items()}
        # safetensors writes to a file of its own beside the one that it is given, which a kill would leave there
        with TemporaryDirectory(prefix=".", suffix=PART_SUFFIX, dir=part.parent) as folder:
            whole = Path(folder) / "tensors"
            try:
                save_file(stored, whole, {CHECKSUMS: json.dumps(checksums, sort_keys=True)})
            except SafetensorError as error:
                # the system's error number is in the text alone
                if number := re.search(r"os error (\d+)", str(error)):
                    raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error
                raise
            whole.replace(part)
        # safetensors makes files that only their owner reads
        mask = os.umask(0)
        os.umask(mask)
        part.chmod(0o666 & ~mask)


def read_tensors(
    path: Path,
    names: Iterable[str] | None = None,
    repair: str = "restore a copy of it, or make it again",
) -> dict[str, Tensor]:
    """The tensors (...) of a file by name, all or those of ``names``, on the CPU.

    Raises UserError, ending in ``repair``, when the file is missing or damaged, or a tensor is not what was written.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing: {repair}")
    with reading(path, repair):
        try:
            with safe_open(path, framework="pt") as file:
                known = json.loads((file.metadata() or {}).get(CHECKSUMS, "null"))
                present = sorted(file.keys())  # the same in all processes, which take them apart together
                if known is not None and sorted(known) != present:
                    raise ValueError("its tensors are not those that were written")
                tensors = {name: file.get_tensor(name) for name in (present if names is None else names)}
        except SafetensorError as error:
            raise ValueError(str(error)) from error
        changed = next(
            (name for name, tensor in tensors.items() if known and known[name] != tensor_checksum(tensor)), None
        )
        if changed is not None:
            raise ValueError(f"the checksum of {changed} does not match")
    return tensors


def tensor_checksum(values: Tensor) -> str:
    """A 128-bit checksum, in hexadecimal, of a contiguous CPU tensor's type, shape and content."""
    digest = xxhash.xxh3_128(f"{values.dtype}{tuple(values.shape)}".encode())
    digest.update(values.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
