"""Checkpoints and statistics that PyTorch wrote: tensors and plain data alone, never unpickled in general."""

from __future__ import annotations

import pickle
import zipfile
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gmtool.artifacts.run import VARIANCE_EPS, LatentStatistics
from gmtool.artifacts.safetensors_io import read_tensors
from gmtool.errors import UserError

WRAPPERS = ("module.", "_orig_mod.")
"""Prefixes that data parallelism and the compiler put before the names of weights."""


@dataclass(frozen=True, eq=False)
class TorchCheckpoint:
    """ema: the averaged weights, or the only ones. model: those of the last step, None without. step: 0 if unknown."""

    ema: Mapping[str, Tensor]
    model: Mapping[str, Tensor] | None
    step: int


def read_checkpoint(path: Path) -> TorchCheckpoint:
    """The weights under ``ema`` and ``model`` of a ``.pt`` file, or those of a file that holds weights alone.

    Also a ``.safetensors``. Raises UserError when the file is damaged, or holds no weights.
    """
    if path.suffix == ".safetensors":
        return TorchCheckpoint(read_tensors(path), None, 0)
    content = read_torch(path)
    if not isinstance(content, Mapping):
        raise UserError(f"{path} holds no weights: give a checkpoint with ema or model")
    ema, model = content.get("ema"), content.get("model")
    averaged = _state(ema if ema is not None else model if model is not None else content)
    if averaged is None:
        raise UserError(f"{path} holds no weights: give a checkpoint with ema or model")
    step = content.get("train_steps", 0)
    return TorchCheckpoint(averaged, _state(model) if ema is not None else None, step if isinstance(step, int) else 0)


def read_statistics(path: Path, shape: tuple[int, int, int]) -> LatentStatistics:
    """RAE's ``stat.pt``, {mean, var} of each entry of the latents. One that is None is 0 or 1, as in RAE.

    Raises UserError when it is missing, damaged, or of latents of another shape.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist: give the stat.pt that the network was trained with by --statistics")
    content = read_torch(path)
    found = {name: content.get(name) for name in ("mean", "var")} if isinstance(content, Mapping) else {}
    arrays = {name: each for name, each in found.items() if isinstance(each, Tensor)}
    if not arrays:
        raise UserError(f"{path} holds neither mean nor var of latents: give a stat.pt of RAE or MM-FM")
    for name, array in arrays.items():
        if tuple(array.shape) != shape:
            sizes = [" x ".join(map(str, each)) for each in (array.shape, shape)]
            raise UserError(f"{path}: {name} is of {sizes[0]}, and the network's latents are of {sizes[1]}")
        if not torch.isfinite(array).all() or (name == "var" and array.min() < 0):
            raise UserError(f"{path}: {name} holds numbers that are not finite, or variances below 0")
    var = arrays["var"].float() if "var" in arrays else torch.ones(shape)
    mean = arrays["mean"].float() if "mean" in arrays else torch.zeros(shape)
    return LatentStatistics(mean, (var + VARIANCE_EPS).sqrt())


def read_torch(path: Path) -> Any:
    """What ``torch.save`` wrote: tensors and plain data, and the settings that argparse gives, as attributes alone.

    Raises UserError, without having run anything, when the file holds something else or is damaged.
    """
    try:
        # a tensor is then read when it is used: a checkpoint holds several times what is needed of it
        with torch.serialization.safe_globals([Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} holds more than tensors and plain data, or is damaged: it is not read") from error


def _state(content: object) -> dict[str, Tensor] | None:
    """Weights under the names that the network itself gives them; None for anything else."""
    if not (isinstance(content, Mapping) and content and all(isinstance(each, Tensor) for each in content.values())):
        return None
    for prefix in WRAPPERS:
        if all(name.startswith(prefix) for name in content):
            return _state({name.removeprefix(prefix): each for name, each in content.items()})
    return dict(content)
