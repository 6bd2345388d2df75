"""Files of named tensors (safetensors): whole or not at all, with the permissions of any other file."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from gmtool.artifacts.files import flush_to_disk, written_aside
from gmtool.errors import UserError


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors aside, then rename the file to ``path``. Raises OSError when the disk is full."""
    with written_aside(path) as part:
        try:
            save_file({name: each.detach().cpu().contiguous() for name, each in tensors.items()}, part)
        except SafetensorError as error:
            # the system's error number is in the text alone
            if number := re.search(r"os error (\d+)", str(error)):
                raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error
            raise
        flush_to_disk(part)
        # safetensors makes files that only their owner reads
        mask = os.umask(0)
        os.umask(mask)
        part.chmod(0o666 & ~mask)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a file, on the CPU. Raises UserError when it is missing or damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a mapping
    except (SafetensorError, OSError) as error:
        reason = f"is damaged ({' '.join(str(error).split())})" if path.exists() else "is missing"
        raise UserError(f"{path} {reason}: remove it to use an older checkpoint, or train again") from error
