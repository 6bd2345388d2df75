"""Checkpoints and statistics that PyTorch wrote: tensors and plain data alone, never unpickled in general."""

from __future__ import annotations

import math
import pickle
import warnings
import zipfile
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from gmtool.artifacts.run import VARIANCE_EPS, LatentStatistics
from gmtool.errors import UserError
from gmtool.foreign.pickles import Name, run_pickle
from gmtool.foreign.reading import reading

WRAPPERS = ("module.", "_orig_mod.")
"""Prefixes that data parallelism and the compiler put before the names of weights."""
_PLAIN = (
    Name("collections", "OrderedDict"),
    Name("collections", "Counter"),
    Name("__builtin__", "set"),
    Name("builtins", "set"),
    Name("argparse", "Namespace"),
)
"""Names of a checkpoint that are not PyTorch's."""
_PIECE = 2**22


@dataclass(frozen=True, eq=False)
class TorchCheckpoint:
    """The weights of a checkpoint by name.

    ema: the averaged ones, or the only ones. model: those of the last step, None where there are none beside the
    averaged ones. step: number of training steps, 0 if unknown.
    """

    ema: Mapping[str, Tensor]
    model: Mapping[str, Tensor] | None
    step: int


def read_checkpoint(path: Path) -> TorchCheckpoint:
    """The weights under ``ema`` and ``model`` of a ``.pt`` file, or those of a file that holds weights alone.

    Also a ``.safetensors``. Raises UserError when the file is missing or damaged, or holds no weights.
    """
    if path.suffix == ".safetensors":
        return TorchCheckpoint(read_weights((path,)), None, 0)
    with reading(path, "a checkpoint of PyTorch"):
        content = _load(path)
        ema, model, step = (content.get(name) for name in ("ema", "model", "train_steps"))
        averaged = _weights(ema if ema is not None else model if model is not None else content)
        last = None if ema is None or model is None else _weights(model)
        return TorchCheckpoint(averaged, last, step if isinstance(step, int) and 0 <= step < 2**63 else 0)


def read_weights(files: tuple[Path, ...]) -> dict[str, Tensor]:
    """All weights of a set of safetensors. Raises UserError, naming the file, when one is missing or damaged."""
    weights: dict[str, Tensor] = {}
    for path in files:
        with reading(path, "a file of safetensors"), safe_open(path, framework="pt") as file:
            weights |= _weights({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118  # not a mapping
    return weights


def read_statistics(path: Path, shape: tuple[int, int, int]) -> LatentStatistics:
    """The statistics of latents in RAE's ``stat.pt``, {mean, var}, each of ``shape`` (C, H, W): std = sqrt(var + 1e-5).

    One of the two may be None or missing: the mean is then 0, or the variance 1, as in RAE. Raises UserError when the
    file is missing, damaged, or of latents of another shape, or holds numbers that are not finite or variances below 0.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist: give the stat.pt that the network was trained with by --statistics")
    with reading(path, "a stat.pt of RAE or MM-FM"):
        content = _load(path)
        arrays = {name: content[name] for name in ("mean", "var") if isinstance(content.get(name), Tensor)}
        if not arrays:
            raise UserError(f"{path} holds neither mean nor var of latents: give a stat.pt of RAE or MM-FM")
        for name, array in arrays.items():
            if tuple(array.shape) != shape:
                sizes = [" x ".join(map(str, size)) for size in (array.shape, shape)]
                raise UserError(f"{path}: {name} is of {sizes[0]}, and the network's latents are of {sizes[1]}")
            _check_tensor(name, array)
            if not torch.isfinite(array).all() or (name == "var" and array.min() < 0):
                raise UserError(f"{path}: {name} holds numbers that are not finite, or variances below 0")
        var = arrays["var"].float() if "var" in arrays else torch.ones(shape)
        mean = arrays["mean"].float() if "mean" in arrays else torch.zeros(shape)
        return LatentStatistics(mean, (var + VARIANCE_EPS).sqrt())


def _load(path: Path) -> dict[str, Any]:
    """The dict that ``torch.save`` wrote: tensors and plain data, and the settings that argparse gives, as attributes.

    Raises some exception, without having run anything, when the file holds something else or is damaged.
    """
    _check_archive(path)
    with torch.serialization.safe_globals([Namespace]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own words on a file that it then refuses
        try:
            # mmap: a tensor is read when it is used, since a checkpoint holds several times what is needed of it
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except pickle.UnpicklingError as error:
            raise ValueError("it holds more than tensors and plain data") from error
    if not isinstance(content, Mapping):
        raise TypeError("it holds no weights")
    return dict(content)


def _check_archive(path: Path) -> None:
    """Raise some exception unless a file is as ``torch.save`` writes it, whole, and its pickles can be read in time.

    PyTorch looks at no checksum; and it would enlarge parts that are compressed, which torch.save never makes.
    """
    if not zipfile.is_zipfile(path):
        raise ValueError("it is no archive as torch.save has written it since version 1.6")
    with zipfile.ZipFile(path) as archive:
        parts = archive.infolist()
        if any(part.compress_type != zipfile.ZIP_STORED or part.file_size != part.compress_size for part in parts):
            raise ValueError("its parts are compressed, as torch.save does not")
        if sum(part.file_size for part in parts) > path.stat().st_size:
            raise ValueError("its parts are larger than the file")
        for part in parts:
            with archive.open(part) as content:
                while content.read(_PIECE):  # raises at the end where the checksum is another
                    pass
            if part.filename.lower().endswith("data.pkl"):
                with archive.open(part) as content:
                    run_pickle(content, path, _is_torchs)


def _is_torchs(name: Name) -> bool:
    """Whether a checkpoint may name it: torch itself then reads no more than tensors by it."""
    return name.module.partition(".")[0] == "torch" or name in _PLAIN


def _weights(content: object) -> dict[str, Tensor]:
    """Weights under the names that the network itself gives them. Raises TypeError for anything else."""
    if not (isinstance(content, Mapping) and content and all(isinstance(name, str) for name in content)):
        raise TypeError("it holds no weights")
    for name, tensor in content.items():
        if not isinstance(tensor, Tensor):
            raise TypeError("it holds no weights")
        _check_tensor(name, tensor)
    weights = dict(content)
    while prefix := next((wrapper for wrapper in WRAPPERS if all(name.startswith(wrapper) for name in weights)), None):
        weights = {name.removeprefix(prefix): tensor for name, tensor in weights.items()}
    return weights


def _check_tensor(name: str, tensor: Tensor) -> None:
    """Raise ValueError unless a tensor is floating-point numbers, all of which are in the file.

    A view that repeats its numbers, or a sparse tensor, may be of any size.
    """
    plain = tensor.layout is torch.strided and tensor.device.type == "cpu" and tensor.is_floating_point()
    size = math.prod(tensor.shape) * tensor.element_size()  # in Python, whose products do not overflow
    if not plain or tensor.is_nested or size > tensor.untyped_storage().nbytes():
        raise ValueError(f"{name} is no plain tensor of floating-point numbers")
